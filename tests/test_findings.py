"""Labels become findings that measure what they should, in a fixed order."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from node.domain.codes import Code
from node.domain.finding import Finding
from node.domain.volume import Grid
from node.findings import (
    LONG_AXIS,
    OUTLINE_LIMIT,
    OUTLINE_POINTS,
    VOLUME,
    Found,
    Label,
    Segmented,
    enclosed_area,
    find,
    key_slice,
)

LESION = Label(
    label=1,
    name="Lesion",
    category=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    type=Code("52988006", "SCT", "Lesion"),
)
ANISOTROPIC = np.array(
    [[0, 0, 0.5, -20.0], [0, 0.8, 0, 30.0], [4.0, 0, 0, -55.0], [0, 0, 0, 1]], np.float64
)


def found(labels: NDArray[np.generic], kinds: Sequence[Label] = (LESION,)) -> Found:
    values = np.asarray(labels, np.uint8)
    k, j, i = values.shape
    probability = (values[None] > 0) * np.float32(0.75)
    segmented = Segmented(values, probability, Grid((k, j, i), ANISOTROPIC), {1: 0})
    return find(segmented, kinds, "tester", "job")


def measured(finding: Finding, name: Code) -> float:
    return next(m.value for m in finding.measurements if m.name == name)


def ring_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    outline = found(mask[None]).findings[0].outline
    assert outline is not None
    return outline.points


def ellipsoid(
    shape: tuple[int, int, int], centre: Sequence[float], radii: Sequence[float]
) -> NDArray[np.bool_]:
    axes = np.ogrid[: shape[0], : shape[1], : shape[2]]
    radius = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True))
    return np.asarray(radius <= 1)


def test_box_has_its_exact_volume_and_key_slice() -> None:
    labels = np.zeros((7, 40, 50), bool)
    labels[1:6, 10:20, 20:44] = True
    (finding,) = found(labels).findings
    assert measured(finding, VOLUME) == pytest.approx(5 * 10 * 24 * 4.0 * 0.8 * 0.5)
    assert finding.outline is not None
    assert finding.outline.slice_index == 3
    assert finding.outline.points.min(axis=0).tolist() == [20.0, 10.0]
    assert finding.outline.points.max(axis=0).tolist() == [44.0, 20.0]


def test_box_has_its_diagonal_as_longest_diameter() -> None:
    labels = np.zeros((1, 40, 50), bool)
    labels[0, 10:20, 20:44] = True
    diagonal = np.hypot(24 * 0.5, 10 * 0.8)
    (finding,) = found(labels).findings
    # The corners of the outline are cut by half a pixel.
    assert measured(finding, LONG_AXIS) == pytest.approx(diagonal, abs=0.9)
    assert measured(finding, LONG_AXIS) <= diagonal


def test_ellipsoid_has_its_volume_and_diameter_in_millimetres() -> None:
    mask = ellipsoid((21, 90, 120), (10, 44, 60), (7, 25, 50))
    (finding,) = found(mask).findings
    assert measured(finding, VOLUME) == pytest.approx(
        4 / 3 * np.pi * (7 * 4.0) * (25 * 0.8) * (50 * 0.5), rel=0.02
    )
    assert measured(finding, LONG_AXIS) == pytest.approx(50.0, abs=0.8)
    assert finding.outline is not None
    assert finding.outline.slice_index == 10


def test_diameter_follows_the_spacing_of_its_own_axis() -> None:
    tall = np.zeros((1, 40, 40), bool)
    tall[0, 5:35, 18:20] = True
    flat = np.ascontiguousarray(tall.transpose(0, 2, 1))
    assert measured(found(tall).findings[0], LONG_AXIS) == pytest.approx(24.0, abs=0.3)
    assert measured(found(flat).findings[0], LONG_AXIS) == pytest.approx(15.0, abs=0.3)


def test_single_voxel_is_a_finding() -> None:
    labels = np.zeros((3, 4, 5), bool)
    labels[2, 0, 4] = True
    (finding,) = found(labels).findings
    assert finding.outline is not None
    assert finding.outline.slice_index == 2
    assert finding.outline.points.mean(axis=0) == pytest.approx([4.5, 0.5], abs=0.2)
    assert measured(finding, LONG_AXIS) == pytest.approx(0.8)


def test_no_label_means_no_finding() -> None:
    assert found(np.zeros((3, 4, 5))).findings == ()
    assert found(np.zeros((3, 4, 5)), [replace(LESION, instances="whole")]).findings == ()


def test_regions_that_touch_by_a_corner_are_one_finding() -> None:
    labels = np.zeros((3, 6, 6), bool)
    labels[0, 1, 1] = labels[1, 2, 2] = True
    assert len(found(labels).findings) == 1
    labels[1, 2, 2], labels[1, 3, 3] = False, True
    assert len(found(labels).findings) == 2


def test_findings_come_by_falling_volume_then_by_position() -> None:
    labels = np.zeros((2, 20, 20), bool)
    labels[0, 2:4, 2:4] = labels[1, 2:4, 10:12] = True
    labels[1, 10:15, 10:15] = True
    findings = found(labels).findings
    assert [int(f.mask.sum()) for f in findings] == [25, 4, 4]
    assert findings[1].mask[0, 2, 2]
    assert [f.tracking_id for f in findings] == [f"tester Lesion {n}" for n in (1, 2, 3)]
    assert len({f.tracking_uid for f in findings}) == 3


def test_findings_beyond_the_limit_are_counted_and_said() -> None:
    labels = np.zeros((1, 9, 9), bool)
    labels[0, ::2, ::2] = True
    labels[0, 0, 1] = True
    outcome = found(labels, [replace(LESION, max_instances=3)])
    assert len(outcome.findings) == 3
    assert int(outcome.findings[0].mask.sum()) == 3
    assert outcome.notes == (
        "Lesion: 24 regions found, only the largest 3 are reported (max_instances)",
    )


def test_regions_below_the_smallest_volume_are_no_findings() -> None:
    labels = np.zeros((1, 20, 20), bool)
    labels[0, 0:5, 0:5] = labels[0, 10:14, 10:16] = True
    outcome = found(labels, [replace(LESION, min_ml=25 * 4.0 * 0.8 * 0.5 / 1000)])
    assert [int(f.mask.sum()) for f in outcome.findings] == [25]
    assert outcome.notes == ()


def test_whole_label_is_one_finding() -> None:
    labels = np.zeros((4, 9, 9), bool)
    labels[0, 0, 0] = labels[3, 2:5, 2:5] = True
    (finding,) = found(labels, [replace(LESION, instances="whole")]).findings
    assert int(finding.mask.sum()) == 10
    assert finding.outline is not None
    assert finding.outline.slice_index == 3


def test_labels_are_kept_apart() -> None:
    labels = np.zeros((1, 9, 9))
    labels[0, 2:4, 2:4], labels[0, 2:4, 4:8] = 1, 3
    kinds = [LESION, replace(LESION, label=3, name="Core")]
    first, second = found(labels, kinds).findings
    assert (int(first.mask.sum()), int(second.mask.sum())) == (4, 8)
    assert not (first.mask & second.mask).any()
    assert second.concept.label == "Core"


def test_probability_is_the_highest_inside_the_mask() -> None:
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 1, 1:3] = 1
    probability = np.full((2, 1, 4, 4), 0.99, np.float32)
    probability[1, 0, 1, 1:3] = 0.5, 0.625
    segmented = Segmented(labels, probability, Grid((1, 4, 4), ANISOTROPIC), {1: 1})
    assert find(segmented, [LESION], "tester", "job").findings[0].probability == 0.625
    unknown = replace(segmented, channels={})
    assert find(unknown, [LESION], "tester", "job").findings[0].probability is None


def test_outline_encloses_a_ring_as_its_filled_shape() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    # One hole like a comb: its boundary is longer than the outer one.
    mask[7:23, 7] = mask[7:23:2, 7:23] = False
    assert enclosed_area(ring_of(mask)) == pytest.approx(400, abs=1)


def test_key_slice_is_the_middle_one_of_equals() -> None:
    mask = np.zeros((9, 2, 2), bool)
    mask[2:7, 0, 0] = True
    assert key_slice(mask) == 4
    mask[3, 1, 1] = True
    assert key_slice(mask) == 3


def test_ragged_outline_stays_below_the_limit() -> None:
    rng = np.random.default_rng(5)
    noise = ndimage.gaussian_filter(rng.standard_normal((256, 256)), 1.0) > 0
    assert len(ring_of(ndimage.binary_fill_holes(noise))) <= OUTLINE_LIMIT


@st.composite
def blobs(draw: st.DrawFn) -> NDArray[np.bool_]:
    """One edge-connected region without holes, smooth or rough, that may touch the image's edge."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(4, 90), st.integers(4, 90)))
    noise = rng.standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, draw(st.floats(0.5, 12.0)))
    filled = ndimage.binary_fill_holes(smooth > np.quantile(smooth, draw(st.floats(0.2, 0.9))))
    numbered, _ = ndimage.label(filled)
    return np.asarray(numbered == np.bincount(numbered.ravel())[1:].argmax() + 1)


@settings(max_examples=60, deadline=None)
@given(blobs())
def test_outline_encloses_the_area_of_its_mask(mask: NDArray[np.bool_]) -> None:
    ring = ring_of(mask)
    assert np.array_equal(ring[0], ring[-1])
    perimeter = np.linalg.norm(np.diff(ring, axis=0), axis=1).sum()
    # Half a pixel is lost at the corners; simplifying moves the boundary by less than half.
    assert abs(enclosed_area(ring) - mask.sum()) <= 0.5 + 0.45 * perimeter
    if mask.sum() < 100:
        assert enclosed_area(ring) == pytest.approx(mask.sum() - 0.5, abs=1.5)


@settings(max_examples=60, deadline=None)
@given(blobs())
def test_outline_stays_within_half_a_pixel_of_its_mask(mask: NDArray[np.bool_]) -> None:
    ring = ring_of(mask)
    if len(ring) > OUTLINE_POINTS:
        return
    fine = 8
    canvas = Image.new("1", (mask.shape[1] * fine, mask.shape[0] * fine))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in ring * fine - 0.5], fill=1)
    drawn = np.asarray(canvas)
    true = np.kron(mask, np.ones((fine, fine), bool))
    outside = drawn & (ndimage.distance_transform_edt(~true) > 0.5 * fine + 1.5)
    inside = ~drawn & (ndimage.distance_transform_edt(np.pad(true, 1))[1:-1, 1:-1] > fine)
    assert not outside.any()
    assert not inside.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.3))
def test_findings_cover_the_label_once_each(seed: int, share: float) -> None:
    labels = np.random.default_rng(seed).random((4, 8, 9)) < share
    outcome = found(labels, [replace(LESION, max_instances=300)])
    total = sum((f.mask.astype(int) for f in outcome.findings), np.zeros(labels.shape, int))
    assert np.array_equal(total, labels)
    sizes = [f.mask.sum() for f in outcome.findings]
    assert sizes == sorted(sizes, reverse=True)
    for finding in outcome.findings:
        assert finding.outline is not None
        assert finding.mask[finding.outline.slice_index].any()


def test_many_findings_take_the_memory_of_their_boxes_and_not_of_the_grid() -> None:
    labels = np.zeros((48, 256, 256), np.uint8)
    for number in range(10):
        labels[4 * number : 4 * number + 2, 20 * number : 20 * number + 9, 10:19] = 1
    segmented = Segmented(
        labels, labels[None].astype(np.float32), Grid(labels.shape, np.eye(4)), {}
    )
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        outcome = find(segmented, [LESION], "tester", "job")
        kept, highest = (now - before for now in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert len(outcome.findings) == 10
    assert kept < labels.nbytes / 10
    # One mask of the label, and what numbers its parts; not one for each finding.
    assert highest < 7 * labels.nbytes
    assert sum(finding.region.voxels.nbytes for finding in outcome.findings) == 10 * 2 * 9 * 9
