"""Voxels land where the two affines say, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.errors import InferenceError
from node.domain.sampling import Order, nearest_axes, resampled
from node.domain.volume import Grid, Volume
from tests.steps.volumes import affine, affines, noise, sources

Permutation = tuple[int, int, int]


def scaled(
    grid: Grid, factors: tuple[float, float, float], offset: tuple[float, float, float]
) -> NDArray[np.float64]:
    step = np.diag([*factors, 1.0])
    step[:3, 3] = offset
    return np.asarray(grid.affine @ step)


def reference(
    volume: Volume, grid: Grid, order: Order, mode: str = "nearest"
) -> NDArray[np.float64]:
    """Interpolated in 3-D by scipy, point by point through patient coordinates."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    points = np.tensordot(grid.affine[:3, :3], index, 1) + grid.affine[:3, 3, None, None, None]
    back = np.linalg.inv(volume.affine)
    places = np.tensordot(back[:3, :3], points, 1) + back[:3, 3, None, None, None]
    limits = np.array(volume.grid.shape)[:, None, None, None] - 1
    return np.asarray(
        ndimage.map_coordinates(
            volume.voxels.astype(np.float64),
            np.clip(places, 0, limits),
            order=order,
            mode=mode,  # type: ignore[call-overload]
        )
    )


@st.composite
def lattice_moves(draw: st.DrawFn) -> tuple[Permutation, Permutation, Permutation, Permutation]:
    """An order of axes, flips, an integer offset and a new shape."""
    order = draw(st.permutations([0, 1, 2]))
    signs = draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    offset = draw(st.tuples(*[st.integers(-4, 8)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    return (order[0], order[1], order[2]), signs, offset, shape


@settings(max_examples=150, deadline=None)
@given(
    place=affines(),
    move=lattice_moves(),
    channels=st.integers(0, 2),
    order=st.sampled_from([0, 1, 3]),
)
def test_voxels_on_the_same_lattice_are_copied_bit_for_bit(
    place: NDArray[np.float64],
    move: tuple[Permutation, Permutation, Permutation, Permutation],
    channels: int,
    order: Order,
) -> None:
    axes, signs, offset, shape = move
    volume = noise(((channels,) if channels else ()) + (5, 6, 7), place)
    step = np.eye(4)
    step[:3, :3] = np.eye(3)[:, list(axes)] * signs
    step[:3, 3] = offset
    moved = resampled(volume, Grid(shape, place @ step), order, value=-7.5)
    index = np.indices(shape).reshape(3, -1)
    old = step[:3, :3].astype(int) @ index + np.array(offset)[:, None]
    inside = ((old >= 0) & (old < np.array([[5], [6], [7]]))).all(axis=0)
    lead = volume.voxels.shape[:-3]
    expected = np.full((*lead, index.shape[1]), -7.5, np.float32)
    expected[..., inside] = volume.voxels[(..., *old[:, inside])]
    assert np.array_equal(moved.voxels, expected.reshape(*lead, *shape))


@settings(max_examples=80, deadline=None)
@given(
    factors=st.tuples(*[st.floats(0.3, 3.0)] * 3),
    offset=st.tuples(*[st.floats(-0.4, 3.0)] * 3),
    order=st.sampled_from([1, 3]),
    place=affines(),
)
def test_changed_spacing_agrees_with_interpolation_in_three_dimensions(
    factors: tuple[float, float, float],
    offset: tuple[float, float, float],
    order: Order,
    place: NDArray[np.float64],
) -> None:
    volume = noise((6, 7, 8), place)
    # As many voxels as end on the last centre: beyond it the value of the outside begins.
    shape = tuple(
        max(1, int((n - 1 - o) / f) + 1) for n, o, f in zip((6, 7, 8), offset, factors, strict=True)
    )
    grid = Grid((shape[0], shape[1], shape[2]), scaled(volume.grid, factors, offset))
    moved = resampled(volume, grid, order)
    assert moved.voxels.dtype == np.float32
    np.testing.assert_allclose(moved.voxels, reference(volume, grid, order, "mirror"), atol=0.5)


def test_nearest_takes_the_nearest_voxel() -> None:
    volume = noise((4, 5, 6))
    grid = Grid((4, 9, 6), scaled(volume.grid, (1, 0.5, 1), (0, 0.1, 0)))
    moved = resampled(volume, grid, 0)
    assert np.array_equal(moved.voxels, volume.voxels[:, [0, 1, 1, 2, 2, 3, 3, 4, 4]])


def test_outermost_voxel_goes_on_for_half_a_voxel_and_then_comes_the_value() -> None:
    volume = Volume(np.full((1, 1, 4), 5.0, np.float32), affine())
    grid = Grid((1, 1, 10), scaled(volume.grid, (1, 1, 0.5), (0, 0, -0.75)))
    line = resampled(volume, grid, value=-1.0).voxels[0, 0]
    assert line.tolist() == [-1, 5, 5, 5, 5, 5, 5, 5, 5, -1]


def test_grid_elsewhere_in_the_patient_gets_the_value_alone() -> None:
    volume = noise((3, 4, 5))
    far = scaled(volume.grid, (1, 1, 1), (50, 0, 0))
    assert (resampled(volume, Grid((2, 2, 2), far), value=3.0).voxels == 3.0).all()


@pytest.mark.parametrize("order", [0, 1, 3])
def test_oblique_grid_agrees_with_interpolation_through_patient_coordinates(order: Order) -> None:
    volume = noise((24, 28, 30))
    turned = affine((2.0, 1.0, 1.2), (20, -15, 40))
    turned[:3, 3] += (volume.affine @ [12, 14, 15, 1])[:3] - (turned @ [2, 2, 2, 1])[:3]
    grid = Grid((5, 5, 5), turned)
    moved = resampled(volume, grid, order)
    np.testing.assert_allclose(moved.voxels, reference(volume, grid, order), atol=0.01)


def test_smoothing_keeps_the_mean_of_a_checkerboard_that_sampling_would_alias() -> None:
    board = (np.indices((4, 32, 32)).sum(axis=0) % 2 * 100.0).astype(np.float32)
    volume = Volume(board, affine((1, 1, 1)))
    grid = Grid((4, 8, 8), scaled(volume.grid, (1, 4, 4), (0, 1.0, 2.0)))
    assert set(np.unique(resampled(volume, grid).voxels)) == {0.0, 100.0}
    smooth = resampled(volume, grid, smooth=True).voxels
    np.testing.assert_allclose(smooth[:, 1:-1, 1:-1], 50, atol=1e-3)


def test_smoothing_leaves_an_axis_that_becomes_finer_alone() -> None:
    volume = noise((4, 6, 6))
    grid = Grid((4, 11, 6), scaled(volume.grid, (1, 0.5, 1), (0, 0, 0)))
    plain, smooth = resampled(volume, grid), resampled(volume, grid, smooth=True)
    assert np.array_equal(plain.voxels, smooth.voxels)


def test_linear_interpolation_of_probabilities_stays_within_their_range() -> None:
    volume = noise((5, 6, 7))
    ones = volume.with_voxels(np.ones((2, 5, 6, 7), np.float32))
    grid = Grid((9, 13, 17), scaled(volume.grid, (0.51, 0.43, 0.37), (-0.3, -0.2, -0.1)))
    np.testing.assert_allclose(resampled(ones, grid).voxels, 1, rtol=1e-6)


def test_singular_affine_is_refused_in_words() -> None:
    flat = affine()
    flat[:3, 0] = flat[:3, 1]
    with pytest.raises(InferenceError, match="singular"):
        resampled(noise((3, 4, 5), flat), Grid((3, 4, 5), affine()))


def test_sources_go_when_slices_move() -> None:
    volume = replace(noise((3, 4, 5)), sources=sources(3))
    same = scaled(volume.grid, (1, 0.5, 0.5), (0, 0, 0))
    assert len(resampled(volume, Grid((3, 8, 8), same)).sources) == 3
    for factor, shift in [(1, 1), (-1, 2), (0.5, 0)]:
        other = scaled(volume.grid, (factor, 1, 1), (shift, 0, 0))
        assert resampled(volume, Grid((3, 4, 5), other)).sources == ()


@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 3),
    tilt=st.floats(-40, 40),
)
def test_nearest_axes_are_those_before_a_tilt(
    axes: list[int], signs: tuple[int, int, int], tilt: float
) -> None:
    place = affine(angles=(tilt, 0, 0), order=(axes[0], axes[1], axes[2]), signs=signs)
    assert nearest_axes(place) == tuple(axes)


def test_axis_half_way_between_two_has_one_answer() -> None:
    assert sorted(nearest_axes(affine(angles=(45, 45, 45)))) == [0, 1, 2]


@settings(max_examples=20, deadline=None)
@given(place=affines(), other=affines(), order=st.sampled_from([0, 1]))
def test_outermost_voxels_go_on_without_end_where_no_value_is_given(
    place: NDArray[np.float64], other: NDArray[np.float64], order: Order
) -> None:
    volume = noise((4, 5, 6), place)
    grid = Grid((5, 6, 7), other)
    ours = resampled(volume, grid, order, None).voxels
    theirs = reference(volume, grid, order)
    # A nearest voxel may be another one where two are equally near.
    agreeing = np.isclose(ours, theirs, atol=0.5)
    assert agreeing.mean() > (0.97 if order == 0 else 0.999)


def test_edge_goes_on_along_shared_axes_and_past_whole_voxels() -> None:
    volume = noise((2, 3, 4), affine((1, 1, 1)))
    shifted = volume.affine.copy()
    shifted[:3, 3] += volume.affine[:3, :3] @ (0, -2, 3)
    ours = resampled(volume, Grid((2, 3, 4), shifted), value=None).voxels
    padded = np.pad(volume.voxels, ((0, 0), (2, 0), (0, 3)), mode="edge")
    assert np.array_equal(ours, padded[:, :3, 3:])
