"""Voxels with their place in the patient.

Axis order is always (slice k, row j, column i); coordinates are DICOM patient coordinates (LPS)
in millimetres; ``affine @ (k, j, i, 1)`` is the centre of a voxel (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.study import Instance

Affine = NDArray[np.float64]
"""4 x 4: voxel index (k, j, i, 1) -> patient (x, y, z, 1) in millimetres."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A lattice of voxels in the patient: shape (k, j, i) and affine."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along (k, j, i) in millimetres."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in cubic millimetres (gaps between slices count as tissue)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Voxels on a grid. ``voxels`` has shape (k, j, i) or, with channels, (c, k, j, i).

    ``sources`` are the instances behind the slices, in slice order, and are empty once a step has
    changed the slice axis.
    """

    voxels: NDArray[Any]
    affine: Affine
    frame_of_reference_uid: str = ""
    sources: tuple[Instance, ...] = ()

    @property
    def grid(self) -> Grid:
        """The lattice without the voxels."""
        k, j, i = self.voxels.shape[-3:]
        return Grid((k, j, i), self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing along (k, j, i) in millimetres."""
        return self.grid.spacing

    def with_voxels(self, voxels: NDArray[Any]) -> Volume:
        """The same place with other voxels (same trailing shape)."""
        return replace(self, voxels=voxels)
