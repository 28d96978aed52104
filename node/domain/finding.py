"""What an engine found, placed on the source series' own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.domain.codes import Code

Lengths = tuple[int, int, int]
"""Voxels along (k, j, i)."""


@dataclass(frozen=True, slots=True)
class Concept:
    """The coded meaning of a label and how it is shown.

    ``category`` and ``type`` are the Segmented Property Category and Type (PS3.3 C.8.20.4);
    ``colour`` is the Recommended Display CIELab Value as (L*, a*, b*).
    """

    label: str
    category: Code
    type: Code
    site: Code | None = None
    laterality: Code | None = None
    colour: tuple[float, float, float] = (65.0, 60.0, 40.0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its concept and UCUM unit."""

    name: Code
    value: float
    unit: Code


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """A closed polygon on one source slice.

    ``slice_index`` counts in the order of the source volume; ``points`` has shape (n, 2) in
    (column, row) image coordinates with the origin at the top left corner of the top left pixel
    (PS3.3 C.18.6.1.1); the last point repeats the first.
    """

    slice_index: int
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Some voxels of a grid, kept as the box around them: a lesion is small, and a grid is not.

    ``voxels`` is a bool array (k, j, i) of the box, which begins at ``start`` of a grid of
    ``shape``.
    """

    voxels: NDArray[np.bool_]
    start: Lengths
    shape: Lengths

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Region:
        """The voxels of a mask (k, j, i) of the whole grid."""
        k, j, i = (_ends(mask, axis) for axis in range(3))
        part = mask[k[0] : k[1], j[0] : j[1], i[0] : i[1]].copy()
        return cls(part, (k[0], j[0], i[0]), (mask.shape[0], mask.shape[1], mask.shape[2]))

    @property
    def stop(self) -> Lengths:
        """The first voxel after the box."""
        k, j, i = (a + n for a, n in zip(self.start, self.voxels.shape, strict=True))
        return (k, j, i)

    @property
    def slab(self) -> tuple[slice, slice, slice]:
        """The box as slices of the grid."""
        k, j, i = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (k, j, i)

    @property
    def size(self) -> int:
        """How many voxels it has."""
        return int(np.count_nonzero(self.voxels))

    @property
    def slices(self) -> tuple[int, ...]:
        """The slices on which it has voxels, in order."""
        held = np.flatnonzero(self.voxels.any(axis=(1, 2)))
        return tuple((held + self.start[0]).tolist())

    def on_slice(self, index: int) -> NDArray[np.bool_]:
        """Its voxels on a slice of the grid, (j, i)."""
        plane = np.zeros(self.shape[1:], bool)
        if self.start[0] <= index < self.stop[0]:
            plane[self.slab[1:]] = self.voxels[index - self.start[0]]
        return plane

    def whole(self) -> NDArray[np.bool_]:
        """A mask (k, j, i) of the whole grid, made anew."""
        mask = np.zeros(self.shape, bool)
        mask[self.slab] = self.voxels
        return mask


def _ends(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """The first of a mask's voxels along an axis, and the one after its last; equal if none."""
    others = tuple(other for other in range(3) if other != axis)
    line = np.flatnonzero(mask.any(axis=others))
    return (int(line[0]), int(line[-1]) + 1) if line.size else (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One lesion, organ or region.

    ``region`` lies on the source grid; ``probability`` is the engine's highest value inside it, 0
    to 1. The tracking UID is derived, so that the same job names it the same.
    """

    concept: Concept
    tracking_id: str
    tracking_uid: str
    region: Region
    probability: float | None = None
    measurements: tuple[Measurement, ...] = ()
    outline: Outline | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The region on the whole grid, bool (k, j, i); made anew each time it is asked for."""
        return self.region.whole()


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Who made a result, as IHE AIR wants it named in every object.

    ``device_uid`` is derived from the digest of the engine package: another model, another UID.
    """

    name: str
    version: str
    manufacturer: str
    digest: str
    device_uid: str
    family: Code = Code("123110", "DCM", "Artificial Intelligence")
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A report of ours that a later one replaces, as PS3.3 C.17.2 names it."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """The outcome of one engine on one study, ready to be encoded.

    ``analysed_at`` is seconds since the epoch and belongs to the job, not to the clock, so that
    encoding twice gives the same bytes. An empty ``findings`` with no ``refusal`` means
    "assessed, nothing found"; ``refusal`` means "could not assess, because ...".
    ``predecessors`` are the reports on an earlier content of the study that this one replaces.
    """

    job_id: str
    algorithm: Algorithm
    analysed_at: float
    findings: tuple[Finding, ...] = ()
    refusal: str = ""
    predecessors: tuple[Predecessor, ...] = ()
