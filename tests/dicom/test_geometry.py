"""The geometry gate: what is a lattice comes out exact, what is none is refused in words."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from node.dicom.geometry import Tolerance, arrange
from node.domain.errors import GeometryError, HeaderError
from node.domain.study import Fact, Instance
from node.testing.series import AXIAL, CORONAL, SAGITTAL, SeriesSpec, make, received, save
from tests.dicom.real import real_series


def instances(spec: SeriesSpec, slices: int = 6, rows: int = 4, columns: int = 3) -> list[Instance]:
    """The instances of a made series, in slice order."""
    voxels = np.zeros((slices, rows, columns), np.int16)
    with tempfile.TemporaryDirectory() as directory:
        return received(save(make(spec, voxels), Path(directory)))


def changed(instance: Instance, **facts: Fact) -> Instance:
    return replace(instance, facts={**instance.facts, **facts})


def at(spec: SeriesSpec, positions: Sequence[float]) -> list[Instance]:
    """Instances whose slices lie at these distances (mm) along the normal."""
    only = instances(spec, slices=1)[0]
    step = spec.affine[:3, 0] / np.linalg.norm(spec.affine[:3, 0])
    origin = np.array(spec.origin)
    return [
        replace(
            changed(only, ImagePositionPatient=tuple(map(float, origin + place * step))),
            sop_instance_uid=f"1.2.{n}",
        )
        for n, place in enumerate(positions)
    ]


def rotated(rotation: Rotation) -> tuple[float, ...]:
    matrix = rotation.as_matrix()
    return (*map(float, matrix[:, 0]), *map(float, matrix[:, 1]))


rotations = st.integers(0, 2**32 - 1).map(lambda seed: Rotation.random(rng=seed))
lengths = st.floats(0.2, 12.0)


@settings(max_examples=60, deadline=None)
@given(
    rotations,
    st.tuples(lengths, lengths, lengths),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.permutations(range(5)),
    st.sampled_from([-0.4, 0.0, 0.4]),
)
def test_any_lattice_comes_out_with_the_affine_that_made_it(
    rotation: Rotation,
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    order: list[int],
    tilt: float,
) -> None:
    spec = SeriesSpec(
        orientation=rotated(rotation), spacing=spacing, origin=origin, tilt_degrees=tilt
    )
    made = instances(spec, slices=5)
    geometry = arrange([made[k] for k in order])
    assert list(geometry.instances) == made
    assert geometry.grid.shape == (5, 4, 3)
    np.testing.assert_allclose(geometry.grid.affine, spec.affine, atol=1e-6)
    assert geometry.frame_of_reference_uid == spec.frame_of_reference_uid


@pytest.mark.parametrize(
    ("orientation", "degrees", "name"),
    [
        (AXIAL, 0, "axial"),
        (CORONAL, 0, "coronal"),
        (SAGITTAL, 0, "sagittal"),
        (AXIAL, 29, "axial"),
        (AXIAL, 31, "oblique"),
        (CORONAL, -29, "coronal"),
    ],
)
def test_the_plane_is_named_by_the_nearest_axis(
    orientation: tuple[float, ...], degrees: float, name: str
) -> None:
    turn = Rotation.from_euler("x", degrees, degrees=True)
    turned = turn.apply(np.reshape(orientation, (2, 3))).ravel()
    assert arrange(instances(SeriesSpec(orientation=tuple(map(float, turned))))).orientation == name


@settings(max_examples=30, deadline=None)
@given(st.floats(0.6, 40.0), st.sampled_from([-1, 1]), rotations)
def test_a_tilted_stack_is_refused_with_its_angle(
    degrees: float, sign: int, rotation: Rotation
) -> None:
    spec = SeriesSpec(orientation=rotated(rotation), tilt_degrees=sign * degrees)
    with pytest.raises(GeometryError, match="tilted") as caught:
        arrange(instances(spec))
    assert f"advance {degrees:.1f} degrees" in str(caught.value)


def test_the_tolerance_for_tilt_can_be_set() -> None:
    tilted = instances(SeriesSpec(tilt_degrees=3.0))
    assert arrange(tilted, Tolerance(tilt_degrees=3.1)).grid.shape[0] == 6
    with pytest.raises(GeometryError):
        arrange(tilted, Tolerance(tilt_degrees=2.9))


def test_a_tilt_in_the_header_that_the_orientation_denies_is_refused() -> None:
    spec = SeriesSpec(modality="CT", extra={"GantryDetectorTilt": "18.5"})
    with pytest.raises(GeometryError, match="GantryDetectorTilt is 18.5 degrees, but"):
        arrange(instances(spec))


def test_a_tilt_in_the_header_of_an_unsheared_tilted_stack_is_noted() -> None:
    orientation = rotated(Rotation.from_euler("x", 18.5, degrees=True))
    extra = {"GantryDetectorTilt": "18.5"}
    made = instances(SeriesSpec(modality="CT", orientation=orientation, extra=extra))
    assert any("GantryDetectorTilt 18.5" in note for note in arrange(made).notes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.04, 0.04), min_size=5, max_size=8), st.floats(0.5, 10.0))
def test_small_jitter_is_accepted(jitter: list[float], spacing: float) -> None:
    places = [(k + shift) * spacing for k, shift in enumerate(jitter)]
    geometry = arrange(at(SeriesSpec(), places))
    assert geometry.grid.spacing[0] == pytest.approx(spacing, rel=0.05)


def test_a_slice_beyond_the_jitter_tolerance_is_refused_with_the_steps() -> None:
    places = [0, 5, 11.5, 15, 20]
    with pytest.raises(GeometryError, match="irregular spacing: 5 mm x 2") as caught:
        arrange(at(SeriesSpec(), places))
    assert "6.5 mm x 1, 3.5 mm x 1" in str(caught.value)
    assert arrange(at(SeriesSpec(), places), Tolerance(jitter=0.4)).grid.shape[0] == 5


def test_spacing_that_creeps_is_refused_though_no_step_is_far_off() -> None:
    steps = [1.0] * 40 + [1.08] * 40
    with pytest.raises(GeometryError, match="irregular spacing"):
        arrange(at(SeriesSpec(), list(np.cumsum(steps))))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_missing_slices_are_counted_and_placed(data: st.DataObject) -> None:
    slices = data.draw(st.integers(12, 24))
    gone = data.draw(st.sets(st.integers(1, slices - 2), min_size=1, max_size=2))
    places = [5.0 * k for k in range(slices) if k not in gone]
    with pytest.raises(GeometryError, match=f"missing slices: {len(gone)} ") as caught:
        arrange(at(SeriesSpec(origin=(0.0, 0.0, 0.0)), places))
    first = min(gone)
    assert f"between {5.0 * (first - 1):.2f} and " in str(caught.value)


def test_the_smallest_hole_is_found() -> None:
    with pytest.raises(GeometryError, match="missing slices: 1 "):
        arrange(at(SeriesSpec(), [0, 5, 15]))


@pytest.mark.parametrize("copies", [2, 3])
def test_repeated_positions_are_counted(copies: int) -> None:
    places = sorted([5.0 * k for k in range(6)] * copies)
    with pytest.raises(GeometryError, match=rf"{6 * copies} of {6 * copies} instances stand at 6"):
        arrange(at(SeriesSpec(), places))


def test_one_repeated_position_is_told() -> None:
    spec = SeriesSpec(origin=(0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match=r"2 of 5 instances .* \(first: 2 at 10.00 mm\)"):
        arrange(at(spec, [0, 5, 10, 10.004, 15]))


def test_all_instances_at_one_position() -> None:
    with pytest.raises(GeometryError, match="4 of 4 instances stand at 1 positions"):
        arrange(at(SeriesSpec(), [7.0] * 4))


def test_slices_shifted_in_their_plane_are_refused() -> None:
    made = instances(SeriesSpec(spacing=(5.0, 1.0, 1.0)))
    x, y, z = made[3].facts["ImagePositionPatient"]  # type: ignore[misc]
    moved = [*made[:3], changed(made[3], ImagePositionPatient=(x + 0.4, y, z)), *made[4:]]  # type: ignore[operator]
    with pytest.raises(GeometryError, match="shifted slices: up to 0.40 pixels"):
        arrange(moved)
    assert arrange(moved, Tolerance(drift=0.5)).grid.shape[0] == 6


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ImageOrientationPatient": CORONAL}, "mixed orientation: axial in 5, coronal in 1 of 6"),
        ({"Rows": 8.0}, "mixed Rows x Columns: 4 x 3 in 5, 8 x 3 in 1"),
        ({"PixelSpacing": (1.0, 1.1)}, r"mixed PixelSpacing: 1\1 in 5, 1\1.1 in 1"),
        ({"FrameOfReferenceUID": "1.2.3"}, "mixed FrameOfReferenceUID"),
        ({"FrameOfReferenceUID": ""}, "mixed FrameOfReferenceUID"),
        ({"ImagePositionPatient": ""}, "ImagePositionPatient is missing in 1 of 6 instances"),
        ({"ImageOrientationPatient": ""}, "ImageOrientationPatient is missing in 1 of 6"),
        ({"PixelSpacing": ""}, "PixelSpacing is missing in 1 of 6 instances"),
        ({"NumberOfFrames": 12.0}, "multi-frame object (12 frames)"),
        (
            {"ImageOrientationPatient": (1.0, 0.0, 0.0, 0.0, 0.9, 0.0)},
            "column direction has length 0.9",
        ),
        ({"ImageOrientationPatient": (1.0, 0.0, 0.0, 0.1, 0.99499, 0.0)}, "84.26 degrees between"),
        ({"ImageOrientationPatient": (0.0,) * 6}, "row direction has length 0"),
    ],
)
@pytest.mark.parametrize("which", [0, 3, 5])
def test_one_odd_slice_is_enough_to_refuse(facts: dict[str, Fact], words: str, which: int) -> None:
    made = instances(SeriesSpec())
    made[which] = changed(made[which], **facts)
    with pytest.raises(GeometryError, match=re.escape(words)):
        arrange(made)


BAD = ["nan", "inf", "-inf", "1e400", "abc", "1,5"]


@pytest.mark.parametrize(
    ("keyword", "count"),
    [
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
        ("PixelSpacing", 2),
        ("SliceThickness", 1),
        ("SpacingBetweenSlices", 1),
        ("GantryDetectorTilt", 1),
        ("Rows", 1),
        ("Columns", 1),
        ("NumberOfFrames", 1),
    ],
)
@pytest.mark.parametrize("bad", BAD)
def test_a_number_that_is_none_is_refused_by_name(keyword: str, count: int, bad: str) -> None:
    made = instances(SeriesSpec())
    value: Fact = bad if count == 1 else ("1",) * (count - 1) + (bad,)
    made[2] = changed(made[2], **{keyword: value})
    with pytest.raises(HeaderError, match=keyword) as caught:
        arrange(made)
    # Words where a number belongs may be anybody's; figures are shown.
    assert (bad in str(caught.value)) == (bad != "abc")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", (0.0, 1.0)),
        ("PixelSpacing", (-1.0, 1.0)),
        ("PixelSpacing", (1e-320, 1.0)),
        ("PixelSpacing", (1.0, 1e6)),
        ("PixelSpacing", 1.0),
        ("SliceThickness", -1.0),
        ("ImagePositionPatient", (1e7, 0.0, 0.0)),
        ("ImagePositionPatient", (0.0, 0.0)),
        ("Rows", 0.0),
        ("Rows", 70_000.0),
        ("Rows", 4.5),
        ("Columns", -1.0),
        ("GantryDetectorTilt", 91.0),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(keyword: str, value: Fact) -> None:
    made = [changed(one, **{keyword: value}) for one in instances(SeriesSpec())]
    with pytest.raises(HeaderError, match=keyword):
        arrange(made)


def test_rounded_cosines_are_accepted() -> None:
    made = instances(SeriesSpec(orientation=(1.0, 0.0, 0.0, 0.0, 0.98229, -0.18737)))
    slack = (1.0, 0.0, 0.0, 0.0, 0.982289, -0.187372)
    made[1] = changed(made[1], ImageOrientationPatient=slack)
    assert arrange(made).orientation == "axial"


@pytest.mark.parametrize(
    ("facts", "spacing"),
    [
        ({"SpacingBetweenSlices": 3.0, "SliceThickness": 2.0}, 3.0),
        ({"SpacingBetweenSlices": -3.0, "SliceThickness": 2.0}, 3.0),
        ({"SpacingBetweenSlices": "", "SliceThickness": 2.0}, 2.0),
        ({"SpacingBetweenSlices": "", "SliceThickness": 0.0}, 1.0),
        ({"SpacingBetweenSlices": 1e-320, "SliceThickness": 1e-320}, 1.0),
        ({"SpacingBetweenSlices": "", "SliceThickness": ""}, 1.0),
    ],
)
def test_a_single_slice_takes_its_spacing_from_the_header(
    facts: dict[str, Fact], spacing: float
) -> None:
    only = changed(instances(SeriesSpec(), slices=1)[0], **facts)
    assert arrange([only]).grid.spacing[0] == pytest.approx(spacing)


def test_nothing_to_arrange_is_refused() -> None:
    with pytest.raises(GeometryError, match="no instances"):
        arrange([])


def test_more_voxels_than_fit_are_refused() -> None:
    made = [changed(one, Rows=65535.0, Columns=65535.0) for one in instances(SeriesSpec())]
    with pytest.raises(GeometryError, match="more voxels than fit"):
        arrange(made)


def test_what_is_odd_but_accepted_is_noted() -> None:
    spec = SeriesSpec(thickness=7.0, extra={"PhotometricInterpretation": "MONOCHROME1"})
    made = [
        changed(one, FrameOfReferenceUID="", SpacingBetweenSlices=2.5) for one in instances(spec)
    ]
    notes = "; ".join(arrange(made).notes)
    assert "slices overlap: spacing 5 mm, thickness 7 mm" in notes
    assert "SpacingBetweenSlices says 2.5" in notes
    assert "no frame of reference" in notes
    assert "MONOCHROME1" in notes
    assert "have gaps" in "; ".join(arrange(instances(SeriesSpec(thickness=3.0))).notes)
    assert arrange(instances(SeriesSpec())).notes == ()


def test_the_real_tilted_head_is_refused_with_both_reasons(tmp_path: Path) -> None:
    (series,) = real_series("ct_head_gantry_tilt", tmp_path)
    with pytest.raises(GeometryError) as caught:
        arrange(series)
    words = str(caught.value)
    assert "irregular spacing: 4 mm x 13, 7 mm x 13, 1.08 mm x 1" in words
    assert "advance 18.5 degrees off their normal" in words


def test_the_real_brain_with_gaps_is_accepted_as_axial(tmp_path: Path) -> None:
    shapes = []
    for series in real_series("mr_brain_gbm", tmp_path):
        geometry = arrange(series)
        assert geometry.orientation == "axial"
        shapes.append(geometry.grid.shape)
    assert sorted(shapes) == [(22, 320, 280)] * 4 + [(40, 50, 34)]


def test_the_real_coronal_liver_is_accepted_as_coronal(tmp_path: Path) -> None:
    (series,) = real_series("mr_liver_coronal", tmp_path)
    geometry = arrange(series)
    assert geometry.orientation == "coronal"
    assert geometry.grid.spacing[0] == pytest.approx(8.75)


def test_real_x_rays_are_no_volume(tmp_path: Path) -> None:
    for series in real_series("cxr_secondary_capture", tmp_path):
        with pytest.raises(GeometryError, match="not a series of cross-sectional images"):
            arrange(series)
