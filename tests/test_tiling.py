"""Blocks lie and weigh as ours do, or as other tools' do, to the voxel."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.sight import Window, tile
from node.tiling import Placement, Weighing, tiled

LENGTH = st.integers(1, 60)
BLOCK = st.integers(1, 32)
OVERLAP = st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75])
PLACEMENTS: tuple[Placement, ...] = ("even", "rounded", "stride")


def starts(length: int, block: int, overlap: float, placement: Placement) -> tuple[int, ...]:
    return tiled((length, 1, 1), (block, 1, 1), overlap, placement, Weighing()).starts[0]


@settings(max_examples=200, deadline=None)
@given(LENGTH, BLOCK, OVERLAP, st.sampled_from(PLACEMENTS))
def test_every_placement_covers_the_axis_and_overlaps_as_asked(
    length: int, block: int, overlap: float, placement: Placement
) -> None:
    found = starts(length, block, overlap, placement)
    assert found[0] == 0
    assert found[-1] + block == max(length, block)
    assert list(found) == sorted(set(found))
    step = max(1, block * (1 - overlap))
    # Two neighbours may be rounded away from each other, half a voxel each.
    assert all(b - a < step + 1 for a, b in zip(found, found[1:], strict=False))


@settings(max_examples=200, deadline=None)
@given(LENGTH, BLOCK, OVERLAP)
def test_stride_is_a_fixed_step_with_the_last_block_moved_back(
    length: int, block: int, overlap: float
) -> None:
    """MONAI's rule, written down as its documentation has it."""
    if length <= block:
        assert starts(length, block, overlap, "stride") == (0,)
        return
    step = max(1, int(block * (1 - overlap)))
    expected = []
    for number in range(ceil(length / step)):
        begin = number * step
        expected.append(begin - max(begin + block - length, 0))
        if begin + block >= length:
            break
    assert starts(length, block, overlap, "stride") == tuple(expected)


@settings(max_examples=200, deadline=None)
@given(LENGTH, st.integers(2, 32))
def test_rounded_steps_may_be_fractions_of_a_voxel(length: int, block: int) -> None:
    """nnU-Net's rule for half overlapping blocks."""
    room = max(length, block) - block
    count = ceil(room / (block * 0.5)) + 1
    step = room / (count - 1) if count > 1 else 0.0
    expected = tuple(int(np.round(step * number)) for number in range(count))
    assert starts(length, block, 0.5, "rounded") == expected


def gaussian(block: tuple[int, int, int], sigma: float, *, on_voxel: bool) -> NDArray[np.float64]:
    """The importance of a block's voxels, each by itself."""
    centre = [n // 2 if on_voxel else (n - 1) / 2 for n in block]
    away = [
        (axis - c) / (sigma * n)
        for axis, c, n in zip(np.indices(block), centre, block, strict=True)
    ]
    return np.asarray(np.exp(-0.5 * np.square(away).sum(axis=0)))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(PLACEMENTS),
    st.sampled_from([0.125, 0.3]),
    st.sampled_from([0.0, 0.001, 0.4]),
    st.booleans(),
)
def test_weights_are_those_of_a_plain_reference_and_add_up_to_1(
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    placement: Placement,
    sigma: float,
    floor: float,
    on_voxel: bool,
) -> None:
    tiling = tiled(shape, block, 0.5, placement, Weighing(sigma, on_voxel, floor))
    importance = np.maximum(gaussian(block, sigma, on_voxel=on_voxel), floor)
    total = np.zeros(tiling.shape)
    for place in tiling.places():
        total[tiling.region(place)] += importance
    summed = np.zeros(tiling.shape)
    for place in tiling.places():
        weight = tiling.weight(place)
        expected = importance / total[tiling.region(place)]
        np.testing.assert_allclose(weight, expected, rtol=2e-6, atol=1e-12)
        summed[tiling.region(place)] += weight
    np.testing.assert_allclose(summed, 1, atol=1e-5)


def test_floor_that_no_voxel_reaches_changes_nothing() -> None:
    window = Window("patch", patch=(8, 8, 8))
    plain, floored = (tile((20, 20, 20), replace(window, floor=floor)) for floor in (0.0, 1e-12))
    assert plain.separable
    assert floored.separable
    assert not tile((20, 20, 20), replace(window, floor=0.001)).separable
    assert np.array_equal(plain.weight((1, 1, 1)), floored.weight((1, 1, 1)))


def test_constant_importance_is_a_plain_mean() -> None:
    tiling = tile((1, 1, 6), Window("patch", patch=(1, 1, 4), overlap=0.5, importance="constant"))
    assert tiling.starts[2] == (0, 2)
    assert tiling.weight((0, 0, 0)).ravel().tolist() == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(("centre", "peak"), [("middle", [3, 4]), ("voxel", [4])])
def test_peak_lies_in_the_middle_or_on_a_voxel(centre: str, peak: list[int]) -> None:
    line = Weighing(on_voxel=centre == "voxel").along(8)
    assert np.flatnonzero(line == line.max()).tolist() == peak
    assert Window("patch", centre=centre).weighing.on_voxel == (centre == "voxel")  # type: ignore[arg-type]
