"""Published networks as graphs without weights: small files that become whole networks again.

What a compiler takes or refuses depends on operators, shapes and types, and hardly on weights. So
only the graph is kept (``fixtures/NAME.graph``, ONNX whose large tensors have a shape and no
values), and the weights are drawn anew from a seed that is the tensor's name.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FIXTURES = Path(__file__).parent / "fixtures"
MOST_VALUES = 300
"""A tensor of more values is kept without them."""


def graphs() -> list[Path]:
    """All of them, by name."""
    return sorted(FIXTURES.glob("*.graph"))


def bared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network without the values of its large tensors."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if np.prod(tensor.dims) > MOST_VALUES and tensor.data_type == TensorProto.FLOAT:
            empty = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(empty)
    return bare


def whole(graph: Path) -> onnx.ModelProto:
    """The network of a graph with weights that keep the size of what passes."""
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        if not tensor.raw_data and np.prod(tensor.dims) > MOST_VALUES:
            tensor.CopyFrom(numpy_helper.from_array(_drawn(tensor), tensor.name))
    return model


def written(graph: Path, path: Path) -> Path:
    """The whole network as a file."""
    onnx.save(whole(graph), str(path))
    return path


def _drawn(tensor: TensorProto) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    chance = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    shape = tuple(tensor.dims)
    if sum(length > 1 for length in shape) < 2:
        # Scales, variances and slopes must be positive; to shifts it makes no difference.
        return chance.uniform(0.5, 1.5, shape).astype(np.float32)
    noise = chance.standard_normal(shape, np.float32)
    return np.asarray(noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32))
