"""The box in which a cascade's second engine looks: around what the first one found.

Both engines may have looked at other series, so the box is carried over by the patient's
coordinates. Voxels are only copied, there and back, and none loses its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from node.domain.finding import Finding
from node.domain.sampling import index_matrix
from node.domain.volume import Grid, Volume

_SLACK = 1e-4
"""Voxels: what rounding may add to a box without a further voxel being taken."""


@dataclass(frozen=True, slots=True)
class Box:
    """Voxels of a grid: the first along (k, j, i), and the one after the last."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (k, j, i)."""
        k, j, i = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return (k, j, i)

    @property
    def slab(self) -> tuple[slice, slice, slice]:
        """The same as slices."""
        k, j, i = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (k, j, i)


def around(findings: Sequence[Finding], own: Grid, grid: Grid, margin_mm: float) -> Box | None:
    """The box on a grid around findings whose masks lie on their ``own``, with a margin.

    None when there is no finding, or none of it lies on the grid.
    """
    if not findings:
        return None
    ends = np.array([(finding.region.start, finding.region.stop) for finding in findings])
    low, high = ends[:, 0].min(axis=0) - 0.5, ends[:, 1].max(axis=0) - 0.5
    corners = np.array([(*corner, 1.0) for corner in product(*zip(low, high, strict=True))])
    inside = (index_matrix(grid.affine, own.affine) @ corners.T)[:3] + 0.5
    margin = margin_mm / np.array(grid.spacing)
    start = np.maximum(np.floor(inside.min(axis=1) - margin + _SLACK), 0).astype(int)
    stop = np.minimum(np.ceil(inside.max(axis=1) + margin - _SLACK), grid.shape).astype(int)
    if (start >= stop).any():
        return None
    (k, j, i), (after_k, after_j, after_i) = start.tolist(), stop.tolist()
    return Box((k, j, i), (after_k, after_j, after_i))


def cropped(volume: Volume, box: Box) -> Volume:
    """The voxels in a box, at their place in the patient."""
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*box.start, 1])[:3]
    slab = box.slab
    return replace(
        volume, voxels=volume.voxels[(..., *slab)], affine=affine, sources=volume.sources[slab[0]]
    )


def put_back(prediction: Volume, box: Box, source: Volume, *, background: bool) -> Volume:
    """A prediction (c, k, j, i) of a box on the whole grid of its source.

    Outside of the box every probability is 0; with ``background`` that of channel 0 is 1.
    """
    voxels = np.zeros((len(prediction.voxels), *source.grid.shape), np.float32)
    if background:
        voxels[0] = 1
    voxels[(slice(None), *box.slab)] = prediction.voxels
    return replace(prediction, voxels=voxels, affine=source.affine, sources=source.sources)
