"""Where the blocks of a volume begin, and what each of their voxels weighs.

Pure arithmetic on lengths, so that the processor's window and a device's own take the same tiling
and differ in nothing but who computes it. How other tools place and weigh their blocks can be said
here too, for a network is only as good as it was measured when it sees what it saw then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Lengths = tuple[int, int, int]
Placement = Literal["even", "rounded", "stride"]


@dataclass(frozen=True, slots=True)
class Weighing:
    """What the voxels of a block weigh, before all blocks are brought to the sum of 1.

    ``sigma`` is the standard deviation as a share of the block's length, None where all voxels
    weigh the same. ``on_voxel``: the peak lies on voxel n // 2, else in the very middle, which is
    between two voxels where n is even. ``floor`` is the least weight of a voxel where the peak's
    is 1.
    """

    sigma: float | None = 0.125
    on_voxel: bool = False
    floor: float = 0.0

    def along(self, length: int) -> NDArray[np.float64]:
        """The weights along an axis without the floor; the peak's is 1."""
        if self.sigma is None:
            return np.ones(length)
        centre = length // 2 if self.on_voxel else (length - 1) / 2
        away = (np.arange(length) - centre) / (self.sigma * length)
        return np.asarray(np.exp(-0.5 * away**2))

    def raised(self, block: Lengths) -> NDArray[np.float32] | None:
        """The weights of a block (k, j, i) with the floor; None where it changes nothing."""
        k, j, i = (self.along(length) for length in block)
        if k.min() * j.min() * i.min() >= self.floor:
            return None
        return np.maximum(k[:, None, None] * j[:, None] * i, self.floor).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """Where blocks begin along (k, j, i), and what each weighs.

    ``shape`` is the volume's, filled up by ``before`` voxels in front so that whole blocks fit.
    ``weights[axis][n]`` are the importances of block n along an axis, normalised: over all
    blocks that see a voxel they add up to 1, so the sum of weighted outputs is their mean. Where
    the tiling is not ``separable`` a voxel's weight is no product of three, and only ``weight``
    says it.
    """

    shape: Lengths
    before: Lengths
    block: Lengths
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    weights: tuple[tuple[NDArray[np.float32], ...], ...]
    raised: NDArray[np.float32] | None = field(default=None, repr=False)
    """Weights of a block (k, j, i) with a floor, before they are normalised."""
    total: NDArray[np.float32] | None = field(default=None, repr=False)
    """The sum of ``raised`` over all blocks, (k, j, i) of ``shape``."""

    @property
    def separable(self) -> bool:
        """Whether each weight is the product of ``weights`` along the three axes."""
        return self.raised is None

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
        if self.raised is not None and self.total is not None:
            return self.raised / self.total[self.region(place)]
        k, j, i = (self.weights[axis][place[axis]] for axis in range(3))
        return k[:, None, None] * j[:, None] * i


def tiled(
    shape: Lengths, block: Lengths, overlap: float, placement: Placement, weighing: Weighing
) -> Tiling:
    """The tiling of a volume of shape (k, j, i) with blocks that may be longer than it is.

    ``overlap`` is the share of a block that its neighbour sees too.
    """
    room = tuple(max(n, b) for n, b in zip(shape, block, strict=True))
    starts = [_STARTS[placement](n, b, overlap) for n, b in zip(room, block, strict=True)]
    lines = [weighing.along(length) for length in block]
    weights = [_shares(s, n, line) for s, n, line in zip(starts, room, lines, strict=True)]
    tiling = Tiling(
        shape=(room[0], room[1], room[2]),
        before=(
            (room[0] - shape[0]) // 2,
            (room[1] - shape[1]) // 2,
            (room[2] - shape[2]) // 2,
        ),
        block=block,
        starts=(starts[0], starts[1], starts[2]),
        weights=tuple(weights),
    )
    raised = weighing.raised(block)
    return tiling if raised is None else _with_floor(tiling, raised)


def _even(length: int, block: int, overlap: float) -> tuple[int, ...]:
    """Evenly spread, at most ``block * (1 - overlap)`` apart, from the first voxel to the last."""
    step = max(1, int(block * (1 - overlap) + 1e-9))
    gaps = -(-(length - block) // step)
    return tuple((length - block) * n // max(gaps, 1) for n in range(gaps + 1))


def _rounded(length: int, block: int, overlap: float) -> tuple[int, ...]:
    """As ``_even``, but a step may be a fraction of a voxel and starts are rounded."""
    gaps = int(np.ceil((length - block) / (block * (1 - overlap))))
    step = (length - block) / max(gaps, 1)
    # Half a voxel goes to the even neighbour.
    return tuple(dict.fromkeys(round(step * n) for n in range(gaps + 1)))


def _stride(length: int, block: int, overlap: float) -> tuple[int, ...]:
    """A fixed step, and the last block moved back so that it ends with the volume."""
    step = max(1, int(block * (1 - overlap)))
    gaps = -(-(length - block) // step)
    return tuple(min(n * step, length - block) for n in range(gaps + 1))


_STARTS = {"even": _even, "rounded": _rounded, "stride": _stride}


def _shares(
    starts: tuple[int, ...], length: int, importance: NDArray[np.float64]
) -> tuple[NDArray[np.float32], ...]:
    """The importance of every block along an axis as shares of what all of them give a voxel."""
    block = len(importance)
    total = np.zeros(length)
    for start in starts:
        total[start : start + block] += importance
    return tuple((importance / total[s : s + block]).astype(np.float32) for s in starts)


def _with_floor(tiling: Tiling, raised: NDArray[np.float32]) -> Tiling:
    """The tiling with blocks that weigh so much."""
    total = np.zeros(tiling.shape, np.float32)
    for place in tiling.places():
        total[tiling.region(place)] += raised
    return Tiling(
        tiling.shape, tiling.before, tiling.block, tiling.starts, tiling.weights, raised, total
    )
