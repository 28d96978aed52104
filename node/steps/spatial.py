"""Spatial steps: which voxels the network sees, and how its output finds the way back.

A step only decides on a new grid; ``node.domain.sampling`` brings the voxels there, and the
prediction back, by the two affines alone. So nothing needs to be remembered between ``forward``
and ``backward``, and every step but ``resample`` and ``resize`` is undone bit for bit where it kept
the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError
from node.domain.sampling import Order, nearest_axes, resampled
from node.domain.volume import Affine, Grid, Volume
from node.domain.voxels import Voxels, finite, otsu

Lengths = tuple[
    Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]
]
Millimetres = tuple[
    Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]
]
Counts = tuple[
    Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
]
Sides = Literal["both", "end"]
Fill = float | Literal["minimum", "edge"]
Threshold = float | Literal["otsu"]

_DIRECTIONS = {
    "L": (1, 0, 0), "R": (-1, 0, 0),
    "P": (0, 1, 0), "A": (0, -1, 0),
    "S": (0, 0, 1), "I": (0, 0, -1),
}  # fmt: skip
"""Patient directions in DICOM patient coordinates (PS3.3 C.7.6.2.1.1)."""

_LARGEST = 2**31
"""Voxels: more than any study needs and less than what ends the process for want of memory."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _OnGrid:
    """What the spatial steps share: the way back."""

    exact: ClassVar[bool] = True

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction on the grid before: copied, or interpolated linearly where spacing
        changed, at the same patient coordinates. 0 where ``forward`` kept nothing.
        """
        return resampled(prediction, before, order=1, value=0.0)


@dataclass(frozen=True, config=_STRICT)
class Orient(_OnGrid):
    """Reorders and flips axes so that they run along the wanted patient directions.

    Nothing is interpolated: of oblique axes the nearest one is taken.
    """

    axes: Annotated[str, Field(pattern="^[LRPASI]{3}$")] = "LPS"
    """Where columns i, rows j and slices k run to: one each of L or R, P or A, S or I. ``LPS`` is
    the usual axial picture: columns to the left, rows to the back, slices upwards."""

    def __post_init__(self) -> None:
        """Refuse axes that name one direction twice."""
        if len({_line(letter) for letter in self.axes}) != 3:
            raise ValueError(f"axes must have one each of L/R, P/A and S/I, not {self.axes!r}")

    def forward(self, volume: Volume) -> Volume:
        """The same voxels in another order, float32."""
        volume = volume.with_voxels(finite(volume.voxels))
        return resampled(volume, self._turned(volume.grid))

    def _turned(self, grid: Grid) -> Grid:
        wanted = np.transpose([_DIRECTIONS[letter] for letter in reversed(self.axes)])
        cosines = (grid.affine[:3, :3] / grid.spacing).T @ wanted
        axes = nearest_axes(cosines)
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for new, old in enumerate(axes):
            step[old, new] = 1 if cosines[old, new] > 0 else -1
            step[old, 3] = 0 if cosines[old, new] > 0 else grid.shape[old] - 1
        shape = (grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]])
        return Grid(shape, grid.affine @ step)


@dataclass(frozen=True, config=_STRICT)
class Transpose(_OnGrid):
    """Puts the axes in another order without turning any round.

    For networks that see the first axis where others see the last one, whatever the patient's
    orientation is.
    """

    order: tuple[Literal[0, 1, 2], Literal[0, 1, 2], Literal[0, 1, 2]]
    """Which axes become slices, rows and columns: 0 the slices, 1 the rows, 2 the columns."""

    def __post_init__(self) -> None:
        """Refuse an order that leaves an axis out."""
        if sorted(self.order) != [0, 1, 2]:
            raise ValueError(f"order must name 0, 1 and 2 once each, not {list(self.order)}")

    def forward(self, volume: Volume) -> Volume:
        """The same voxels along other axes, float32."""
        volume = volume.with_voxels(finite(volume.voxels))
        k, j, i = (volume.grid.shape[axis] for axis in self.order)
        columns = [*self.order, 3]
        return resampled(volume, Grid((k, j, i), volume.affine[:, columns]))


@dataclass(frozen=True, config=_STRICT)
class Resample:
    """Another spacing, and if wished another shape, about the centre of the image."""

    exact: ClassVar[bool] = False

    spacing: Millimetres
    """Spacing of slices, rows and columns [k, j, i], mm; 0 keeps the axis as it is."""
    shape: Lengths = (0, 0, 0)
    """Number of slices, rows and columns [k, j, i], cut or filled evenly on both sides; 0: as many
    as cover the image."""
    order: Order = 1
    """Interpolation: 0 nearest, 1 linear, 3 cubic B-spline."""
    antialias: bool = False
    """Whether axes that become coarser are averaged instead of sampled."""
    value: Fill = 0.0
    """What lies outside of the image, in the volume's units; ``minimum``: the lowest there;
    ``edge``: the outermost voxels go on."""
    anchor: Literal["centre", "corner"] = "centre"
    """What stays in its place: the centre of the image, with as many voxels as cover it, or the
    centre of the first voxel, with as many as come nearest to the last (as MONAI does)."""
    back: Literal[0, 1] = 1
    """Interpolation on the way back: 0 nearest, for a network whose labels were measured so, or
    1 linear."""

    def forward(self, volume: Volume) -> Volume:
        """The volume at the new spacing; voxels keep their patient coordinates exactly."""
        volume = volume.with_voxels(finite(volume.voxels))
        value = _fill(volume.voxels, self.value)
        grid = self._spaced(volume.grid)
        return resampled(volume, grid, self.order, value, smooth=self.antialias)

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction at the same patient coordinates; 0 where ``forward`` kept nothing."""
        return resampled(prediction, before, self.back, value=0.0)

    def _spaced(self, grid: Grid) -> Grid:
        step, shape = np.eye(4), []
        for axis, (have, want) in enumerate(zip(grid.spacing, self.spacing, strict=True)):
            factor = want / have if want else 1.0
            nearest = self.anchor == "corner"
            count = _reaching if nearest else _covering
            length = self.shape[axis] or count(grid.shape[axis], factor)
            step[axis, axis] = factor
            if not nearest:
                step[axis, 3] = (grid.shape[axis] - 1) / 2 - factor * (length - 1) / 2
            shape.append(length)
        return _limited((shape[0], shape[1], shape[2]), grid.affine @ step)


@dataclass(frozen=True, config=_STRICT)
class Resize:
    """Another number of voxels over the same part of the patient."""

    exact: ClassVar[bool] = False

    shape: Lengths
    """Number of slices, rows and columns [k, j, i]; 0 keeps the axis as it is."""
    order: Order | Literal["area"] = 1
    """Interpolation: 0 nearest, 1 linear, 3 cubic B-spline; ``area``: the mean of all old voxels
    that a new one touches."""
    back: Literal[0, 1, "area"] = 1
    """Interpolation on the way back: 0 nearest, 1 linear, or ``area``."""

    def forward(self, volume: Volume) -> Volume:
        """The volume with so many voxels; its outer borders stay where they are."""
        volume = volume.with_voxels(finite(volume.voxels))
        step, shape = np.eye(4), []
        for axis, (have, want) in enumerate(zip(volume.grid.shape, self.shape, strict=True)):
            length = want or have
            step[axis, axis] = have / length
            step[axis, 3] = (have / length - 1) / 2
            shape.append(length)
        return _resized(
            volume, _limited((shape[0], shape[1], shape[2]), volume.affine @ step), self.order
        )

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction with the number of voxels before, at the same patient coordinates."""
        return _resized(prediction, before, self.back)


@dataclass(frozen=True, config=_STRICT)
class CropOrPad(_OnGrid):
    """A fixed number of voxels, cut or filled evenly about a centre."""

    shape: Lengths
    """Number of slices, rows and columns [k, j, i]; 0 keeps the axis as it is."""
    centre: Literal["image", "foreground"] = "image"
    """The middle of the image, or of the box around the foreground."""
    threshold: Threshold = "otsu"
    """Voxels above it are foreground, in the volume's units; ``otsu`` finds it per volume."""
    value: Fill = 0.0
    """What is filled in, in the volume's units, or ``minimum``: the lowest there, or ``edge``: the
    outermost voxels go on."""

    def forward(self, volume: Volume) -> Volume:
        """The volume cut and filled; a voxel kept is copied exactly."""
        volume = volume.with_voxels(finite(volume.voxels))
        box = [(0, length) for length in volume.grid.shape]
        if self.centre == "foreground":
            box = _bounding_box(volume.voxels, self.threshold)
        lengths = [want or n for want, n in zip(self.shape, volume.grid.shape, strict=True)]
        starts = [
            (low + high - length) // 2 if want else 0
            for (low, high), length, want in zip(box, lengths, self.shape, strict=True)
        ]
        return _cut(volume, starts, lengths, self.value)


@dataclass(frozen=True, config=_STRICT)
class PadToMultiple(_OnGrid):
    """Fills evenly on both sides until every length is a multiple, for networks that halve it."""

    multiple: Counts
    """Slices, rows and columns [k, j, i] become a multiple of these; 1 keeps the axis as it is."""
    value: Fill = 0.0
    """What is filled in, in the volume's units, or ``minimum``: the lowest there, or ``edge``: the
    outermost voxels go on."""
    sides: Sides = "both"
    """Where: evenly on both sides, or all at the end."""

    def forward(self, volume: Volume) -> Volume:
        """The volume with its voxels exactly copied and filled voxels around them."""
        volume = volume.with_voxels(finite(volume.voxels))
        lengths = [
            -(-n // step) * step for n, step in zip(volume.grid.shape, self.multiple, strict=True)
        ]
        return _cut(volume, _before(volume.grid.shape, lengths, self.sides), lengths, self.value)


@dataclass(frozen=True, config=_STRICT)
class Extent(_OnGrid):
    """Cut where longer than one number of voxels, filled up where shorter than another.

    Of an odd number of voxels that are filled in, the larger part lies at the end.
    """

    at_least: Lengths = (0, 0, 0)
    """Slices, rows and columns [k, j, i] that there must be; 0: any number will do."""
    at_most: Lengths = (0, 0, 0)
    """Slices, rows and columns [k, j, i] that there may be; 0: any number."""
    value: Fill = 0.0
    """What is filled in, in the volume's units, or ``minimum``: the lowest there, or ``edge``: the
    outermost voxels go on."""
    sides: Sides = "both"
    """Where it is filled in: evenly on both sides, or all at the end."""

    def forward(self, volume: Volume) -> Volume:
        """The volume with its middle kept; a voxel kept is copied exactly."""
        volume = volume.with_voxels(finite(volume.voxels))
        have = volume.grid.shape
        cut = [min(n, most) if most else n for n, most in zip(have, self.at_most, strict=True)]
        # The middle voxel is n // 2 before and after, however odd the lengths are.
        starts = [n // 2 - length // 2 for n, length in zip(have, cut, strict=True)]
        volume = _cut(volume, starts, cut, 0.0)
        lengths = [max(n, least) for n, least in zip(cut, self.at_least, strict=True)]
        return _cut(volume, _before(cut, lengths, self.sides), lengths, self.value)


@dataclass(frozen=True, config=_STRICT)
class CropForeground(_OnGrid):
    """Cuts to the box around the foreground, so that the network does not compute air.

    A volume without foreground stays whole.
    """

    threshold: Threshold = "otsu"
    """Voxels above it are foreground, in the volume's units; ``otsu`` finds it per volume."""
    margin_mm: Annotated[float, Field(ge=0)] = 0.0
    """What stays around the box on every side, mm."""
    margin: Lengths = (0, 0, 0)
    """What stays around it besides: slices, rows and columns [k, j, i]."""
    multiple: Counts = (1, 1, 1)
    """The box grows until its slices, rows and columns are a multiple of these."""
    beyond: bool = False
    """Whether a margin may reach beyond the image; a multiple may in any case."""
    value: Fill = 0.0
    """What lies beyond the image, in the volume's units, or ``minimum``: the lowest there, or
    ``edge``: the outermost voxels go on."""

    def forward(self, volume: Volume) -> Volume:
        """The part of the volume in the box, exactly copied, and what was filled in around it."""
        volume = volume.with_voxels(finite(volume.voxels))
        starts, lengths = [], []
        for axis, (low, high) in enumerate(_bounding_box(volume.voxels, self.threshold)):
            margin = ceil(self.margin_mm / volume.spacing[axis]) + self.margin[axis]
            low, high = low - margin, high + margin
            if not self.beyond:
                low, high = max(0, low), min(volume.grid.shape[axis], high)
            length = -(-(high - low) // self.multiple[axis]) * self.multiple[axis]
            starts.append(low - (length - (high - low)) // 2)
            lengths.append(length)
        return _cut(volume, starts, lengths, self.value)


def _resized(volume: Volume, grid: Grid, order: Order | Literal["area"]) -> Volume:
    if order != "area":
        return resampled(volume, grid, order, None)
    # The place and the sources are those of any interpolation; only the voxels are others.
    placed = resampled(volume, grid, 0, None)
    voxels = volume.voxels.astype(np.float32, copy=False)
    for axis, length in zip((-3, -2, -1), grid.shape, strict=True):
        voxels = _averaged(voxels, axis, length)
    return placed.with_voxels(voxels)


def _averaged(voxels: Voxels, axis: int, length: int) -> Voxels:
    """Along one axis the mean of every old voxel that a new one touches."""
    have = voxels.shape[axis]
    if have == length:
        return voxels
    spans = [(n * have // length, -(-(n + 1) * have // length)) for n in range(length)]
    lines = np.moveaxis(voxels, axis, 0)
    return np.moveaxis(np.stack([lines[a:b].mean(axis=0) for a, b in spans]), 0, axis)


def _line(letter: str) -> int:
    return next(axis for axis, sign in enumerate(_DIRECTIONS[letter]) if sign)


def _covering(length: int, factor: float) -> int:
    """New voxels that cover the old ones; a thousandth of a voxel does not ask for another."""
    return max(1, ceil(length / factor - 1e-3))


def _reaching(length: int, factor: float) -> int:
    """New voxels from the first old one to the one nearest to the last."""
    return round((length - 1) / factor + 1)


def _before(have: Sequence[int], lengths: Sequence[int], sides: Sides) -> list[int]:
    """Where a longer volume begins, so that the one there is lies in its middle or in front."""
    if sides == "end":
        return [0] * len(lengths)
    return [-((length - n) // 2) for n, length in zip(have, lengths, strict=True)]


def _limited(shape: tuple[int, int, int], affine: Affine) -> Grid:
    if shape[0] * shape[1] * shape[2] > _LARGEST:
        raise InferenceError(
            f"the wanted spacing would make {shape[0]} x {shape[1]} x {shape[2]} voxels; "
            f"check the units of the step's options (mm)"
        )
    return Grid(shape, affine)


def _fill(voxels: NDArray[np.float32], value: Fill) -> float | None:
    """The grey value that is filled in; None where the outermost voxels go on."""
    if value == "edge":
        return None
    return float(voxels.min()) if value == "minimum" else float(value)


def _bounding_box(voxels: Voxels, threshold: Threshold) -> list[tuple[int, int]]:
    """First foreground voxel and the one after the last, along (k, j, i), over all channels."""
    above = voxels > (otsu(voxels) if threshold == "otsu" else threshold)
    box = []
    for axis in range(above.ndim - 3, above.ndim):
        others = tuple(a for a in range(above.ndim) if a != axis)
        line = np.flatnonzero(above.any(axis=others))
        box.append((int(line[0]), int(line[-1]) + 1) if line.size else (0, above.shape[axis]))
    return box


def _cut(volume: Volume, starts: list[int], lengths: list[int], value: Fill) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*starts, 1])[:3]
    grid = _limited((lengths[0], lengths[1], lengths[2]), affine)
    return resampled(volume, grid, value=_fill(volume.voxels, value))
