"""A network looks at a volume, block by block, and its answers are put together again.

One function, ``predict``, cuts the volume into blocks, feeds them in batches and puts the output
together, so an engine's manifest can change the window without code. The order of blocks, batches,
flips and sums is fixed: the same volume gives the same bits. A device's own implementation takes
the same ``Tiling`` (where blocks begin and what they weigh) and does only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from node.domain.errors import InferenceError
from node.domain.tensor import Tensors
from node.progress import Progress
from node.sight import Flip, Window, tile
from node.tiling import Lengths, Tiling

__all__ = [
    "Activation",
    "Infer",
    "Lengths",
    "Progress",
    "Tiling",
    "Window",
    "activated",
    "predict",
    "probable",
    "tile",
]

Activation = Literal["none", "sigmoid", "softmax"]
"""What makes probabilities of logits; none: they are probabilities already."""
Infer = Callable[[Tensors], Tensors]


def predict(
    infer: Infer,
    volumes: Mapping[str, NDArray[Any]],
    window: Window,
    output: str,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The network's output over whole volumes: float32 (classes, k, j, i).

    ``volumes`` are the inputs by tensor name, (c, k, j, i) on one grid; they are fed in the
    number type that they have (float32 unless a ``cast`` step changed it). ``output`` names the
    tensor with the answer; what it holds is blended, as probabilities where ``window.logits``.
    ``progress`` is called after every batch; each flip of a block counts as one. Raises
    InferenceError when the volumes differ in shape, and when the output is absent, has a wrong
    shape, or is not finite.
    """
    shape = _common_shape(volumes)
    tiling = tile(shape, window)
    filled = {name: _filled(volume, tiling, window) for name, volume in volumes.items()}
    wanted, air = _parted(filled, tiling, window)
    canvas = _Canvas(tiling, shape)
    look = _Look(infer, filled, tiling, window, output)
    told = _counted(progress, len(wanted) * len(window.flips))
    for places in _batches(wanted, window.batch):
        for place, block in zip(places, look.at(places, told), strict=True):
            canvas.add(place, block)
    if window.exclusive:
        for place in air:
            canvas.add_background(place)
    return canvas.finished()


def activated(blended: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Probabilities (classes, k, j, i) from what was blended."""
    return blended if activation == "none" else probable(blended, exclusive=activation == "softmax")


def probable(logits: NDArray[np.float32], *, exclusive: bool) -> NDArray[np.float32]:
    """Probabilities from logits: softmax over the classes where they exclude one another, else
    sigmoid. Slice by slice, so that a large volume takes no other one beside it.
    """
    found = np.empty_like(logits)
    for k in range(logits.shape[1]):
        part = logits[:, k]
        found[:, k] = special.softmax(part, axis=0) if exclusive else special.expit(part)
    return found


def _common_shape(volumes: Mapping[str, NDArray[Any]]) -> Lengths:
    shapes = {name: volume.shape for name, volume in volumes.items()}
    grids = {shape[1:] for shape in shapes.values()}
    if len(grids) != 1 or any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise InferenceError(
            f"a window needs volumes (channels, k, j, i) on one grid, and got {shapes}"
        )
    k, j, i = grids.pop()
    return (k, j, i)


def _filled(volume: NDArray[Any], tiling: Tiling, window: Window) -> NDArray[Any]:
    """Filled up to the tiling's shape; the lowest value of a channel stands for air."""
    if volume.shape[1:] == tiling.shape:
        return volume
    if window.fill in ("edge", "reflect"):
        room = [
            (before, whole - length - before)
            for before, whole, length in zip(
                tiling.before, tiling.shape, volume.shape[1:], strict=True
            )
        ]
        return np.pad(volume, [(0, 0), *room], mode=window.fill)
    filled = np.empty((len(volume), *tiling.shape), volume.dtype)
    filled[:] = _lowest(volume) if window.fill == "minimum" else window.fill
    k, j, i = (slice(a, a + n) for a, n in zip(tiling.before, volume.shape[1:], strict=True))
    filled[:, k, j, i] = volume
    return filled


def _lowest(volume: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(volume.min(axis=(1, 2, 3), keepdims=True))


def _parted(
    volumes: Mapping[str, NDArray[Any]], tiling: Tiling, window: Window
) -> tuple[list[Lengths], list[Lengths]]:
    """The blocks to compute and those of air. One is always computed: it tells the classes."""
    places = tiling.places()
    if not window.skip_air:
        return places, []
    empty = {place: True for place in places}
    for volume in volumes.values():
        level = _lowest(volume) if window.air is None else window.air
        for place in places:
            block = _seen(volume, tiling, place, window)
            empty[place] = empty[place] and bool((block <= level).all())
    wanted = [place for place in places if not empty[place]] or places[:1]
    return wanted, [place for place in places if empty[place] and place not in wanted[:1]]


def _seen(volume: NDArray[Any], tiling: Tiling, place: Lengths, window: Window) -> NDArray[Any]:
    """What the network sees for a block: (c, k, j, i) with the neighbouring slices of a stack."""
    k, j, i = tiling.region(place)
    if not window.reach:
        return volume[:, k, j, i]
    slices = np.arange(k.start - window.reach, k.stop + window.reach)
    return volume[:, np.clip(slices, 0, volume.shape[1] - 1), j, i]


def _batches(places: list[Lengths], size: int) -> Iterator[list[Lengths]]:
    """Batches in order; the last may be short."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Takes the number of blocks that were just done, and tells of all that were."""
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return told


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """The network before a volume, block by block."""

    infer: Infer
    volumes: Mapping[str, NDArray[Any]]
    tiling: Tiling
    window: Window
    output: str

    def at(self, places: list[Lengths], told: Callable[[int], None]) -> NDArray[np.float32]:
        """The network's answer for some blocks, (n, classes, k, j, i): the mean of all flips."""
        first, *others = self.window.flips
        total = self._turned(places, first)
        told(len(places))
        if not others:
            return total
        total = total.copy()
        for flip in others:
            total += self._turned(places, flip)
            told(len(places))
        total /= len(others) + 1
        return total

    def _turned(self, places: list[Lengths], flip: Flip) -> NDArray[np.float32]:
        """The answer to blocks that are turned round, turned back."""
        axes = tuple(axis - 3 for axis in flip)
        outputs = self.infer(self._feeds(places, axes))
        blocks = _checked(outputs, self.output, len(places), self.tiling.block, self.window)
        return np.flip(blocks, axes) if axes else blocks

    def _feeds(self, places: list[Lengths], axes: tuple[int, ...]) -> Tensors:
        short = self.window.batch - len(places) if self.window.fixed_batch else 0
        chosen = places + places[-1:] * short
        return {name: self._tensor(volume, chosen, axes) for name, volume in self.volumes.items()}

    def _tensor(
        self, volume: NDArray[Any], places: list[Lengths], axes: tuple[int, ...]
    ) -> NDArray[Any]:
        blocks = [_seen(volume, self.tiling, place, self.window) for place in places]
        return _tensor([np.flip(block, axes) if axes else block for block in blocks], self.window)


def _tensor(blocks: list[NDArray[Any]], window: Window) -> NDArray[Any]:
    tensor = np.stack(blocks)
    if window.planar:
        n, channels, slices, rows, columns = tensor.shape
        tensor = tensor.reshape(n, channels * slices, rows, columns)
    return np.ascontiguousarray(np.moveaxis(tensor, 1, -1)) if window.channels_last else tensor


def _checked(
    outputs: Tensors, name: str, count: int, block: Lengths, window: Window
) -> NDArray[np.float32]:
    """Probabilities (count, classes, k, j, i) from the network's output tensor."""
    if name not in outputs:
        raise InferenceError(f"the network has no output {name!r}; it has {sorted(outputs)}")
    array = outputs[name]
    fed = window.batch if window.fixed_batch else count
    spatial = block[1:] if window.planar else block
    wanted = (fed, -1, *spatial) if not window.channels_last else (fed, *spatial, -1)
    axis = wanted.index(-1)
    if array.ndim != len(wanted) or array.shape != _with(wanted, axis, array.shape):
        raise InferenceError(
            f"the output {name!r} has shape {array.shape}; this window needs {wanted} with one "
            f"probability per class (-1) and voxel"
        )
    result = np.moveaxis(array, axis, 1)[:count].astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        raise InferenceError(f"the output {name!r} holds NaN or infinite values")
    return _probabilities(result, window).reshape(count, -1, *block)


def _with(wanted: tuple[int, ...], axis: int, got: tuple[int, ...]) -> tuple[int, ...]:
    """The wanted shape with the number of classes that the network gave, at least 1."""
    return (*wanted[:axis], max(got[axis], 1), *wanted[axis + 1 :])


def _probabilities(result: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    if not window.logits:
        return result
    return np.asarray(
        special.softmax(result, axis=1) if window.exclusive else special.expit(result)
    )


class _Canvas:
    """The weighted sum of all blocks."""

    def __init__(self, tiling: Tiling, shape: Lengths) -> None:
        self._tiling = tiling
        self._shape = shape
        self._sum: NDArray[np.float32] | None = None

    def add(self, place: Lengths, block: NDArray[np.float32]) -> None:
        """Add a block (classes, k, j, i) by its importance."""
        if self._sum is None:
            self._sum = np.zeros((len(block), *self._tiling.shape), np.float32)
        if len(block) != len(self._sum):
            raise InferenceError(
                f"the network gave {len(self._sum)} classes, and then {len(block)}"
            )
        k, j, i = self._tiling.region(place)
        self._sum[:, k, j, i] += block * self._tiling.weight(place)

    def add_background(self, place: Lengths) -> None:
        """Add a block of air: class 0 with probability 1."""
        if self._sum is not None:
            k, j, i = self._tiling.region(place)
            self._sum[0, k, j, i] += self._tiling.weight(place)

    def finished(self) -> NDArray[np.float32]:
        """The mean over all blocks, without what was filled in: (classes, k, j, i)."""
        if self._sum is None:
            raise InferenceError("the volume has no voxels")
        parts = zip(self._tiling.before, self._shape, strict=True)
        k, j, i = (slice(before, before + length) for before, length in parts)
        return np.ascontiguousarray(self._sum[:, k, j, i])
