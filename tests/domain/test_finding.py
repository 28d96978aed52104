"""A region is kept as its box and is the same voxels on the grid."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from node.domain.finding import Region

MASKS = array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(lambda s: arrays(np.bool_, s))


@given(MASKS)
def test_region_is_the_mask_that_it_was_made_of(mask: NDArray[np.bool_]) -> None:
    region = Region.of(mask)
    assert np.array_equal(region.whole(), mask)
    assert region.shape == mask.shape
    assert region.size == mask.sum()
    assert list(region.slices) == np.flatnonzero(mask.any(axis=(1, 2))).tolist()
    for index, plane in enumerate(mask):
        assert np.array_equal(region.on_slice(index), plane)


@given(MASKS)
def test_box_is_as_small_as_it_can_be(mask: NDArray[np.bool_]) -> None:
    region = Region.of(mask)
    if not mask.any():
        assert region.voxels.size == 0
        return
    places = np.argwhere(mask)
    assert region.start == tuple(places.min(axis=0))
    assert region.stop == tuple(places.max(axis=0) + 1)


@given(st.data(), MASKS)
def test_region_does_not_hold_the_whole_grid_in_memory(
    data: st.DataObject, mask: NDArray[np.bool_]
) -> None:
    place = tuple(data.draw(st.integers(0, n - 1)) for n in mask.shape)
    one = np.zeros(mask.shape, bool)
    one[place] = True
    region = Region.of(one)
    assert region.voxels.nbytes == 1
    assert region.voxels.base is None
