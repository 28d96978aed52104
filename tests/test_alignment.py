"""Series of one frame of reference meet at the same place of the patient, or are refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from node.alignment import aligned, gathered, same
from node.domain.errors import InferenceError
from node.domain.volume import Affine, Grid, Volume
from tests.test_engine import FRAME, ORDERS

CENTRE = np.array([12.0, -7.0, 30.0])
"""The middle of what both series show, in patient coordinates."""


def lattice(
    order: tuple[Sequence[int], Sequence[int]],
    angles: Sequence[float],
    spacing: Sequence[float],
    shape: tuple[int, int, int],
) -> Grid:
    """Any order and sign of axes, turned by some degrees about the centre."""
    cosines = np.zeros((3, 3))
    cosines[list(order[0]), [0, 1, 2]] = order[1]
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ cosines * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


GRIDS = st.builds(
    lattice,
    st.sampled_from(ORDERS),
    st.tuples(*[st.floats(-30, 30)] * 3),
    st.tuples(*[st.floats(0.6, 4)] * 3),
    st.tuples(*[st.integers(5, 12)] * 3),
)
SLOPES = st.tuples(*[st.floats(-3, 3)] * 3)


def places(grid: Grid) -> NDArray[np.float64]:
    """Patient coordinates of every voxel's centre, (k, j, i, 3)."""
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    return np.asarray(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])


def world(at: NDArray[np.float64], slopes: Sequence[float]) -> NDArray[np.float64]:
    """A quantity that rises evenly through the patient: linear interpolation keeps it exactly."""
    return np.asarray((at - CENTRE) @ np.array(slopes) + 50.0)


def sampled(grid: Grid, slopes: Sequence[float], frame: str = FRAME) -> Volume:
    return Volume(world(places(grid), slopes).astype(np.float32), grid.affine, frame)


def inside(grid: Grid, at: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Places that lie between the voxels' centres of a grid."""
    index = np.linalg.solve(grid.affine[:3, :3], (at - grid.affine[:3, 3]).reshape(-1, 3).T)
    lengths = np.array(grid.shape)[:, None] - 1
    held = ((index > 0.01) & (index < lengths - 0.01)).all(axis=0)
    return np.asarray(held.reshape(at.shape[:3]))


@settings(max_examples=80, deadline=None)
@given(GRIDS, GRIDS, SLOPES)
def test_one_place_has_one_value_on_both_grids(
    reference: Grid, own: Grid, slopes: Sequence[float]
) -> None:
    volumes = {"flair": sampled(reference, slopes), "t1": sampled(own, slopes)}
    brought = aligned(gathered(volumes, ("flair", "t1")))["t1"]
    assert same(brought.grid, reference)
    at = places(reference)
    seen = inside(own, at)
    np.testing.assert_allclose(brought.voxels[seen], world(at, slopes)[seen], atol=0.05)


@settings(max_examples=40, deadline=None)
@given(GRIDS, GRIDS, SLOPES)
def test_what_the_other_series_does_not_show_is_its_lowest_value(
    reference: Grid, own: Grid, slopes: Sequence[float]
) -> None:
    other = sampled(own, slopes)
    brought = aligned({"flair": sampled(reference, slopes), "t1": other})["t1"]
    index = np.linalg.solve(
        own.affine[:3, :3], (places(reference) - own.affine[:3, 3]).reshape(-1, 3).T
    )
    lengths = np.array(own.shape)[:, None]
    beyond = ((index < -1.01) | (index > lengths + 0.01)).any(axis=0).reshape(reference.shape)
    assert (brought.voxels[beyond] == other.voxels.min()).all()


@settings(max_examples=30, deadline=None)
@given(GRIDS, SLOPES)
def test_series_on_the_same_grid_is_taken_bit_for_bit(grid: Grid, slopes: Sequence[float]) -> None:
    one, other = sampled(grid, slopes), sampled(grid, slopes[::-1])
    brought = aligned({"flair": one, "t1": other})
    assert np.array_equal(brought["t1"].voxels, other.voxels)
    assert np.array_equal(brought["flair"].voxels, one.voxels)


def moved(affine: Affine, by: float) -> Affine:
    away = affine.copy()
    away[:3, 3] += by
    return away


def test_series_elsewhere_is_refused_and_one_that_touches_is_not() -> None:
    grid = lattice(ORDERS[0], (0, 0, 0), (1, 1, 1), (5, 5, 5))
    reference = sampled(grid, (1, 1, 1))
    for by, fits in ((4.4, True), (5.6, False), (-4.4, True), (-5.6, False)):
        other = Volume(reference.voxels, moved(grid.affine, by), FRAME)
        if fits:
            aligned({"flair": reference, "t1": other})
            continue
        with pytest.raises(InferenceError, match="role t1: it covers no part of the series of fl"):
            aligned({"flair": reference, "t1": other})


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ((FRAME, "9.9"), "its frame of reference is another than that of flair: the two series"),
        ((FRAME, ""), "its frame of reference is unknown, not that of flair"),
        (("", ""), "its frame of reference is unknown, not that of flair"),
    ],
)
def test_series_of_another_frame_is_refused_before_anything_is_computed(
    frames: tuple[str, str], words: str
) -> None:
    grid = lattice(ORDERS[0], (0, 0, 0), (1, 1, 1), (5, 5, 5))
    flair, t1 = (sampled(grid, (1, 1, 1), frame) for frame in frames)
    with pytest.raises(InferenceError, match=f"volume of role t1: {words}") as refused:
        gathered({"flair": flair, "t1": t1}, ("flair", "t1"))
    assert "Register them first, or send series of one examination" in str(refused.value)


def test_role_without_a_volume_is_named() -> None:
    grid = lattice(ORDERS[0], (0, 0, 0), (1, 1, 1), (5, 5, 5))
    with pytest.raises(InferenceError, match="no volume was given for the role t1, t2"):
        gathered({"flair": sampled(grid, (1, 1, 1))}, ("flair", "t1", "t2"))
