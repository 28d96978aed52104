"""One U-Net in two tongues: written as ONNX, and computed by torch from the same weights.

Its size is that of MONAI's spleen bundle: 16 to 256 channels over five levels, residual units of
two convolutions, instance norm, PReLU. So figures against torch compare the same network.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHANNELS = (16, 32, 64, 128, 256)
CLASSES = 2
PATCH = 96

T = TypeVar("T")


class Tongue(Protocol[T]):
    """What a U-Net is made of."""

    def conv(self, x: T, name: str, width: int, stride: int = 1) -> T:
        """Convolution with kernel 3, padded by 1."""

    def up(self, x: T, name: str, width: int) -> T:
        """Transposed convolution that doubles every axis."""

    def settle(self, x: T, name: str) -> T:
        """Instance norm without weights, then PReLU with one slope."""

    def add(self, a: T, b: T) -> T:
        """The sum."""

    def join(self, a: T, b: T) -> T:
        """The channels of both."""


def unet(say: Tongue[T], x: T, channels: Sequence[int] = CHANNELS, depth: int = 0) -> T:
    """The logits; every axis of ``x`` a multiple of 2 to the power of the levels less one."""
    last = depth == len(channels) - 1
    down = _residual(say, x, f"down{depth}", channels[depth], 1 if last else 2)
    if last:
        return down
    both = say.join(down, unet(say, down, channels, depth + 1))
    width = channels[depth - 1] if depth else CLASSES
    up = say.settle(say.up(both, f"up{depth}", width), f"up{depth}")
    again = say.conv(up, f"again{depth}", width)
    return say.add(up, say.settle(again, f"again{depth}") if depth else again)


def _residual(say: Tongue[T], x: T, name: str, width: int, stride: int) -> T:
    first = say.settle(say.conv(x, f"{name}.first", width, stride), f"{name}.first")
    second = say.settle(say.conv(first, f"{name}.second", width), f"{name}.second")
    return say.add(second, say.conv(x, f"{name}.short", width, stride))


def kernel(name: str, *shape: int) -> NDArray[np.float32]:
    """The weights of this name, which keep the size of what passes."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return np.asarray(noise / np.sqrt(np.prod(shape[1:])), np.float32)


SLOPE = np.array([0.25], np.float32)


class Written:
    """Writes ONNX; a tensor is its name and its channels. Norms stay FP32 inside of FP16."""

    def __init__(self, half: bool = False) -> None:
        self._half = half
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, NDArray[Any]] = {}

    def conv(self, x: tuple[str, int], name: str, width: int, stride: int = 1) -> tuple[str, int]:
        """Convolution."""
        weight = self._put(f"{name}.w", kernel(name, width, x[1], 3, 3, 3))
        options = {"pads": [1] * 6, "strides": [stride] * 3}
        return self._node("Conv", [x[0], weight], **options), width

    def up(self, x: tuple[str, int], name: str, width: int) -> tuple[str, int]:
        """Transposed convolution."""
        weight = self._put(f"{name}.w", kernel(name, x[1], width, 3, 3, 3))
        options = {"pads": [1] * 6, "strides": [2] * 3, "output_padding": [1] * 3}
        return self._node("ConvTranspose", [x[0], weight], **options), width

    def settle(self, x: tuple[str, int], name: str) -> tuple[str, int]:
        """Norm and PReLU."""
        wide = self._cast(x[0], TensorProto.FLOAT)
        for part, value in (("scale", np.ones), ("shift", np.zeros)):
            self._weights[f"{part}{x[1]}"] = value(x[1], np.float32)
        normed = self._node("InstanceNormalization", [wide, f"scale{x[1]}", f"shift{x[1]}"])
        slope = self._put("slope", SLOPE.reshape(1, 1, 1, 1))
        return self._node("PRelu", [self._cast(normed, TensorProto.FLOAT16), slope]), x[1]

    def add(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[str, int]:
        """The sum."""
        return self._node("Add", [a[0], b[0]]), a[1]

    def join(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[str, int]:
        """The channels of both."""
        return self._node("Concat", [a[0], b[0]], axis=1), a[1] + b[1]

    def save(self, path: Path, size: int, channels: Sequence[int]) -> Path:
        """The whole network: ``image`` (any, 1, size, size, size) to ``logits``."""
        start = self._cast("image", TensorProto.FLOAT16)
        logits, _ = unet(self, (start, 1), channels)
        kind = TensorProto.FLOAT
        self._nodes.append(
            helper.make_node("Cast", [logits], ["logits"], to=kind)
            if self._half
            else helper.make_node("Identity", [logits], ["logits"])
        )
        side = [size] * 3
        graph = helper.make_graph(
            self._nodes,
            "unet",
            [helper.make_tensor_value_info("image", kind, ["n", 1, *side])],
            [helper.make_tensor_value_info("logits", kind, ["n", CLASSES, *side])],
            [numpy_helper.from_array(array, name) for name, array in self._weights.items()],
        )
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
        return path

    def _put(self, name: str, array: NDArray[np.float32]) -> str:
        self._weights[name] = array.astype(np.float16) if self._half else array
        return name

    def _cast(self, name: str, kind: int) -> str:
        return self._node("Cast", [name], to=kind) if self._half else name

    def _node(self, operator: str, inputs: list[str], **options: Any) -> str:
        output = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], output, **options))
        return output


class Torch:
    """Computes by torch on a CUDA device, in whatever autocast it is called."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._on_device: dict[str, Any] = {}

    def conv(self, x: Any, name: str, width: int, stride: int = 1) -> Any:
        """Convolution."""
        weight = self._put(f"{name}.w", kernel(name, width, x.shape[1], 3, 3, 3))
        return self._torch.nn.functional.conv3d(x, weight, stride=stride, padding=1)

    def up(self, x: Any, name: str, width: int) -> Any:
        """Transposed convolution."""
        weight = self._put(f"{name}.w", kernel(name, x.shape[1], width, 3, 3, 3))
        return self._torch.nn.functional.conv_transpose3d(
            x, weight, stride=2, padding=1, output_padding=1
        )

    def settle(self, x: Any, name: str) -> Any:
        """Norm and PReLU."""
        functional = self._torch.nn.functional
        slope = self._put("slope", SLOPE)
        return functional.prelu(functional.instance_norm(x), slope.to(x.dtype))

    def add(self, a: Any, b: Any) -> Any:
        """The sum."""
        return a + b

    def join(self, a: Any, b: Any) -> Any:
        """The channels of both."""
        return self._torch.cat([a, b], dim=1)

    def _put(self, name: str, array: NDArray[np.float32]) -> Any:
        if name not in self._on_device:
            self._on_device[name] = self._torch.from_numpy(array.copy()).cuda()
        return self._on_device[name]


def write(folder: Path, size: int = PATCH, channels: Sequence[int] = CHANNELS) -> Path:
    """``model.onnx`` and ``model.fp16.onnx`` in a folder; the path of the first."""
    Written(half=True).save(folder / "model.fp16.onnx", size, channels)
    return Written().save(folder / "model.onnx", size, channels)
