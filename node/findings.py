"""Labels become findings: regions with a volume, a longest diameter and an outline.

A network gives voxels; a report speaks of lesions. This is the only place where one turns into the
other, so every engine measures in the same way. Nothing here depends on the clock, on chance or on
the order of a dictionary: the same labels give the same findings in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from node.domain.codes import Code
from node.domain.finding import Concept, Finding, Measurement, Outline, Region
from node.domain.job import derived_uid
from node.domain.volume import Grid

VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
CUBIC_MILLIMETRE = Code("mm3", "UCUM", "cubic millimeter")
MILLIMETRE = Code("mm", "UCUM", "millimeter")

OUTLINE_POINTS = 200
"""A simplified outline has at most so many points, where half a pixel of freedom allows it."""
OUTLINE_LIMIT = 1000
"""No outline has more points than this, however ragged (an FL value holds 8191 pairs)."""
_FREEDOM = 0.45
"""Pixels that a simplified outline may stray while it stays within half a pixel of the mask."""

Lightness = Annotated[float, Field(ge=0, le=100)]
Opponent = Annotated[float, Field(ge=-128, le=127)]
Slab = tuple[slice, ...]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Label:
    """One value of the label map and what it means: a ``[[finding]]`` table of a manifest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    label: Annotated[int, Field(ge=1, le=255)]
    """Value in the label map, 1 to 255; 0 is what is not reported."""
    name: Annotated[str, Field(min_length=1, max_length=64)]
    """Shown in viewers (Segment Label, LO: at most 64 characters)."""
    category: Code
    """Segmented Property Category (CID 7150)."""
    type: Code
    """Segmented Property Type (CID 7151 and those below it)."""
    site: Code | None = None
    """Anatomic region."""
    laterality: Code | None = None
    """Laterality of the region (CID 244)."""
    colour: tuple[Lightness, Opponent, Opponent] = (65.0, 60.0, 40.0)
    """Recommended display colour, CIELab (L* 0 to 100, a* and b* -128 to 127)."""
    instances: Literal["components", "whole"] = "components"
    """Every 26-connected region is a finding ("components"), or all voxels are one ("whole")."""
    max_instances: Annotated[int, Field(ge=1)] = 10
    """At most so many regions become findings, the largest."""
    min_ml: Annotated[float, Field(ge=0)] = 0.0
    """Regions below this volume are no findings; millilitres."""

    @property
    def concept(self) -> Concept:
        """The coded meaning without the rules of counting."""
        return Concept(self.name, self.category, self.type, self.site, self.laterality, self.colour)


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """An engine's answer on the source grid.

    ``labels`` is (k, j, i) uint8; ``probability`` is (c, k, j, i) float32, 0 to 1; ``channels``
    says which channel is behind which label.
    """

    labels: NDArray[np.uint8]
    probability: NDArray[np.float32]
    grid: Grid
    channels: Mapping[int, int]

    def highest(self, label: int, slab: Slab, mask: Mask) -> float | None:
        """The highest probability behind a label inside a mask; None when no channel is."""
        if label not in self.channels:
            return None
        return float(self.probability[self.channels[label]][slab][mask].max())


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The findings, by label and then by falling volume; ``notes`` say what was left out."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def find(segmented: Segmented, labels: Sequence[Label], engine: str, job_id: str) -> Found:
    """Every finding in a label map.

    Tracking UIDs are derived from the job, so the same job names each finding the same.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    for label in labels:
        regions = _regions(segmented.labels == label.label, label, segmented.grid.voxel_volume)
        for number, region in enumerate(regions[: label.max_instances], 1):
            tracking_id = f"{engine} {label.name} {number}"
            uid = derived_uid(job_id, "finding", str(label.label), str(number))
            findings.append(_finding(segmented, label, region, (tracking_id, uid)))
        if len(regions) > label.max_instances:
            notes.append(
                f"{label.name}: {len(regions)} regions found, only the largest "
                f"{label.max_instances} are reported (max_instances)"
            )
    return Found(tuple(findings), tuple(notes))


def _regions(mask: Mask, label: Label, voxel_volume: float) -> list[Region]:
    """Regions that are large enough, by falling size; equal ones in the order of their voxels."""
    smallest = label.min_ml * 1000 / voxel_volume
    regions = [r for r in _pieces(mask, label.instances) if r.size >= smallest]
    # The sort is stable, and pieces come in the order of their first voxel.
    return sorted(regions, key=lambda region: -region.size)


def _pieces(mask: Mask, instances: str) -> Iterator[Region]:
    """The whole mask, or its 26-connected components in the order of their first voxel."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    for box in ndimage.find_objects(mask.view(np.uint8)):
        inner = mask[box]
        numbered: NDArray[np.integer] = inner.view(np.uint8)
        if instances == "components":
            numbered, _ = ndimage.label(inner, structure=np.ones((3, 3, 3), int))
        for number, slab in enumerate(ndimage.find_objects(numbered), 1):
            k, j, i = (b.start + s.start for s, b in zip(slab, box, strict=True))
            yield Region(numbered[slab] == number, (k, j, i), shape)


def _finding(
    segmented: Segmented, label: Label, region: Region, tracking: tuple[str, str]
) -> Finding:
    """One region with its measurements and the outline on its key slice."""
    grid = segmented.grid
    index = key_slice(region.voxels)
    ring = _ring(region.voxels[index]) + (region.start[2], region.start[1])
    return Finding(
        concept=label.concept,
        tracking_id=tracking[0],
        tracking_uid=tracking[1],
        region=region,
        probability=segmented.highest(label.label, region.slab, region.voxels),
        measurements=(
            Measurement(VOLUME, region.size * grid.voxel_volume, CUBIC_MILLIMETRE),
            Measurement(LONG_AXIS, _diameter(ring, grid), MILLIMETRE),
        ),
        outline=Outline(region.start[0] + index, _simplified(ring)),
    )


def key_slice(mask: Mask) -> int:
    """The slice of a mask (k, j, i) with the largest area; the middle one of equals."""
    areas = np.count_nonzero(mask, axis=(1, 2))
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[(len(largest) - 1) // 2])


def rings(mask: Mask) -> list[NDArray[np.float64]]:
    """Every closed boundary of a mask (j, i), as (column, row) points.

    The origin is the top left corner of the top left pixel; boundaries run halfway between pixel
    centres, so a region n pixels wide has a boundary n pixels wide.
    """
    # The margin closes the boundaries of regions that touch the edge of the image.
    padded = np.pad(mask, 1).astype(np.float64)
    lines = contour_generator(z=padded, line_type=LineType.Separate).lines(0.5)
    return [np.asarray(line, np.float64) - 0.5 for line in lines]


def _ring(mask: Mask) -> NDArray[np.float64]:
    """The boundary that encloses the largest area."""
    return max(rings(mask), key=enclosed_area)


def enclosed_area(ring: NDArray[np.float64]) -> float:
    """Area inside of a closed polygon (n, 2), in squares of its own unit."""
    x, y = ring.T
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2)


def _diameter(ring: NDArray[np.float64], grid: Grid) -> float:
    """The longest distance between two points of a ring on a slice, in millimetres."""
    corners = ring[ConvexHull(ring).vertices]
    # The affine's last columns are the steps of one row (j) and one column (i).
    return float(pdist(corners @ grid.affine[:3, [2, 1]].T).max())


def _simplified(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring with fewer points: as many as half a pixel of freedom allows, at most the limit."""
    freedom = 0.01
    while True:
        points = _thinned(ring, freedom)
        enough = OUTLINE_POINTS if freedom < _FREEDOM else OUTLINE_LIMIT
        if len(points) <= enough:
            return points
        freedom = min(freedom * 2, _FREEDOM) if freedom < _FREEDOM else freedom * 2


def _thinned(ring: NDArray[np.float64], freedom: float) -> NDArray[np.float64]:
    """Ramer, Douglas and Peucker on a closed ring: no dropped point is further off than freedom."""
    # A ring has no ends: it is cut at its first point and at the point furthest from it.
    opposite = int(np.argmax(np.linalg.norm(ring - ring[0], axis=1)))
    keep = np.zeros(len(ring), bool)
    keep[[0, opposite, -1]] = True
    pending = [(0, opposite), (opposite, len(ring) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        distances = _distances(ring[first : last + 1])
        worst = first + int(np.argmax(distances))
        if distances[worst - first] > freedom:
            keep[worst] = True
            pending += [(first, worst), (worst, last)]
    return ring[keep]


def _distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each point from the segment between the first and the last."""
    start, chord = points[0], points[-1] - points[0]
    along = np.clip((points - start) @ chord / (chord @ chord), 0.0, 1.0)
    return np.asarray(np.linalg.norm(points - start - along[:, None] * chord, axis=1))
