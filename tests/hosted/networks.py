"""Networks that are easy to know and hard to fool, and windows of every kind for hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.domain.tensor import Tensors, TensorSpec
from node.gpu.task import DeviceNetwork, Portion, Task
from node.sight import Axis, Window
from tests.hosted.device import HostNetwork

MODES: tuple[Literal["slice", "stack", "patch", "volume"], ...] = (
    "slice",
    "stack",
    "patch",
    "volume",
)
Infer = Callable[[Tensors], Tensors]


def answering(window: Window, dtype: str = "float32", scale: float = 1.0) -> Infer:
    """Three classes that depend on every input voxel's place in its block and on its block."""

    def infer(feeds: Tensors) -> Tensors:
        first = [_first(feeds[name], window).astype(np.float32) for name in sorted(feeds)]
        image = np.concatenate(first, axis=1)
        # Each channel by another factor, so that channels cannot be mistaken for one another.
        factors = np.cos(np.arange(image.shape[1], dtype=np.float32))
        mixed = np.tensordot(image, factors, axes=(1, 0))[:, None]
        along = np.linspace(0, 1, image.shape[-1], dtype=np.float32)
        down = np.linspace(-1, 1, image.shape[2], dtype=np.float32)
        down = down.reshape(1, 1, -1, *[1] * (image.ndim - 3))
        whole = mixed.mean(axis=tuple(range(1, mixed.ndim)), keepdims=True)
        classes = [np.tanh(mixed / 50) * (1 + along), np.sin(mixed / 9) * down, mixed * 0 + whole]
        answer = (np.concatenate(classes, axis=1) * scale).astype(dtype)
        return {"out": np.moveaxis(answer, 1, -1) if window.channels_last else answer}

    return infer


def _first(tensor: NDArray[Any], window: Window) -> NDArray[Any]:
    return np.moveaxis(tensor, -1, 1) if window.channels_last else tensor


def hosted(
    infer: Infer,
    window: Window,
    inputs: dict[str, str],
    output: str = "float32",
    batches: tuple[int, int] = (1, 64),
) -> HostNetwork:
    """The network on a host device.

    ``inputs`` are number types by name, ``batches`` the fewest and most blocks of a run.
    """
    batch = window.batch if window.fixed_batch else -1
    axes = (batch, *[-1] * (3 if window.planar else 4))
    return HostNetwork(
        infer,
        tuple(TensorSpec(name, axes, dtype) for name, dtype in inputs.items()),
        (TensorSpec("out", axes, output),),
        batches[1],
        batches[0],
    )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Every option of a window but ``logits``."""
    mode = draw(st.sampled_from(MODES))
    planar = mode in ("slice", "stack")
    layouts = ("NCHW", "NHWC") if planar else ("NCDHW", "NDHWC")
    axes: tuple[Axis, ...] = ("j", "i") if planar else ("k", "j", "i")
    return Window(
        mode=mode,
        layout=draw(st.sampled_from((None, *layouts))),
        patch=draw(st.tuples(*[st.integers(0, 7)] * {"patch": 3, "volume": 0}.get(mode, 2))),
        overlap=draw(st.floats(0, 0.8)),
        placement=draw(st.sampled_from(("even", "rounded", "stride"))),
        importance=draw(st.sampled_from(("gaussian", "constant"))),
        sigma=draw(st.sampled_from((0.125, 0.3))),
        centre=draw(st.sampled_from(("middle", "voxel"))),
        floor=draw(st.sampled_from((0.0, 0.001, 0.2))),
        fill=draw(st.sampled_from(("minimum", "edge", "reflect", 0.0, -7.0))),
        mirror=draw(st.sampled_from(((), (), axes[:1], axes))),
        batch=draw(st.integers(1, 5)),
        fixed_batch=draw(st.booleans()),
        stack=draw(st.sampled_from((1, 3, 5))),
        multiple=draw(st.sampled_from((1, 4))),
        skip_air=draw(st.booleans()),
        air=draw(st.sampled_from((None, 0.5, 40.0))),
        exclusive=draw(st.booleans()),
    )


SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SOURCES = ("uint8", "int8", "int16", "uint16", "int32", "float16", "float32")


def volume(channels: int, shape: tuple[int, ...], dtype: str, seed: int) -> NDArray[Any]:
    """Mostly air, with blobs of anything up to 120 in it; below 0 where the type allows it."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-60, 120, (channels, *shape))
    values[:, rng.random(shape) < 0.3] = 0
    low = 0 if np.dtype(dtype).kind == "u" else -60
    half = tuple(slice(0, n // 2 + 1) for n in shape)
    values[(slice(None), *half)] = low
    return np.maximum(values, low).astype(dtype)


def volumes(one: Example) -> dict[str, NDArray[Any]]:
    """Two inputs of an example: two channels and one."""
    return {
        "image": volume(2, one.shape, one.kinds[0], one.seed),
        "second": volume(1, one.shape, one.kinds[1], one.seed + 1),
    }


@dataclass(frozen=True)
class Example:
    """Volumes of some types, and how they are swept."""

    window: Window
    shape: tuple[int, int, int]
    kinds: tuple[str, str]
    fed: str
    out: str
    slices: int | None
    backward: bool
    seed: int

    def network(self, window: Window) -> HostNetwork:
        """Three classes, seen through a window."""
        fed = "float32" if "int32" in self.kinds else self.fed
        infer = answering(window, self.out, 6.0 if window.logits else 1.0)
        return hosted(infer, window, {"image": fed, "second": fed}, self.out)

    def budget(self, network: DeviceNetwork, window: Window) -> int | None:
        """Bytes with which just so many slices of the sum fit, at least a block's."""
        if self.slices is None:
            return None
        task = Task.of(network, volumes(self), window, "out")
        batch = task.first(1 << 30).batch
        return task.bytes(Portion(batch, max(self.slices, task.least)))


EXAMPLES = st.builds(
    Example,
    window=windows(),
    shape=SHAPES,
    kinds=st.tuples(*[st.sampled_from(SOURCES)] * 2),
    fed=st.sampled_from(("float32", "float16")),
    out=st.sampled_from(("float32", "float16")),
    slices=st.none() | st.integers(1, 9),
    backward=st.booleans(),
    seed=st.integers(0, 99),
)

PATCHES = Window("patch", patch=(4, 5, 6), overlap=0.5, batch=3)
