"""Decides whether the slices of a series form one regular volume, from header facts alone.

A network takes it for granted that its input is a lattice: equal steps, no holes, no shear. What
is no lattice is refused here, with the rule and the figures in words; nothing is resampled into
shape behind anybody's back. Pure: no file is opened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from node.dicom.headers import numbers, optional, whole
from node.domain.errors import GeometryError
from node.domain.study import Instance
from node.domain.volume import Affine, Grid

FARTHEST = 10_000.0
"""Millimetres from the origin of the frame of reference; no table is longer."""
FINEST, COARSEST = 0.001, 100.0
"""Millimetres of Pixel Spacing with which a body can be imaged."""
SAME_PLACE = 0.01
"""Millimetres, and part of the slice spacing, under which two slices stand at one position."""
MOST_VOXELS = 2**31
OBLIQUE_BEYOND = 30.0
"""Degrees between a slice's normal and the nearest patient axis, from which it is oblique."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from a perfect lattice a series may be and still count as one.

    ``tilt_degrees``: between the slices' normal and the direction in which they advance.
    ``jitter``: distance of a slice from its place along the normal, in slice spacings.
    ``drift``: distance of a slice from its place in the plane, in pixels.
    ``cosines``: error of a direction cosine, and difference between two slices' cosines.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    tilt_degrees: float = 0.5
    jitter: float = 0.1
    drift: float = 0.25
    cosines: float = 1e-3


ORDINARY = Tolerance()


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """One regular volume: its instances in slice order, and where its voxels lie.

    Slice order follows the normal, row direction x column direction (PS3.3 C.7.6.2.1.1).
    ``notes`` are the oddities that were accepted, in words.
    """

    instances: tuple[Instance, ...]
    grid: Grid
    frame_of_reference_uid: str
    notes: tuple[str, ...] = ()

    @property
    def orientation(self) -> str:
        """axial, coronal or sagittal; oblique when 30 degrees or more off each of them."""
        column, row = self.grid.affine[:3, 1], self.grid.affine[:3, 2]
        return _plane_name(_unit(np.cross(row, column)))


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """One slice: sizes in pixels, spacing in millimetres, unit vectors and position (LPS)."""

    instance: Instance
    size: tuple[int, int]
    spacing: tuple[float, float]
    row: Vector
    column: Vector
    position: Vector

    @property
    def normal(self) -> Vector:
        return _unit(np.cross(self.row, self.column))


def arrange(instances: Sequence[Instance], tolerance: Tolerance = ORDINARY) -> Geometry:
    """The volume that the instances form; their order does not matter.

    Raises GeometryError when they form none, saying which rules failed, and HeaderError when a
    number that the geometry needs is missing, not finite or out of range.
    """
    _refuse_unplaced(instances)
    by_uid = sorted(instances, key=lambda instance: instance.sop_instance_uid)
    planes = [_plane(instance, tolerance) for instance in by_uid]
    _refuse_mixtures(planes, tolerance)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(plane.position @ normal))
    step = _step(planes, normal)
    _refuse_irregular(planes, step, tolerance)
    rows, columns = planes[0].size
    if rows * columns * len(planes) > MOST_VOXELS:
        raise GeometryError(
            f"{len(planes)} slices of {rows} x {columns} are more voxels than fit "
            f"({MOST_VOXELS}): split the series"
        )
    return Geometry(
        instances=tuple(plane.instance for plane in planes),
        grid=Grid((len(planes), rows, columns), _affine(planes[0], step)),
        frame_of_reference_uid=_frame_of_reference(planes[0]),
        notes=tuple(_notes(planes, step)),
    )


def _step(planes: Sequence[_Plane], normal: Vector) -> Vector:
    """From one slice centre to the next: the mean advance, or what the header says of one."""
    if len(planes) > 1:
        advance: Vector = (planes[-1].position - planes[0].position) / (len(planes) - 1)
        return advance
    only = planes[0].instance
    between = optional(only, "SpacingBetweenSlices", -FARTHEST, FARTHEST)
    thickness = optional(only, "SliceThickness", 0, FARTHEST)
    # Some scanners write a negative spacing for the direction of the stack.
    said = (abs(between or 0.0), thickness or 0.0)
    return normal * next((length for length in said if length >= FINEST), 1.0)


def _affine(first: _Plane, step: Vector) -> Affine:
    affine = np.eye(4)
    affine[:3, 0] = step
    # Pixel Spacing is (between rows, between columns): PS3.3 10.7.1.3.
    affine[:3, 1] = first.column * first.spacing[0]
    affine[:3, 2] = first.row * first.spacing[1]
    affine[:3, 3] = first.position
    return affine


def _unit(vector: Vector) -> Vector:
    return vector / np.linalg.norm(vector)


def _plane_name(normal: Vector) -> str:
    along = np.abs(normal)
    nearest = int(np.argmax(along))
    if along[nearest] <= np.cos(np.radians(OBLIQUE_BEYOND)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[nearest]


def _degrees(one: Vector, other: Vector) -> float:
    """Angle between two directions; atan2 keeps its digits where arccos loses them."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other)), one @ other)))


def _frame_of_reference(plane: _Plane) -> str:
    value = plane.instance.facts.get("FrameOfReferenceUID", "")
    return value if isinstance(value, str) else ""


# --- one slice at a time ---------------------------------------------------------------------


def _refuse_unplaced(instances: Sequence[Instance]) -> None:
    total = len(instances)
    if not total:
        raise GeometryError("no instances: nothing to arrange")
    for instance in instances:
        frames = optional(instance, "NumberOfFrames", 1, MOST_VOXELS)
        if frames is not None and frames > 1:
            raise GeometryError(
                f"a multi-frame object ({frames:g} frames) is not supported as a volume yet: "
                "send the series as single-frame images"
            )
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        missing = sum(one.facts.get(keyword, "") in ("", ()) for one in instances)
        if missing:
            raise GeometryError(
                f"{keyword} is missing in {missing} of {total} instances: "
                "not a series of cross-sectional images in the patient"
            )


def _plane(instance: Instance, tolerance: Tolerance) -> _Plane:
    size = whole(instance, "Rows", 1, 65535), whole(instance, "Columns", 1, 65535)
    between = numbers(instance, "PixelSpacing", 2, FINEST, COARSEST)
    cosines = numbers(instance, "ImageOrientationPatient", 6, -1.01, 1.01)
    position = numbers(instance, "ImagePositionPatient", 3, -FARTHEST, FARTHEST)
    # The lattice does not need these, but steps may ask for them and results repeat them.
    optional(instance, "SliceThickness", 0, FARTHEST)
    optional(instance, "SpacingBetweenSlices", -FARTHEST, FARTHEST)
    optional(instance, "GantryDetectorTilt", -90, 90)
    row, column = _directions(cosines, tolerance)
    return _Plane(instance, size, (between[0], between[1]), row, column, np.array(position))


def _directions(cosines: Sequence[float], tolerance: Tolerance) -> tuple[Vector, Vector]:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    for name, direction in (("row", row), ("column", column)):
        length = float(np.linalg.norm(direction))
        if abs(length - 1) > tolerance.cosines:
            raise GeometryError(
                f"ImageOrientationPatient: the {name} direction has length {length:.4g}; wanted 1"
            )
    row, column = _unit(row), _unit(column)
    if abs(float(row @ column)) > tolerance.cosines:
        raise GeometryError(
            f"ImageOrientationPatient: {_degrees(row, column):.2f} degrees between the row and "
            "the column direction; wanted 90"
        )
    return row, column


# --- the slices among each other -------------------------------------------------------------


def _refuse_mixtures(planes: Sequence[_Plane], tolerance: Tolerance) -> None:
    def parallel(one: _Plane, other: _Plane) -> bool:
        turned = max(np.abs(one.row - other.row).max(), np.abs(one.column - other.column).max())
        return float(turned) <= tolerance.cosines

    def equally_spaced(one: _Plane, other: _Plane) -> bool:
        pairs = zip(one.spacing, other.spacing, strict=True)
        # Some scanners write the last digits differently from slice to slice.
        return all(math.isclose(mine, its, rel_tol=1e-3) for mine, its in pairs)

    _refuse_mixture("orientation", planes, parallel, lambda plane: _plane_name(plane.normal))
    _refuse_mixture(
        "Rows x Columns",
        planes,
        lambda one, other: one.size == other.size,
        lambda plane: f"{plane.size[0]} x {plane.size[1]}",
    )
    _refuse_mixture(
        "PixelSpacing",
        planes,
        equally_spaced,
        lambda plane: f"{plane.spacing[0]:g}\\{plane.spacing[1]:g}",
    )
    _refuse_mixture(
        "FrameOfReferenceUID",
        planes,
        lambda one, other: _frame_of_reference(one) == _frame_of_reference(other),
        lambda plane: ascii(_frame_of_reference(plane)[:64]),
    )


def _refuse_mixture(
    what: str,
    planes: Sequence[_Plane],
    alike: Callable[[_Plane, _Plane], bool],
    shown: Callable[[_Plane], str],
) -> None:
    kinds: list[_Plane] = []
    counts: Counter[int] = Counter()
    for plane in planes:
        kind = next((n for n, known in enumerate(kinds) if alike(known, plane)), len(kinds))
        if kind == len(kinds):
            kinds.append(plane)
        counts[kind] += 1
        if len(kinds) > 8:
            raise GeometryError(f"mixed {what}: more than 8 kinds among {len(planes)} instances")
    if len(kinds) > 1:
        told = ", ".join(f"{shown(kinds[kind])} in {n}" for kind, n in counts.most_common())
        raise GeometryError(
            f"mixed {what}: {told} of {len(planes)} instances "
            "(a localizer, or several acquisitions in one series)"
        )


def _refuse_irregular(planes: Sequence[_Plane], step: Vector, tolerance: Tolerance) -> None:
    if len(planes) > 1:
        along = np.array([plane.position @ planes[0].normal for plane in planes])
        _refuse_repeats(along)
        faults = [*_spacing_faults(along, tolerance), *_tilt_faults(planes, step, tolerance)]
        faults += [] if faults else _drift_faults(planes, step, tolerance)
        if faults:
            raise GeometryError("; ".join(faults))
    _refuse_contradicted_tilt(planes, tolerance)


def _refuse_repeats(along: Vector) -> None:
    gaps = np.diff(along)
    apart = gaps[gaps > SAME_PLACE]
    nearest = max(SAME_PLACE, SAME_PLACE * float(np.median(apart)) if apart.size else 0.0)
    places = np.split(along, np.flatnonzero(gaps > nearest) + 1)
    shared = [place for place in places if len(place) > 1]
    if shared:
        raise GeometryError(
            f"repeated positions: {sum(map(len, shared))} of {len(along)} instances stand at "
            f"{len(shared)} positions (first: {len(shared[0])} at {shared[0][0]:.2f} mm); "
            "several acquisitions, echoes or times in one series"
        )


def _spacing_faults(along: Vector, tolerance: Tolerance) -> Iterator[str]:
    gaps = np.diff(along)
    # The lower median is a spacing that occurs, also when there are two.
    spacing = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    regular = np.linspace(along[0], along[-1], len(along))
    if np.abs(along - regular).max() <= tolerance.jitter * spacing:
        return
    steps = gaps / spacing
    whole = np.round(steps)
    exact = np.abs(steps - whole) <= 2 * tolerance.jitter
    holes = np.flatnonzero(exact & (whole >= 2))
    missing = int((whole[holes] - 1).sum())
    if exact.all() and 0 < len(holes) <= max(1, len(gaps) // 4) and missing <= len(along):
        told = [
            f"{whole[at] - 1:g} between {along[at]:.2f} and {along[at + 1]:.2f} mm" for at in holes
        ]
        yield (
            f"missing slices: {missing} ({', '.join(told[:3])}{', ...' * (len(told) > 3)}) "
            f"at a spacing of {spacing:.2f} mm"
        )
        return
    counted = sorted(Counter(np.round(gaps, 2).tolist()).items(), key=lambda pair: -pair[1])
    steps_told = ", ".join(f"{gap:g} mm x {n}" for gap, n in counted[:4])
    yield (
        f"irregular spacing: {steps_told}{', ...' * (len(counted) > 4)}; wanted equal steps, each "
        f"slice within {tolerance.jitter:.0%} of a step of its place"
    )


def _tilt_faults(planes: Sequence[_Plane], step: Vector, tolerance: Tolerance) -> Iterator[str]:
    tilt = _degrees(step, planes[0].normal)
    if tilt > tolerance.tilt_degrees:
        header = _header_tilt(planes)
        said = f", GantryDetectorTilt {header:g}" if header else ""
        yield (
            f"tilted: the slices advance {tilt:.1f} degrees off their normal "
            f"(at most {tolerance.tilt_degrees:g}{said}); send a series without gantry tilt"
        )


def _drift_faults(planes: Sequence[_Plane], step: Vector, tolerance: Tolerance) -> Iterator[str]:
    first = planes[0]
    moved = np.array([plane.position - first.position for plane in planes])
    moved -= np.outer(np.arange(len(planes)), step)
    in_plane = np.stack(
        [moved @ first.column / first.spacing[0], moved @ first.row / first.spacing[1]]
    )
    drift = float(np.abs(in_plane).max())
    if drift > tolerance.drift:
        yield (
            f"shifted slices: up to {drift:.2f} pixels beside the line through the first and the "
            f"last (at most {tolerance.drift:g})"
        )


def _header_tilt(planes: Sequence[_Plane]) -> float:
    """The Gantry/Detector Tilt that is farthest from 0, in degrees."""
    tilts = [optional(plane.instance, "GantryDetectorTilt", -90, 90) or 0.0 for plane in planes]
    return max(tilts, key=abs)


def _refuse_contradicted_tilt(planes: Sequence[_Plane], tolerance: Tolerance) -> None:
    tilt = _header_tilt(planes)
    upright = min(_degrees(np.abs(planes[0].normal), axis) for axis in np.eye(3))
    if abs(tilt) > tolerance.tilt_degrees and upright <= tolerance.tilt_degrees:
        raise GeometryError(
            f"GantryDetectorTilt is {tilt:g} degrees, but ImageOrientationPatient is not tilted: "
            "one of the two is wrong, so the shape of the volume is unknown"
        )


def _notes(planes: Sequence[_Plane], step: Vector) -> Iterator[str]:
    first = planes[0].instance
    spacing = float(np.linalg.norm(step))
    thickness = optional(first, "SliceThickness", 0, FARTHEST)
    between = optional(first, "SpacingBetweenSlices", -FARTHEST, FARTHEST)
    if thickness and abs(thickness - spacing) > 0.01 * spacing:
        kind = "overlap" if thickness > spacing else "have gaps"
        yield f"slices {kind}: spacing {spacing:.3g} mm, thickness {thickness:g} mm"
    if between and abs(abs(between) - spacing) > 0.05 * spacing:
        yield f"positions are {spacing:.3g} mm apart, SpacingBetweenSlices says {between:g}"
    if _header_tilt(planes):
        yield f"GantryDetectorTilt {_header_tilt(planes):g} degrees; the slices are not sheared"
    if not _frame_of_reference(planes[0]):
        yield "no frame of reference"
    if first.facts.get("PhotometricInterpretation") == "MONOCHROME1":
        yield "MONOCHROME1: pixel values are inverted on loading"
