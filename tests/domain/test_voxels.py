"""Which voxels are numbers, and which are tissue."""

from __future__ import annotations

import numpy as np
import pytest

from node.domain.errors import InferenceError
from node.domain.voxels import Voxels, finite, foreground, otsu, threshold


def head() -> Voxels:
    """Air about 10, a ball of tissue about 300, a few voxels of 60000."""
    rng = np.random.default_rng(2)
    away = np.linalg.norm(
        np.indices((20, 30, 30)) - np.array([10, 15, 15])[:, None, None, None], axis=0
    )
    voxels = np.where(away < 9, rng.normal(300, 25, away.shape), rng.normal(10, 4, away.shape))
    voxels[0, 0, :3] = 60000
    return np.asarray(voxels, np.float32)


def test_float32_passes_without_a_copy() -> None:
    voxels = np.ones((2, 3, 4), np.float32)
    assert finite(voxels) is voxels


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int32", "float64", "bool"])
def test_every_number_type_becomes_float32(dtype: str) -> None:
    voxels = finite(np.ones((2, 3, 4), dtype))
    assert voxels.dtype == np.float32
    assert (voxels == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_one_bad_voxel_is_found_anywhere(bad: float) -> None:
    voxels = np.zeros((3, 4, 5))
    voxels[2, 3, 4] = bad
    with pytest.raises(InferenceError, match="NaN or infinite"):
        finite(voxels)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (1, 1, 3, 4, 5), (0, 4, 5), (3, 4, 0)])
def test_array_that_is_no_volume_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InferenceError, match="shape"):
        finite(np.zeros(shape, np.float32))


def test_complex_voxels_are_refused() -> None:
    with pytest.raises(InferenceError, match="complex64"):
        finite(np.zeros((2, 2, 2), np.complex64))


def test_otsu_parts_air_from_tissue_despite_a_few_very_bright_voxels() -> None:
    assert 25 < otsu(head()) < 225


def test_otsu_of_two_values_lies_between_them() -> None:
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[2:] = 100
    level = otsu(voxels)
    assert 0 <= level < 100
    assert np.array_equal(voxels > level, voxels == 100)


def test_otsu_of_a_constant_volume_is_its_value() -> None:
    assert otsu(np.full((3, 3, 3), 42, np.float32)) == 42


def test_fraction_is_of_the_99th_percentile_of_all_voxels() -> None:
    voxels = head()
    level = 0.15 * np.percentile(voxels, 99)
    assert threshold(voxels, 0.15) == pytest.approx(level)
    assert np.array_equal(foreground(voxels, 0.15), voxels[voxels > level])


def test_rules_choose_what_they_say() -> None:
    voxels = head() - 10
    assert foreground(voxels, "all").size == voxels.size
    assert np.array_equal(foreground(voxels, "positive"), voxels[voxels > 0])
    assert 0.9 < foreground(voxels, "otsu").size / (voxels > 150).sum() < 1.1


def test_rule_that_leaves_nothing_gives_everything() -> None:
    assert foreground(np.full((2, 2, 2), -1, np.float32), "positive").size == 8
