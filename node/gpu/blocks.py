"""What the network sees, on the device: volumes that went up once, and the blocks cut from them.

The kernels know blocks by number from tables that are made here from ``windows.Tiling``, so that
where blocks begin and what they weigh is decided in one place for CPU and GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.gpu.device import Argument, Block, Device, Kernels
from node.sight import Flip, Window, tile
from node.tiling import Lengths, Tiling

SOURCES = ("uint8", "int8", "int16", "uint16", "int32", "float16", "float32")
"""Number types in which a volume can go up."""
FED = {
    "float32": SOURCES,
    "float16": tuple(name for name in SOURCES if name != "int32"),
    "uint8": ("uint8",),
    "int8": ("int8",),
    "int32": ("int32",),
}
"""Number types of a network's input, with those of the volumes that can be fed to it."""

FLOAT = 4
"""Bytes of a float32."""
NULL = np.uintp(0)
"""A pointer to nothing, for what a kernel may do without."""

_AROUND = {"edge": 1, "reflect": 2}
_THREADS = 256
_MOST_BLOCKS = 1 << 20
"""Of threads in one launch; a kernel's threads go round until everything is done."""


class Workspace:
    """A device's memory and kernels for one sweep; leaving it gives all of the memory back."""

    def __init__(self, device: Device, kernels: Kernels) -> None:
        self.device = device
        self._kernels = kernels
        self._stack = ExitStack()
        self._sent: list[NDArray[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """What was asked for may still run: memory is freed when it has ended."""
        self._stack.callback(self.device.synchronise)
        self._stack.close()

    def allocate(self, size: int) -> Block:
        """Memory that is not cleared. Raises DeviceMemoryFull."""
        block = self.device.allocate(size)
        self._stack.callback(block.free)
        return block

    def uploaded(self, array: NDArray[Any]) -> Block:
        """A copy of a contiguous array."""
        block = self.allocate(array.nbytes)
        self.upload(block, array)
        return block

    def upload(self, block: Block, array: NDArray[Any]) -> None:
        """Copy a contiguous array into a block."""
        # The copy may still run when the caller has dropped the array.
        self._sent.append(array)
        self.device.upload(block, array)

    def launch(self, name: str, total: int, *arguments: Argument | int) -> None:
        """Put a kernel into the stream, with a thread for each of ``total`` numbers.

        Blocks become pointers, ints become 32-bit integers.
        """
        grid = min(max(-(-total // _THREADS), 1), _MOST_BLOCKS)
        fitting = [np.int32(one) if isinstance(one, int) else one for one in arguments]
        self._kernels.launch(name, (grid, 1, 1), (_THREADS, 1, 1), *fitting)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """How a volume of ``size`` (k, j, i) is cut into blocks."""

    size: Lengths
    tiling: Tiling
    raised: NDArray[np.float32] | None
    """What a block's voxels weigh where ``window`` has a floor; the device adds them up."""
    window: Window

    @classmethod
    def of(cls, size: Lengths, window: Window) -> Cut:
        """The cut through a window."""
        tiling = tile(size, replace(window, floor=0.0))
        return cls(size, tiling, window.weighing.raised(tiling.block), window)

    @property
    def depth(self) -> int:
        """Slices that a block sees, the neighbours of a stack counted."""
        return self.tiling.block[0] + 2 * self.window.reach

    def frame(self) -> NDArray[np.int32]:
        """The kernels' ``Frame``."""
        tiling, window = self.tiling, self.window
        parts = (*self.size, *tiling.shape, *tiling.before, *tiling.block, window.reach)
        around = _AROUND.get(window.fill, 0) if isinstance(window.fill, str) else 0
        return np.array((*parts, around), np.int32)

    def lines(self) -> NDArray[np.float32]:
        """The importances of all blocks along k, then j, then i."""
        return np.concatenate([row for axis in self.tiling.weights for row in axis])

    def table(self, places: list[Lengths]) -> NDArray[np.int32]:
        """The kernels' ``Place`` of every block: (blocks, 6)."""
        counts = [len(starts) for starts in self.tiling.starts]
        lengths = [n * b for n, b in zip(counts, self.tiling.block, strict=True)]
        axes = (0, lengths[0], lengths[0] + lengths[1])
        return np.array(
            [
                (
                    *self.tiling.origin(place),
                    *(a + n * b for a, n, b in zip(axes, place, self.tiling.block, strict=True)),
                )
                for place in places
            ],
            np.int32,
        ).reshape(-1, 6)

    def fed(self, batch: int, channels: int) -> tuple[int, ...]:
        """The lengths of an input tensor for a volume with so many channels."""
        if not self.window.planar:
            return self._laid(batch, channels, self.tiling.block)
        return self._laid(batch, channels * self.depth, self.tiling.block[1:])

    def answered(self, batch: int, classes: int) -> tuple[int, ...]:
        """The lengths of the output tensor."""
        planar = self.window.planar
        return self._laid(batch, classes, self.tiling.block[1:] if planar else self.tiling.block)

    def _laid(self, batch: int, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        last = self.window.channels_last
        return (batch, *spatial, channels) if last else (batch, channels, *spatial)

    @property
    def order(self) -> int:
        """The kernels' ``order`` of an input tensor's axes."""
        if not self.window.channels_last:
            return 0
        return 1 if self.window.planar else 2


def native(volume: NDArray[Any]) -> NDArray[Any]:
    """A volume as it can go up: contiguous, in this machine's byte order.

    Raises InferenceError for number types that the kernels do not read.
    """
    if volume.dtype.name not in SOURCES:
        raise InferenceError(
            f"a volume of {volume.dtype} cannot go to the GPU: end the pre steps with a cast to "
            f"one of {', '.join(SOURCES)}"
        )
    return np.ascontiguousarray(volume, dtype=volume.dtype.newbyteorder("="))


def refuse_unfit(spec: TensorSpec, volume: NDArray[Any]) -> None:
    """Raises InferenceError when a volume's number type cannot become the network's."""
    if volume.dtype.name not in FED.get(spec.dtype, ()):
        raise InferenceError(
            f"the network wants {spec}; a volume of {volume.dtype} cannot be fed to it on the "
            f"GPU: end the pre steps with a cast, or run the engine on the CPU"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of the network on the device."""

    block: Block
    dtype: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks ``first`` to ``first + count - 1``; the tensor has room for ``fed``."""

    first: int
    count: int
    fed: int


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The kernels' tables of the blocks."""

    frame: Block
    places: Block
    weights: tuple[Argument, Argument, Argument]

    @classmethod
    def of(cls, room: Workspace, cut: Cut, places: list[Lengths]) -> Tables:
        """The tables for these blocks."""
        frame = room.uploaded(cut.frame())
        weights = (room.uploaded(cut.lines()), *_raised(room, frame, cut))
        return cls(frame, room.uploaded(cut.table(places)), weights)

    def reordered(self, room: Workspace, cut: Cut, places: list[Lengths]) -> None:
        """The same blocks in another order."""
        room.upload(self.places, cut.table(places))


def _raised(room: Workspace, frame: Block, cut: Cut) -> tuple[Argument, Argument]:
    """A block's weights with a floor, and their sum over all blocks for every filled voxel."""
    if cut.raised is None:
        return NULL, NULL
    raised = room.uploaded(cut.raised)
    voxels = math.prod(cut.tiling.shape)
    total = room.allocate(voxels * FLOAT)
    starts = room.uploaded(np.array([n for axis in cut.tiling.starts for n in axis], np.int32))
    counts = [len(axis) for axis in cut.tiling.starts]
    room.launch("weigh", voxels, raised, total, frame, starts, *counts)
    return raised, total


def parted(
    room: Workspace, sources: Sequence[Source], tables: Tables, places: list[Lengths]
) -> tuple[list[Lengths], list[Lengths]]:
    """The blocks to compute and those of air. One is always computed, as in ``windows``."""
    flags = np.zeros(len(places), np.int32)
    tissue = room.uploaded(flags)
    for source in sources:
        source.mark(room, tables, tissue, len(places))
    room.device.download(flags, tissue)
    room.device.synchronise()
    wanted = [place for place, seen in zip(places, flags, strict=True) if seen] or places[:1]
    kept = set(wanted)
    return wanted, [place for place in places if place not in kept]


class Source:
    """One input's volume on the device, (channels, k, j, i) as it was given."""

    def __init__(self, room: Workspace, volume: NDArray[Any], cut: Cut, dtype: str) -> None:
        """Bring it up, to be fed as ``dtype``."""
        self._channels = len(volume)
        self._dtype = volume.dtype.name
        self._cut = cut
        self._voxels = room.uploaded(volume)
        lowest = volume.min(axis=(1, 2, 3))
        around = (
            lowest if isinstance(cut.window.fill, str) else np.full(len(volume), cut.window.fill)
        )
        with np.errstate(over="ignore"):
            self._fill = room.uploaded(around.astype(dtype))
        outside = volume.shape[1:] != cut.tiling.shape
        lowest = np.minimum(lowest, around) if outside else lowest
        levels = _levels(lowest, around, cut.window, volume.dtype)
        self._air = tuple(room.uploaded(one) for one in levels)

    def shape(self, batch: int) -> tuple[int, ...]:
        """The lengths of the network's tensor for this input."""
        return self._cut.fed(batch, self._channels)

    def gather(
        self, room: Workspace, tables: Tables, batch: Batch, flip: Flip, tensor: Tensor
    ) -> None:
        """Fill an input tensor with the blocks of a batch, turned round along some axes."""
        room.launch(
            f"gather_{self._dtype}_{tensor.dtype}",
            math.prod(self.shape(batch.fed)),
            self._voxels,
            self._fill,
            tensor.block,
            tables.frame,
            tables.places,
            batch.first,
            batch.first + batch.count - 1,
            batch.fed,
            self._channels,
            self._cut.order,
            bits(flip),
        )

    def mark(self, room: Workspace, tables: Tables, tissue: Block, blocks: int) -> None:
        """Set ``tissue`` (int32) to 1 for every block in which this volume is not all air."""
        room.launch(
            f"mark_{self._dtype}",
            blocks * math.prod(self.shape(1)),
            self._voxels,
            *self._air,
            tissue,
            tables.frame,
            tables.places,
            blocks,
            self._channels,
        )


def bits(flip: Flip) -> int:
    """The kernels' ``flips``: a bit for each axis that is turned round."""
    return sum(1 << axis for axis in flip)


def _levels(
    lowest: NDArray[Any], around: NDArray[Any], window: Window, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each channel a number for what is filled in, and the highest number that is air.

    They are compared as numpy compares a volume of ``dtype`` with ``window.air``.
    """
    air = lowest if window.air is None else np.full(lowest.shape, window.air)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return around.astype(dtype).astype(np.float32), air.astype(dtype).astype(np.float32)
    limits = np.iinfo(np.int32)
    level = np.clip(np.floor(air), limits.min, limits.max - 1).astype(np.int32)
    return np.where(around <= air, level, level + 1).astype(np.int32), level
