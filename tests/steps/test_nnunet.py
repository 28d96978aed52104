"""nnU-Net's steps do what nnU-Net's own functions did, and find the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from node.domain.errors import InferenceError
from node.domain.volume import Volume
from node.steps.nnunet import NnunetCrop, NnunetNormalise, NnunetResample, Regions
from tests.steps.volumes import affine, affines, noise

STORED = Path(__file__).parent.parent / "imports" / "fixtures" / "nnunet" / "resampling.npz"
LINEAR = {"order": 1}
CASES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], dict[str, Any]]] = {
    "cubic": ((1.5, 1.0, 1.1), (1.1, 1.3, 0.9), {}),
    "half": ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), {}),
    "coarse": ((5.0, 1.0, 1.1), (4.0, 1.3, 0.9), {}),
    "coarse-middle": ((1.0, 4.0, 0.9), (1.2, 6.0, 1.0), {}),
    "coarse-last": ((1.0, 1.0, 3.0), (0.9, 1.1, 4.5), {"order_z": 1, "order_back_z": 1}),
    "coarse-wanted": ((2.0, 1.0, 1.0), (3.5, 1.0, 1.0), {}),
    "two-coarse": ((1.0, 4.0, 4.0), (0.8, 3.0, 3.5), {}),
    "never": ((4.0, 1.0, 1.0), (3.0, 1.2, 1.1), {"separate": "never"}),
    "always": ((1.4, 1.0, 1.0), (0.8, 1.2, 1.1), {"separate": "always"}),
    "torch": ((1.5, 1.0, 1.1), (1.1, 1.3, 0.9), {"order": 1, "separate": "never"}),
    "torch-coarse": ((5.0, 1.0, 1.1), (4.0, 1.3, 0.9), LINEAR),
}
"""Spacing, wanted spacing, options; as in ``nnunet_reference.py``."""


@pytest.fixture(scope="module")
def stored() -> dict[str, NDArray[np.float32]]:
    with np.load(STORED) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", sorted(CASES))
def test_resampling_is_nnunets_own_there_and_back(
    case: str, stored: dict[str, NDArray[np.float32]]
) -> None:
    spacing, wanted, options = CASES[case]
    step = NnunetResample(spacing=wanted, **options)
    before = Volume(stored[f"{case}-source"], affine(spacing))
    after = step.forward(before)
    # Its torch functions compute in single precision.
    exact = 2e-5 if case.startswith("torch") else 1e-6
    np.testing.assert_allclose(after.voxels, stored[f"{case}-there"], rtol=0, atol=100 * exact)
    back = step.backward(after, before.grid)
    np.testing.assert_allclose(back.voxels, stored[f"{case}-back"], rtol=0, atol=100 * exact)
    assert np.array_equal(back.affine, before.affine)


@settings(max_examples=30, deadline=None)
@given(place=affines(), shape=st.tuples(*[st.integers(1, 9)] * 3))
def test_resampling_keeps_the_extent_of_the_volume(
    place: NDArray[np.float64], shape: tuple[int, int, int]
) -> None:
    before = noise(shape, place)
    after = NnunetResample(spacing=(1.7, 0, 1.2)).forward(before)
    for corner in (0, 1):
        edge = np.array(shape) * corner - 0.5
        moved = np.array(after.grid.shape) * corner - 0.5
        np.testing.assert_allclose(
            (after.affine @ [*moved, 1])[:3], (place @ [*edge, 1])[:3], atol=1e-6
        )


def test_voxels_are_counted_by_the_spacing_that_a_nifti_file_would_have_held() -> None:
    """In single precision: so direction cosines' last bits count for nothing, as in nnU-Net."""
    volume = noise((25, 5, 4), affine((1.5 * (1 + 1e-12), 1.2, 1)))
    assert 1.2 / 0.8 * 5 < 7.5
    after = NnunetResample(spacing=(3.0, 0.8, 1.0)).forward(volume)
    assert after.grid.shape[:2] == (12, 8)


def test_prediction_of_another_shape_is_refused() -> None:
    step = NnunetResample(spacing=(1.0, 1.0, 1.0))
    with pytest.raises(InferenceError, match="this step makes"):
        step.backward(noise((2, 5, 6, 7)), noise((5, 6, 8)).grid)
    with pytest.raises(InferenceError, match="before this step"):
        NnunetNormalise(schemes=("none",)).backward(noise((1, 5, 6, 7)), noise((5, 6, 8)).grid)


def test_spacing_of_a_wrong_unit_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(InferenceError, match="units"):
        NnunetResample(spacing=(0.001, 0.001, 0.001)).forward(noise((40, 40, 40)))


def test_crop_keeps_what_is_not_0_in_any_channel() -> None:
    voxels = np.zeros((2, 6, 7, 8), np.float32)
    voxels[0, 1, 2, 3] = -5
    voxels[1, 4, 5, 3] = 2
    before = Volume(voxels, affine())
    after = NnunetCrop().forward(before)
    assert after.grid.shape == (4, 4, 1)
    back = NnunetCrop().backward(after.with_voxels(np.ones((1, 4, 4, 1), np.float32)), before.grid)
    assert back.voxels.sum() == 16
    assert back.voxels[0, 1:5, 2:6, 3].all()


def test_crop_of_nothing_but_0_keeps_the_volume() -> None:
    assert NnunetCrop().forward(Volume(np.zeros((3, 4, 5)), affine())).grid.shape == (3, 4, 5)


def test_ct_is_clipped_and_scaled_by_the_training_images() -> None:
    step = NnunetNormalise(
        schemes=("ct",), low=(-100.0,), high=(200.0,), mean=(50.0,), deviation=(25.0,)
    )
    after = step.forward(Volume(np.array([[[-1000.0, 50.0, 100.0, 900.0]]]), affine()))
    assert after.voxels.ravel().tolist() == [-6, 0, 2, 6]


def test_zscore_of_the_object_counts_its_holes_and_leaves_the_air() -> None:
    voxels = np.zeros((2, 5, 5, 5), np.float32)
    voxels[0, 1:4, 1:4, 1:4] = np.arange(27).reshape(3, 3, 3) + 10
    voxels[0, 2, 2, 2] = 0
    after = NnunetNormalise(schemes=("zscore", "none"), masked=(True, False)).forward(
        Volume(voxels, affine())
    )
    inside = after.voxels[0, 1:4, 1:4, 1:4]
    assert abs(float(inside.mean())) < 1e-6
    assert float(inside.std()) == pytest.approx(1, abs=1e-5)
    assert after.voxels[0].sum() == pytest.approx(inside.sum(), abs=1e-4)
    assert not after.voxels[1].any()


def test_zscore_of_the_whole_image_counts_the_air() -> None:
    voxels = noise((5, 6, 7)).voxels
    voxels[:2] = 0
    after = NnunetNormalise(schemes=("zscore",)).forward(Volume(voxels, affine())).voxels
    assert abs(float(after.mean())) < 1e-6
    assert float(after.std()) == pytest.approx(1, abs=1e-5)


def test_unit_and_rgb_scale_as_nnunet_does() -> None:
    volume = Volume(np.array([[[[-2.0, 0, 6]]], [[[0.0, 51, 255]]]]), affine())
    after = NnunetNormalise(schemes=("unit", "rgb")).forward(volume).voxels
    np.testing.assert_allclose(after.ravel(), [0, 0.25, 1, 0, 0.2, 1], atol=1e-7)


def test_channels_that_were_not_stated_are_refused() -> None:
    with pytest.raises(InferenceError, match="normalises 2 channels and was given 3"):
        NnunetNormalise(schemes=("ct", "none")).forward(noise((3, 4, 4, 4)))
    with pytest.raises(ValidationError, match="each list"):
        NnunetNormalise(schemes=("ct", "ct", "ct"), low=(1.0, 2.0))


def test_later_region_paints_over_an_earlier_one() -> None:
    probability = np.array([[0.9, 0.9, 0.5, 0.2], [0.6, 0.5, 0.51, 0.1]], np.float32)
    after = Regions(labels=(2, 1)).apply(Volume(probability[:, None, None], affine()))
    assert after.voxels.ravel().tolist() == [1, 2, 1, 0]


def test_regions_need_one_label_for_each_channel() -> None:
    with pytest.raises(InferenceError, match="2 channels"):
        Regions(labels=(2, 1)).apply(noise((3, 4, 4, 4)))
