"""Networks of a few weights that between them have what real ones have, made in a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
Shape = Sequence[int | str | None]
Tensors = dict[str, tuple[int, Shape]]
Feeds = Mapping[str, NDArray[Any]]
Sample = Callable[[Path], Feeds]
"""Writes a network to a file and gives what it can be fed."""


def model(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """A network written to a file."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def doubling(path: Path, shape: Shape = ("batch", 1, 4, 4), kind: int = FLOAT) -> Path:
    """Adds its input to itself."""
    nodes = [helper.make_node("Add", ["image", "image"], ["twice"])]
    return model(path, nodes, {"image": (kind, shape)}, {"twice": (kind, shape)})


def mismatching(path: Path) -> Path:
    """A matrix product, which fails when the matrices do not fit."""
    nodes = [helper.make_node("MatMul", ["a", "b"], ["out"])]
    shape: tuple[int, Shape] = (FLOAT, [None, None])
    return model(path, nodes, {"a": shape, "b": shape}, {"out": shape})


def kernel(*shape: int) -> NDArray[np.float32]:
    """Weights that keep the size of what they are applied to, from a fixed seed."""
    made = np.random.default_rng(sum(shape)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.asarray(made, np.float32)


def image(*shape: int, seed: int = 7) -> NDArray[np.float32]:
    """Noise around 0."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _conv(source: str, weight: str, result: str, axes: int, **options: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [result], pads=[1] * (2 * axes), **options)


def planar(path: Path, batch: int | str = "n") -> Feeds:
    """2-D convolutions with any batch."""
    nodes = [
        _conv("image", "w1", "a", 2),
        helper.make_node("Relu", ["a"], ["b"]),
        _conv("b", "w2", "c", 2),
        helper.make_node("Sigmoid", ["c"], ["probability"]),
    ]
    weights = {"w1": kernel(8, 2, 3, 3), "w2": kernel(3, 8, 3, 3)}
    outputs: Tensors = {"probability": (FLOAT, [batch, 3, 12, 10])}
    model(path, nodes, {"image": (FLOAT, [batch, 2, 12, 10])}, outputs, weights)
    return {"image": image(batch if isinstance(batch, int) else 3, 2, 12, 10)}


def planar_of_two(path: Path) -> Feeds:
    """The same with a batch of exactly two."""
    return planar(path, 2)


def spatial(path: Path) -> Feeds:
    """A 3-D U-Net of one level: instance norm, a way down, a way up, a skip connection."""
    nodes = [
        _conv("image", "w1", "a", 3),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"]),
        helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.01),
        _conv("c", "w2", "d", 3, strides=[2, 2, 2]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("ConvTranspose", ["e", "w3"], ["f"], strides=[2, 2, 2]),
        helper.make_node("Concat", ["c", "f"], ["g"], axis=1),
        _conv("g", "w4", "h", 3),
        helper.make_node("Softmax", ["h"], ["probability"], axis=1),
    ]
    weights = {
        "w1": kernel(4, 1, 3, 3, 3),
        "w2": kernel(8, 4, 3, 3, 3),
        "w3": kernel(8, 4, 2, 2, 2),
        "w4": kernel(3, 8, 3, 3, 3),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
    }
    shape: tuple[int, Shape] = (FLOAT, [1, 1, 8, 8, 8])
    outputs: Tensors = {"probability": (FLOAT, [1, 3, 8, 8, 8])}
    model(path, nodes, {"image": shape}, outputs, weights)
    return {"image": image(1, 1, 8, 8, 8)}


def two_inputs(path: Path) -> Feeds:
    """Two series as two tensors, and two outputs."""
    nodes = [
        helper.make_node("Concat", ["flair", "t1"], ["both"], axis=1),
        _conv("both", "w", "logits", 2),
        helper.make_node("Sub", ["flair", "t1"], ["difference"]),
    ]
    shape: tuple[int, Shape] = (FLOAT, ["n", 1, 6, 6])
    outputs: Tensors = {"logits": (FLOAT, ["n", 2, 6, 6]), "difference": shape}
    weights = {"w": kernel(2, 2, 3, 3)}
    model(path, nodes, {"flair": shape, "t1": shape}, outputs, weights)
    return {"t1": image(2, 1, 6, 6), "flair": image(2, 1, 6, 6, seed=8)}


def channels_last(path: Path) -> Feeds:
    """Tensors in the order of TensorFlow: batch, rows, columns, channels."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["a"], perm=[0, 3, 1, 2]),
        _conv("a", "w", "b", 2),
        helper.make_node("Transpose", ["b"], ["out"], perm=[0, 2, 3, 1]),
    ]
    outputs: Tensors = {"out": (FLOAT, ["n", 8, 6, 2])}
    model(path, nodes, {"image": (FLOAT, ["n", 8, 6, 3])}, outputs, {"w": kernel(2, 3, 3, 3)})
    return {"image": image(2, 8, 6, 3)}


def small_integers(path: Path) -> Feeds:
    """Bytes in, as from a photograph."""
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], to=FLOAT),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        _conv("b", "w", "out", 2),
    ]
    weights = {"w": kernel(2, 1, 3, 3), "scale": np.array([1 / 255], np.float32)}
    inputs: Tensors = {"image": (TensorProto.UINT8, ["n", 1, 6, 6])}
    model(path, nodes, inputs, {"out": (FLOAT, ["n", 2, 6, 6])}, weights)
    return {"image": np.random.default_rng(3).integers(0, 256, (2, 1, 6, 6), np.uint8)}


def whole_numbers(path: Path) -> Feeds:
    """Whole numbers in and, as labels, out."""
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], to=FLOAT),
        _conv("a", "w", "b", 2),
        helper.make_node("ArgMax", ["b"], ["label"], axis=1),
    ]
    inputs: Tensors = {"image": (TensorProto.INT64, ["n", 1, 6, 6])}
    outputs: Tensors = {"label": (TensorProto.INT64, ["n", 1, 6, 6])}
    model(path, nodes, inputs, outputs, {"w": kernel(3, 1, 3, 3)})
    return {"image": np.random.default_rng(3).integers(-100, 100, (2, 1, 6, 6), np.int64)}


SAMPLES: dict[str, Sample] = {
    "2-D, any batch": planar,
    "2-D, batch of two": planar_of_two,
    "3-D, instance norm": spatial,
    "bytes in": small_integers,
    "channels last": channels_last,
    "two inputs": two_inputs,
    "whole numbers": whole_numbers,
}
