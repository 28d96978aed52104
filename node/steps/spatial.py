"""Spatial steps: which voxels the network sees, and how its output finds the way back.

A step only decides on a new grid; ``node.domain.sampling`` brings the voxels there, and the
prediction back, by the two affines alone. So nothing needs to be remembered between ``forward``
and ``backward``, and every step but ``resample`` is undone bit for bit where it kept the voxels.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

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
Fill = float | Literal["minimum"]
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
class Resample(_OnGrid):
    """Another spacing, and if wished another shape, about the centre of the image."""

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
    """What lies outside of the image, in the volume's units, or ``minimum``: the lowest there."""

    def forward(self, volume: Volume) -> Volume:
        """The volume at the new spacing; voxels keep their patient coordinates exactly."""
        volume = volume.with_voxels(finite(volume.voxels))
        value = _fill(volume.voxels, self.value)
        grid = self._spaced(volume.grid)
        return resampled(volume, grid, self.order, value, smooth=self.antialias)

    def _spaced(self, grid: Grid) -> Grid:
        step, shape = np.eye(4), []
        for axis, (have, want) in enumerate(zip(grid.spacing, self.spacing, strict=True)):
            factor = want / have if want else 1.0
            length = self.shape[axis] or _covering(grid.shape[axis], factor)
            step[axis, axis] = factor
            step[axis, 3] = (grid.shape[axis] - 1) / 2 - factor * (length - 1) / 2
            shape.append(length)
        return _limited((shape[0], shape[1], shape[2]), grid.affine @ step)


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
    """What is filled in, in the volume's units, or ``minimum``: the lowest there."""

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

    multiple: tuple[
        Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
    ]
    """Slices, rows and columns [k, j, i] become a multiple of these; 1 keeps the axis as it is."""
    value: Fill = 0.0
    """What is filled in, in the volume's units, or ``minimum``: the lowest there."""

    def forward(self, volume: Volume) -> Volume:
        """The volume with its voxels exactly copied and filled voxels around them."""
        volume = volume.with_voxels(finite(volume.voxels))
        lengths = [
            -(-n // step) * step for n, step in zip(volume.grid.shape, self.multiple, strict=True)
        ]
        starts = [
            -((length - n) // 2) for n, length in zip(volume.grid.shape, lengths, strict=True)
        ]
        return _cut(volume, starts, lengths, self.value)


@dataclass(frozen=True, config=_STRICT)
class CropForeground(_OnGrid):
    """Cuts to the box around the foreground, so that the network does not compute air.

    A volume without foreground stays whole.
    """

    threshold: Threshold = "otsu"
    """Voxels above it are foreground, in the volume's units; ``otsu`` finds it per volume."""
    margin_mm: Annotated[float, Field(ge=0)] = 0.0
    """What stays around the box on every side, mm."""

    def forward(self, volume: Volume) -> Volume:
        """The part of the volume in the box, exactly copied."""
        volume = volume.with_voxels(finite(volume.voxels))
        starts, lengths = [], []
        box = _bounding_box(volume.voxels, self.threshold)
        for (low, high), n, step in zip(box, volume.grid.shape, volume.spacing, strict=True):
            margin = ceil(self.margin_mm / step)
            starts.append(max(0, low - margin))
            lengths.append(min(n, high + margin) - starts[-1])
        return _cut(volume, starts, lengths, 0.0)


def _line(letter: str) -> int:
    return next(axis for axis, sign in enumerate(_DIRECTIONS[letter]) if sign)


def _covering(length: int, factor: float) -> int:
    """New voxels that cover the old ones; a thousandth of a voxel does not ask for another."""
    return max(1, ceil(length / factor - 1e-3))


def _limited(shape: tuple[int, int, int], affine: Affine) -> Grid:
    if shape[0] * shape[1] * shape[2] > _LARGEST:
        raise InferenceError(
            f"the wanted spacing would make {shape[0]} x {shape[1]} x {shape[2]} voxels; "
            f"check the units of the step's options (mm)"
        )
    return Grid(shape, affine)


def _fill(voxels: NDArray[np.float32], value: Fill) -> float:
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
