"""The window through which a network sees a volume: slices, stacks, patches or the whole.

One function, ``predict``, cuts the volume into blocks, feeds them in batches and puts the output
together again, so an engine's manifest can change the window without code. The order of blocks,
batches and sums is fixed: the same volume gives the same bits. A device's own implementation can
take the same ``Tiling`` (where blocks begin and what they weigh) and do only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options
from scipy import special

from node.domain.errors import InferenceError
from node.domain.tensor import Tensors

Lengths = tuple[int, int, int]
Infer = Callable[[Tensors], Tensors]
Progress = Callable[[int, int], None]
"""Called after every batch with the blocks done and the blocks to do."""

_SIGMA = 0.125
"""Standard deviation of a block's importance, as a share of its length: a network is surest in
the middle of what it sees."""

_PLANAR = ("NCHW", "NHWC")
_CHANNELS_LAST = ("NHWC", "NDHWC")


@options(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Window:
    """How a network sees a volume; the fields are the manifest's ``[window]`` table."""

    mode: Literal["slice", "stack", "patch", "volume"]
    """``slice``: each slice by itself. ``stack``: each slice with its neighbours as channels;
    for each channel of the volume in turn its slices from k-h to k+h, the end slices repeated.
    ``patch``: 3-D blocks. ``volume``: everything at once."""
    layout: Literal["NCHW", "NHWC", "NCDHW", "NDHWC"] | None = None
    """Order of the tensor's axes: batch N, channels C, slices D, rows H, columns W. Without it:
    ``NCHW`` for slices and stacks, ``NCDHW`` for patches and volumes."""
    patch: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Voxels in a block: rows, columns for slices and stacks; slices, rows, columns for patches.
    0, or nothing at all: the whole axis."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    """Share of a block that its neighbour sees too, 0 to 0.9."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Blocks in one call of the network."""
    fixed_batch: bool = False
    """The network takes exactly ``batch`` blocks: the last batch is filled with its last block."""
    stack: Annotated[int, Field(ge=1)] = 3
    """Slices in a stack, an odd number."""
    multiple: Annotated[int, Field(ge=1)] = 1
    """An axis that is seen whole is filled up to a multiple of this (not the slices of ``slice``
    and ``stack``); for networks that halve their input n times it is 2 to the power n."""
    skip_air: bool = False
    """Blocks in which every voxel of every input is air are not computed: they count as
    probability 0."""
    air: float | None = None
    """The highest value that is air, after the steps. Without it: each channel's lowest value."""
    logits: bool = False
    """The network gives logits: they become probabilities before blocks are blended."""
    exclusive: bool = False
    """Channels exclude one another and channel 0 is the background (softmax; skipped air is
    background with probability 1). Otherwise each channel stands for itself (sigmoid)."""

    def __post_init__(self) -> None:
        """Refuse options that contradict one another."""
        if self.layout and (self.layout in _PLANAR) != self.planar:
            raise ValueError(f"layout {self.layout} does not fit mode {self.mode!r}")
        if self.stack % 2 == 0:
            raise ValueError(f"stack must be odd, so that a slice is in the middle: {self.stack}")
        axes = {"slice": 2, "stack": 2, "patch": 3, "volume": 0}[self.mode]
        if len(self.patch) not in {0, axes}:
            raise ValueError(f"patch has {axes} lengths in mode {self.mode!r}: {self.patch}")

    @property
    def planar(self) -> bool:
        """Whether the network's tensors have two spatial axes."""
        return self.mode in {"slice", "stack"}

    @property
    def channels_last(self) -> bool:
        """Whether the network's tensors have the channels as their last axis."""
        return self.layout in _CHANNELS_LAST

    @property
    def reach(self) -> int:
        """Neighbouring slices seen on each side of a block."""
        return self.stack // 2 if self.mode == "stack" else 0

    def fitted(self, shape: Sequence[int]) -> Window:
        """The window with the batch and the lengths that a network's input tensor fixes.

        ``shape`` has -1 where the network takes any length. Raises InferenceError when the
        tensor cannot be fed through this window.
        """
        spatial = 2 if self.planar else 3
        if len(shape) != spatial + 2:
            raise InferenceError(
                f"window mode {self.mode!r} feeds tensors of {spatial + 2} axes, the network "
                f"takes {len(shape)}; correct the mode in the engine's manifest"
            )
        fixed = tuple(shape[1:-1] if self.channels_last else shape[2:])
        fitted = replace(self, patch=self._merged(fixed))
        return replace(fitted, batch=shape[0], fixed_batch=True) if shape[0] > 0 else fitted

    def _merged(self, fixed: tuple[int, ...]) -> tuple[int, ...]:
        if self.mode == "volume" and max(fixed) > 0:
            raise InferenceError(
                f"the network takes blocks of {fixed} (-1: any), not a whole volume; use window "
                f"mode 'patch'"
            )
        asked = self.patch or (0,) * len(fixed)
        for want, have in zip(asked, fixed, strict=True):
            if want and have > 0 and want != have:
                raise InferenceError(
                    f"the window's patch is {self.patch}, the network takes {fixed} (-1: any)"
                )
        merged = tuple(want or max(have, 0) for want, have in zip(asked, fixed, strict=True))
        return () if self.mode == "volume" else merged


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """Where blocks begin along (k, j, i), and what each weighs.

    ``shape`` is the volume's, filled up by ``before`` voxels in front so that whole blocks fit.
    ``weights[axis][n]`` are the importances of block n along an axis, normalised: over all
    blocks that see a voxel they add up to 1, so the sum of weighted outputs is their mean.
    """

    shape: Lengths
    before: Lengths
    block: Lengths
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    weights: tuple[tuple[NDArray[np.float32], ...], ...]

    def places(self) -> list[Lengths]:
        """Every block by its number along (k, j, i), in the order of computation."""
        k, j, i = (range(len(starts)) for starts in self.starts)
        return list(product(k, j, i))

    def origin(self, place: Lengths) -> Lengths:
        """The first voxel of a block."""
        k, j, i = (self.starts[axis][place[axis]] for axis in range(3))
        return (k, j, i)

    def region(self, place: Lengths) -> tuple[slice, slice, slice]:
        """The voxels of a block."""
        k, j, i = (slice(a, a + n) for a, n in zip(self.origin(place), self.block, strict=True))
        return (k, j, i)

    def weight(self, place: Lengths) -> NDArray[np.float32]:
        """Importance of a block's voxels, (k, j, i)."""
        k, j, i = (self.weights[axis][place[axis]] for axis in range(3))
        return k[:, None, None] * j[:, None] * i


def tile(shape: Lengths, window: Window) -> Tiling:
    """The tiling of a volume of shape (k, j, i)."""
    asked: tuple[int, ...] = window.patch or (0,) * (2 if window.planar else 3)
    lengths = (1, *asked) if window.planar else asked
    block, room = [], []
    for length, want in zip(shape, lengths, strict=True):
        block.append(want or -(-length // window.multiple) * window.multiple)
        room.append(max(length, block[-1]))
    starts = [_starts(n, b, window.overlap) for n, b in zip(room, block, strict=True)]
    weights = [_weights(s, n, b) for s, n, b in zip(starts, room, block, strict=True)]
    return Tiling(
        shape=(room[0], room[1], room[2]),
        before=(
            (room[0] - shape[0]) // 2,
            (room[1] - shape[1]) // 2,
            (room[2] - shape[2]) // 2,
        ),
        block=(block[0], block[1], block[2]),
        starts=(starts[0], starts[1], starts[2]),
        weights=tuple(weights),
    )


def _starts(length: int, block: int, overlap: float) -> tuple[int, ...]:
    """Evenly spread, at most ``block * (1 - overlap)`` apart, from the first voxel to the last."""
    step = max(1, int(block * (1 - overlap) + 1e-9))
    gaps = -(-(length - block) // step)
    return tuple((length - block) * n // max(gaps, 1) for n in range(gaps + 1))


def _weights(starts: tuple[int, ...], length: int, block: int) -> tuple[NDArray[np.float32], ...]:
    away = (np.arange(block) - (block - 1) / 2) / (_SIGMA * block)
    importance = np.exp(-0.5 * away**2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + block] += importance
    return tuple((importance / total[s : s + block]).astype(np.float32) for s in starts)


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
    tensor with the probabilities. Raises InferenceError when the volumes differ in shape, and
    when the output is absent, has a wrong shape, or is not finite.
    """
    shape = _common_shape(volumes)
    tiling = tile(shape, window)
    filled = {name: _filled(volume, tiling) for name, volume in volumes.items()}
    wanted, air = _parted(filled, tiling, window)
    canvas = _Canvas(tiling, shape)
    for done, places in _batches(wanted, window.batch):
        outputs = infer(_feeds(filled, tiling, places, window))
        blocks = _checked(outputs, output, len(places), tiling.block, window)
        for place, block in zip(places, blocks, strict=True):
            canvas.add(place, block)
        if progress:
            progress(done, len(wanted))
    if window.exclusive:
        for place in air:
            canvas.add_background(place)
    return canvas.finished()


def _common_shape(volumes: Mapping[str, NDArray[Any]]) -> Lengths:
    shapes = {name: volume.shape for name, volume in volumes.items()}
    grids = {shape[1:] for shape in shapes.values()}
    if len(grids) != 1 or any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise InferenceError(
            f"a window needs volumes (channels, k, j, i) on one grid, and got {shapes}"
        )
    k, j, i = grids.pop()
    return (k, j, i)


def _filled(volume: NDArray[Any], tiling: Tiling) -> NDArray[Any]:
    """Filled up to the tiling's shape with each channel's lowest value, which stands for air."""
    if volume.shape[1:] == tiling.shape:
        return volume
    filled = np.empty((len(volume), *tiling.shape), volume.dtype)
    filled[:] = _lowest(volume)
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


def _batches(places: list[Lengths], size: int) -> Iterator[tuple[int, list[Lengths]]]:
    """Batches in order, each with the number of blocks done after it."""
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        yield start + len(batch), batch


def _feeds(
    volumes: Mapping[str, NDArray[Any]], tiling: Tiling, places: list[Lengths], window: Window
) -> Tensors:
    short = window.batch - len(places) if window.fixed_batch else 0
    chosen = places + places[-1:] * short
    return {
        name: _tensor([_seen(volume, tiling, place, window) for place in chosen], window)
        for name, volume in volumes.items()
    }


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
