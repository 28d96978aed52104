"""What each spatial step keeps, adds and moves."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from node.domain.errors import InferenceError
from node.domain.sampling import Order
from node.domain.volume import Affine, Grid, Volume
from node.steps import Step
from node.steps.spatial import (
    CropForeground,
    CropOrPad,
    Extent,
    Orient,
    PadToMultiple,
    Resample,
    Resize,
    Transpose,
)
from tests.steps.volumes import affine, affines, blob, dice, noise, patient

ORIENTATIONS = [
    a + b + c for order in permutations(("LR", "PA", "SI")) for a, b, c in product(*order)
]


def there_and_back(
    step: Orient | CropOrPad | PadToMultiple | CropForeground, volume: Volume
) -> Volume:
    after = step.forward(volume)
    return step.backward(after.with_voxels(after.voxels[None]), volume.grid)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_axes_run_along_the_wanted_directions(axes: str) -> None:
    letters = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    volume = noise((3, 4, 5), affine(angles=(8, -12, 15), order=(0, 2, 1), signs=(1, -1, 1)))
    after = Orient(axes).forward(volume)
    for axis, letter in zip((2, 1, 0), axes, strict=True):
        line, sign = letters[letter]
        column = after.affine[:3, axis] * sign
        assert np.argmax(np.abs(column)) == line
        assert column[line] > 0


@settings(max_examples=60, deadline=None)
@given(place=affines(), axes=st.sampled_from(ORIENTATIONS))
def test_orientation_is_undone_bit_for_bit(place: Affine, axes: str) -> None:
    volume = noise((3, 4, 5), place)
    back = there_and_back(Orient(axes), volume)
    assert np.array_equal(back.voxels[0], volume.voxels)
    assert np.array_equal(back.affine, volume.affine)


def test_orientation_that_holds_already_copies_nothing() -> None:
    volume = noise((3, 4, 5))
    after = Orient("LPS").forward(volume)
    assert np.shares_memory(after.voxels, volume.voxels)
    assert np.allclose(after.affine, volume.affine)


@settings(max_examples=60, deadline=None)
@given(
    place=affines(),
    shape=st.tuples(*[st.integers(0, 9)] * 3),
    centre=st.sampled_from(["image", "foreground"]),
)
def test_crop_and_pad_are_undone_where_voxels_were_kept(
    place: Affine, shape: tuple[int, int, int], centre: str
) -> None:
    volume = noise((4, 5, 6), place)
    step = CropOrPad(shape, centre=centre, value=-3)  # type: ignore[arg-type]
    after = step.forward(volume)
    assert after.grid.shape == tuple(w or n for w, n in zip(shape, (4, 5, 6), strict=True))
    back = there_and_back(step, volume).voxels[0]
    assert np.isin(back, [*volume.voxels.ravel(), 0]).all()
    assert ((back == volume.voxels) | (back == 0)).all()
    kept = np.prod([min(w or n, n) for w, n in zip(shape, (4, 5, 6), strict=True)])
    if centre == "image":
        assert (back != 0).sum() == kept


def test_crop_is_about_the_middle_of_the_image() -> None:
    voxels = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    after = CropOrPad((0, 0, 3)).forward(Volume(voxels, affine()))
    assert after.voxels.ravel().tolist() == [2, 3, 4]


def test_pad_is_about_the_middle_and_filled_with_the_value() -> None:
    voxels = np.array([5, 6, 7], np.int16).reshape(1, 1, 3)
    after = CropOrPad((0, 0, 7), value=-1).forward(Volume(voxels, affine()))
    assert after.voxels.ravel().tolist() == [-1, -1, 5, 6, 7, -1, -1]
    lowest = CropOrPad((0, 0, 5), value="minimum").forward(Volume(voxels, affine()))
    assert lowest.voxels.ravel().tolist() == [5, 5, 6, 7, 5]


def test_crop_about_the_foreground_follows_it() -> None:
    voxels = np.zeros((9, 20, 20), np.float32)
    voxels[6:8, 2:6, 12:18] = 100
    after = CropOrPad((4, 6, 8), centre="foreground").forward(Volume(voxels, affine()))
    assert after.voxels.sum() == voxels.sum()
    index = np.argwhere(after.voxels > 0)
    assert index.min(axis=0).tolist() == [1, 1, 1]


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 20)] * 3), multiple=st.tuples(*[st.integers(1, 8)] * 3))
def test_every_length_becomes_the_next_multiple(
    shape: tuple[int, int, int], multiple: tuple[int, int, int]
) -> None:
    step, volume = PadToMultiple(multiple), noise(shape)
    after = step.forward(volume).grid.shape
    for length, n, m in zip(after, shape, multiple, strict=True):
        assert length % m == 0
        assert n <= length < n + m
    assert np.array_equal(there_and_back(step, volume).voxels[0], volume.voxels)


def test_filling_to_a_multiple_is_even_on_both_sides() -> None:
    voxels = np.array([5, 6, 7], np.int16).reshape(1, 1, 3)
    after = PadToMultiple((1, 1, 7), value=-1).forward(Volume(voxels, affine()))
    assert after.voxels.ravel().tolist() == [-1, -1, 5, 6, 7, -1, -1]


def test_foreground_stays_with_its_margin_and_comes_back() -> None:
    voxels = np.full((10, 30, 30), -1000, np.int16)
    voxels[4:6, 10:20, 8:25] = 40
    volume = Volume(voxels, affine((5, 1, 2)))
    step = CropForeground(threshold=-500, margin_mm=4)
    after = step.forward(volume)
    assert after.grid.shape == (4, 18, 21)
    assert np.allclose(
        patient(after.affine, np.zeros(3)), patient(volume.affine, np.array([3, 6, 6]))
    )
    back = there_and_back(step, volume).voxels[0]
    assert np.array_equal(back[3:7, 6:24, 6:27], voxels[3:7, 6:24, 6:27])
    assert back.sum() == after.voxels.sum()


def test_margin_ends_at_the_image() -> None:
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[0, 0, 0] = 9
    after = CropForeground(margin_mm=100).forward(Volume(voxels, affine((1, 1, 1))))
    assert after.grid.shape == (4, 4, 4)


def test_volume_without_foreground_stays_whole() -> None:
    volume = Volume(np.zeros((4, 5, 6), np.float32), affine())
    assert CropForeground().forward(volume).grid.shape == (4, 5, 6)
    assert CropForeground(threshold=10).forward(volume).grid.shape == (4, 5, 6)


@settings(max_examples=40, deadline=None)
@given(place=affines(), spacing=st.tuples(*[st.floats(0.5, 4)] * 3))
def test_resampled_grid_has_the_spacing_and_the_centre_and_covers_the_image(
    place: Affine, spacing: tuple[float, float, float]
) -> None:
    volume = noise((7, 8, 9), place)
    after = Resample(spacing).forward(volume).grid
    assert after.spacing == pytest.approx(spacing)
    middle = patient(after.affine, (np.array(after.shape) - 1) / 2)
    assert np.allclose(middle, patient(place, np.array([3, 3.5, 4])))
    for n, m, old, new in zip((7, 8, 9), after.shape, volume.spacing, spacing, strict=True):
        assert n * old - 0.01 * new <= m * new < n * old + new


def test_axis_kept_is_copied() -> None:
    volume = noise((6, 8, 8))
    after = Resample((0, 0, 0)).forward(volume)
    assert np.shares_memory(after.voxels, volume.voxels)
    assert Resample((0, 1.3, 1.3)).forward(volume).grid.shape[0] == 6


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("antialias", [False, True])
def test_constant_stays_constant(order: int, antialias: bool) -> None:
    volume = Volume(np.full((5, 12, 12), 321, np.int16), affine())
    step = Resample((4.2, 0.6, 2.9), order=order, antialias=antialias)  # type: ignore[arg-type]
    np.testing.assert_allclose(step.forward(volume).voxels, 321, rtol=1e-6)


def test_linear_ramp_keeps_its_value_at_every_patient_coordinate() -> None:
    place = affine((3.0, 1.1, 0.9), (10, 20, 30))
    index = np.indices((30, 36, 40))
    points = np.tensordot(place[:3, :3], index, 1) + place[:3, 3, None, None, None]
    slope = np.array([0.7, -1.3, 2.1])
    volume = Volume(np.tensordot(slope, points, 1), place)
    orders: tuple[Order, ...] = (1, 3)
    for order in orders:
        after = Resample((2.0, 1.7, 1.4), order=order).forward(volume)
        inner = np.indices(after.grid.shape)
        where = np.tensordot(after.affine[:3, :3], inner, 1) + after.affine[:3, 3, None, None, None]
        part = (..., slice(12, -12), slice(8, -8), slice(8, -8))
        expected = np.tensordot(slope, where, 1)
        np.testing.assert_allclose(after.voxels[part], expected[part], atol=0.05)


@settings(max_examples=20, deadline=None)
@given(place=affines())
def test_mask_survives_resampling_there_and_back(place: Affine) -> None:
    shape = (36, 40, 44)
    middle = patient(place, (np.array(shape) - 1) / 2)
    volume = blob(place, shape, middle, 24.0)
    step = Resample((1.5, 1.4, 1.6))
    after = step.forward(volume)
    back = step.backward(after.with_voxels(after.voxels[None] / 1000), volume.grid)
    assert dice(back.voxels[0] > 0.5, volume.voxels > 500) > 0.98


def test_shape_about_the_centre_takes_one_interpolation() -> None:
    volume = noise((4, 50, 60))
    after = Resample((0, 1.875, 1.875), shape=(0, 32, 32)).forward(volume)
    assert after.grid.shape == (4, 32, 32)
    middle = patient(after.affine, np.array([1.5, 15.5, 15.5]))
    assert np.allclose(middle, patient(volume.affine, np.array([1.5, 24.5, 29.5])))


def test_the_training_grid_of_the_brain_engine_can_be_expressed_exactly() -> None:
    """In-plane linear, centred on the image, 128 x 128 of 1.875 mm, zeros around."""
    volume = noise((3, 230, 256), affine((6.0, 0.9, 0.9)))
    step = Resample((0, 1.875, 1.875), shape=(0, 128, 128))
    after = step.forward(volume).voxels
    axes = [(np.arange(128) - 63.5) * 1.875 / 0.9 + (length - 1) / 2 for length in (230, 256)]
    rows, columns = np.meshgrid(*axes, indexing="ij")
    planes = [
        ndimage.map_coordinates(p, [rows, columns], order=1) for p in volume.voxels.astype(float)
    ]
    centres = np.outer(
        *[(axis >= 0) & (axis <= n - 1) for axis, n in zip(axes, (230, 256), strict=True)]
    )
    np.testing.assert_allclose(after[:, centres], np.stack(planes)[:, centres], atol=2e-3)
    outside = np.outer(axes[0] < -1, np.ones(128)) > 0
    assert (after[:, outside] == 0).all()


def test_absurd_spacing_is_refused_before_memory_runs_out() -> None:
    with pytest.raises(InferenceError, match="units"):
        Resample((0.0001, 0.0001, 0.0001)).forward(noise((40, 512, 512)))


def test_backward_gives_0_where_nothing_was_kept() -> None:
    volume = noise((4, 10, 10))
    step = CropOrPad((0, 4, 4))
    ones = replace(step.forward(volume), voxels=np.ones((1, 4, 4, 4), np.float32))
    back = step.backward(ones, volume.grid)
    assert back.voxels.sum() == 4 * 4 * 4
    assert (back.voxels[0, :, 3:7, 3:7] == 1).all()


def test_steps_in_a_row_come_back_in_reverse() -> None:
    volume = blob(
        affine((3, 1, 1.2), (12, -8, 20), (1, 0, 2), (-1, 1, -1)), (24, 40, 36), np.zeros(3), 1
    )
    middle = patient(volume.affine, np.array([12.0, 20, 18]))
    volume = blob(volume.affine, (24, 40, 36), middle, 22.0)
    steps: list[Step] = [
        Orient("RAS"),
        CropForeground(10, 3),
        Resample((1.3, 1.3, 2.0)),
        PadToMultiple((8, 8, 8)),
    ]
    before: list[Grid] = []
    moved = volume
    for step in steps:
        before.append(moved.grid)
        moved = step.forward(moved)
    prediction = moved.with_voxels(moved.voxels[None] / 1000)
    for step, grid in zip(reversed(steps), reversed(before), strict=True):
        prediction = step.backward(prediction, grid)
    assert dice(prediction.voxels[0] > 0.5, volume.voxels > 500) > 0.98


@pytest.mark.parametrize(
    "make",
    [
        lambda: Orient("LPL"),
        lambda: Orient("LRS"),
        lambda: Orient("lps"),
        lambda: Orient("LPSI"),
        lambda: Resample((-1, 1, 1)),
        lambda: Resample((1, 1, 1), order=2),  # type: ignore[arg-type]
        lambda: CropOrPad((0, -4, 4)),
        lambda: PadToMultiple((0, 1, 1)),
        lambda: CropForeground(margin_mm=-1),
        lambda: CropForeground(threshold="mean"),  # type: ignore[arg-type]
    ],
)
def test_options_that_make_no_sense_are_refused(make: type[object]) -> None:
    with pytest.raises(ValidationError):
        make()


def axial(*shape: int, spacing: tuple[float, float, float] = (2.0, 1.0, 0.5)) -> Volume:
    return noise(shape, affine(spacing))


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
def test_transposed_voxels_keep_their_places(order: tuple[int, int, int]) -> None:
    volume = axial(3, 4, 5)
    after = Transpose(order).forward(volume)  # type: ignore[arg-type]
    assert np.array_equal(after.voxels, volume.voxels.transpose(order))
    for axis, old in enumerate(order):
        assert np.array_equal(after.affine[:, axis], volume.affine[:, old])
    back = Transpose(order).backward(after, volume.grid)  # type: ignore[arg-type]
    assert np.array_equal(back.voxels, volume.voxels)


def test_order_that_leaves_an_axis_out_is_refused() -> None:
    with pytest.raises(ValidationError, match="once each"):
        Transpose((0, 0, 1))


def test_first_voxel_stays_where_it_is_at_another_spacing() -> None:
    volume = axial(9, 10, 21)
    after = Resample((3.0, 0, 0.75), anchor="corner").forward(volume)
    assert np.allclose(after.affine[:3, 3], volume.affine[:3, 3])
    # 16 mm hold 5.33 steps of 3 mm and 10 mm hold 13.33 of 0.75 mm: the last one is the nearest.
    assert after.grid.shape == (6, 10, 14)
    assert np.allclose(after.spacing, (3.0, 1.0, 0.75))


def test_edge_goes_on_where_the_new_grid_reaches_beyond() -> None:
    volume = axial(2, 2, 4, spacing=(1.0, 1.0, 1.0))
    after = Resample((0, 0, 1.9), anchor="corner", value="edge").forward(volume)
    assert after.grid.shape == (2, 2, 3)
    assert np.allclose(after.voxels[..., 2], volume.voxels[..., 3])
    other = Resample((0, 0, 1.9), anchor="corner", value=-7).forward(volume)
    assert (other.voxels[..., 2] == -7).all()


def test_way_back_may_take_the_nearest_voxel() -> None:
    volume = axial(3, 3, 12, spacing=(1.0, 1.0, 1.0))
    step = Resample((0, 0, 2.5), back=0)
    after = step.forward(volume)
    labels = after.with_voxels(np.round(after.voxels)[None])
    assert np.isin(step.backward(labels, volume.grid).voxels, labels.voxels).all()
    soft = Resample((0, 0, 2.5)).backward(labels, volume.grid)
    assert not np.isin(soft.voxels, labels.voxels).all()


def test_resized_volume_keeps_its_outer_borders() -> None:
    volume = axial(4, 6, 8)
    after = Resize((0, 3, 16)).forward(volume)
    assert after.grid.shape == (4, 3, 16)
    for corner in ((-0.5, -0.5, -0.5), (3.5, 5.5, 7.5)):
        scaled = [(c + 0.5) * new / old - 0.5 for c, new, old in zip(
            corner, after.grid.shape, volume.grid.shape, strict=True
        )]  # fmt: skip
        there = patient(after.affine, np.array(scaled))
        assert np.allclose(there, patient(volume.affine, np.array(corner)))
    ramp = volume.with_voxels(np.broadcast_to(np.arange(8, dtype=np.float32), (4, 6, 8)))
    halves = Resize((0, 0, 4)).forward(ramp)
    assert np.allclose(halves.voxels[0, 0], [0.5, 2.5, 4.5, 6.5])
    assert np.allclose(
        Resize((0, 0, 4)).backward(halves, volume.grid).voxels[..., 1:7], ramp.voxels[..., 1:7]
    )


@pytest.mark.parametrize(
    ("step", "shape", "first"),
    [
        (Extent(at_least=(8, 0, 0)), (8, 6, 7), (-1, 0, 0)),
        (Extent(at_least=(8, 0, 0), sides="end"), (8, 6, 7), (0, 0, 0)),
        (Extent(at_most=(2, 3, 4)), (2, 3, 4), (1, 2, 1)),
        (Extent(at_least=(9, 9, 4), at_most=(9, 4, 4)), (9, 9, 4), (-2, -1, 1)),
        (Extent(at_least=(3, 3, 3)), (5, 6, 7), (0, 0, 0)),
    ],
)
def test_extent_keeps_the_middle(
    step: Extent, shape: tuple[int, ...], first: tuple[int, int, int]
) -> None:
    volume = axial(5, 6, 7)
    after = step.forward(volume)
    assert after.grid.shape == shape
    assert np.allclose(patient(volume.affine, np.array(first)), after.affine[:3, 3])
    kept = np.isin(after.voxels, volume.voxels)
    assert (after.voxels[~kept] == 0).all()


@pytest.mark.parametrize("sides", ["both", "end"])
def test_padding_may_repeat_the_outermost_voxels(sides: Literal["both", "end"]) -> None:
    volume = axial(3, 4, 5)
    step = PadToMultiple((4, 1, 4), value="edge", sides=sides)
    width = {"both": ((0, 1), (0, 0), (1, 2)), "end": ((0, 1), (0, 0), (0, 3))}[sides]
    assert np.array_equal(step.forward(volume).voxels, np.pad(volume.voxels, width, mode="edge"))
    assert np.array_equal(there_and_back(step, volume).voxels[0], volume.voxels)


def test_box_around_the_foreground_grows_by_voxels_and_to_multiples() -> None:
    voxels = np.zeros((6, 8, 10), np.float32)
    voxels[2:4, 0:3, 4:5] = 5
    volume = Volume(voxels, affine())
    plain = CropForeground(0.0, margin=(1, 1, 2)).forward(volume)
    assert plain.grid.shape == (4, 4, 5)
    beyond = CropForeground(0.0, margin=(1, 1, 2), beyond=True, value=-1).forward(volume)
    assert beyond.grid.shape == (4, 5, 5)
    assert (beyond.voxels[:, 0] == -1).all()
    divided = CropForeground(0.0, margin=(1, 1, 2), multiple=(3, 4, 4)).forward(volume)
    assert divided.grid.shape == (6, 4, 8)
    assert np.allclose(divided.affine[:3, 3], patient(volume.affine, np.array([0, 0, 1])))


def test_area_is_the_mean_of_what_a_voxel_touches() -> None:
    volume = axial(1, 1, 5)
    line = volume.with_voxels(np.array([[[0.0, 10, 20, 30, 40]]], np.float32))
    assert Resize((0, 0, 2), order="area").forward(line).voxels.ravel().tolist() == [10, 30]
    wide = Resize((0, 0, 10), order="area").forward(line).voxels.ravel()
    assert wide.tolist() == [0, 0, 10, 10, 20, 20, 30, 30, 40, 40]
    there = Resize((0, 0, 2), order="area", back="area")
    back = there.backward(there.forward(line), line.grid).voxels.ravel()
    assert back.tolist() == [10, 10, 20, 30, 30]
