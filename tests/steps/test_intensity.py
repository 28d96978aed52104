"""Grey values become what the options say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from node.domain.errors import InferenceError
from node.domain.volume import Volume
from node.steps.intensity import (
    Cast,
    Clip,
    GreyWindow,
    Percentile,
    Rescale,
    Standardise,
    ZScore,
)
from tests.steps.volumes import affine, noise


def line(*values: float, dtype: str = "float32") -> Volume:
    return Volume(np.array(values, dtype).reshape(1, 1, -1), affine())


def values(volume: Volume) -> list[float]:
    return [float(v) for v in volume.voxels.ravel()]


def test_window_maps_its_ends_to_0_and_1_and_clips() -> None:
    after = GreyWindow(centre=40, width=80).forward(line(-1000, 0, 20, 40, 80, 3000, dtype="int16"))
    assert values(after) == [0, 0, 0.25, 0.5, 1, 1]


def test_clip_holds_values_within_its_range() -> None:
    assert values(Clip(low=-5, high=5).forward(line(-6, -5, 0, 5.5))) == [-5, -5, 0, 5]


def test_rescale_maps_its_range_and_does_not_clip() -> None:
    step = Rescale(low=-1000, high=1000, onto=(-1, 1))
    assert values(step.forward(line(-2000, -1000, 0, 500, 1000))) == [-2, -1, 0, 0.5, 1]


def test_percentiles_become_0_and_1() -> None:
    volume = noise((5, 10, 10))
    low, high = np.percentile(volume.voxels, [5, 90])
    after = Percentile(lower=5, upper=90).forward(volume).voxels
    np.testing.assert_allclose(
        after, np.clip((volume.voxels - low) / (high - low), 0, 1), atol=1e-6
    )


def test_percentiles_are_those_of_the_foreground() -> None:
    after = Percentile(lower=0, upper=100, foreground="positive").forward(
        line(-50, -10, 100, 150, 200)
    )
    assert values(after) == [0, 0, 0, 0.5, 1]


@pytest.mark.parametrize("rule", ["all", "positive", "otsu", 0.15])
def test_zscore_makes_mean_0_and_deviation_1_over_the_foreground(rule: str | float) -> None:
    rng = np.random.default_rng(4)
    voxels = np.abs(rng.normal(0, 8, (6, 20, 20)))
    voxels[:, 5:15, 5:15] = rng.normal(400, 60, (6, 10, 10))
    tissue = {
        "all": voxels > -1,
        "positive": voxels > 0,
        "otsu": voxels > 150,
        0.15: voxels > 0.15 * np.percentile(voxels, 99),
    }[rule]
    after = ZScore(foreground=rule).forward(Volume(voxels, affine())).voxels  # type: ignore[arg-type]
    assert abs(float(after[tissue].mean())) < 1e-4
    assert float(after[tissue].std()) == pytest.approx(1, abs=1e-4)


def test_zscore_clips_when_asked() -> None:
    volume = noise((5, 10, 10))
    volume.voxels[0, 0, 0] = 1e6
    assert ZScore(clip=5).forward(volume).voxels.max() == 5
    assert ZScore().forward(volume).voxels.max() > 5


def test_volume_without_contrast_becomes_0() -> None:
    for step in (ZScore(), Percentile(), ZScore(foreground="otsu"), Percentile(foreground=0.15)):
        assert values(step.forward(line(7, 7, 7))) == [0, 0, 0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("uint8", [0, 0, 2, 2, 255]),
        ("int16", [-32768, -1, 2, 2, 32767]),
        ("float16", [-65504, -1.2001953125, 1.5, 2.5, 65504]),
        ("float32", [np.float32(-1e6), np.float32(-1.2), 1.5, 2.5, np.float32(1e6)]),
    ],
)
def test_cast_rounds_and_holds_within_the_type(dtype: str, expected: list[float]) -> None:
    after = Cast(dtype=dtype).forward(line(-1e6, -1.2, 1.5, 2.5, 1e6))  # type: ignore[arg-type]
    assert after.voxels.dtype == dtype
    assert values(after) == expected


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8))
def test_cast_to_int32_never_wraps_around(numbers: list[float]) -> None:
    after = Cast(dtype="int32").forward(line(*numbers))
    for number, cast in zip(numbers, values(after), strict=True):
        assert abs(cast - min(max(number, -(2**31)), 2**31 - 1)) <= 0.5


def test_prediction_passes_backward_unchanged() -> None:
    prediction = noise((2, 5, 6, 7))
    assert ZScore().backward(prediction, prediction.grid) is prediction


def test_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(InferenceError, match=r"\(5, 6, 7\)"):
        Clip(0, 1).backward(noise((2, 5, 6, 7)), noise((5, 6, 8)).grid)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GreyWindow(centre=0, width=0),
        lambda: Clip(low=1, high=1),
        lambda: Rescale(low=2, high=1),
        lambda: Percentile(lower=60, upper=40),
        lambda: Percentile(upper=101),
        lambda: ZScore(foreground=1.5),
        lambda: ZScore(foreground="bright"),  # type: ignore[arg-type]
        lambda: ZScore(clip=-1),
        lambda: Cast(dtype="uint16"),  # type: ignore[arg-type]
        lambda: GreyWindow(centre=float("nan"), width=1),
    ],
)
def test_options_that_make_no_sense_are_refused(make: type[object]) -> None:
    with pytest.raises(ValidationError):
        make()


def reference(voxels: NDArray[np.float64]) -> NDArray[np.float32]:
    """The normalisation that the brain engine was trained with, written down on its own."""
    grid = voxels.astype(np.float32)
    foreground = grid[grid > 0.15 * np.percentile(grid, 99)]
    return np.asarray(np.clip((grid - foreground.mean()) / foreground.std(), -5, 5), np.float32)


def test_the_training_normalisation_of_the_brain_engine_can_be_expressed_exactly() -> None:
    voxels = np.random.default_rng(1).gamma(1.2, 90, (8, 32, 32))
    after = ZScore(foreground=0.15, clip=5).forward(Volume(voxels, affine()))
    assert np.array_equal(after.voxels, reference(voxels))


def test_percentiles_may_become_other_values_and_the_line_may_go_on() -> None:
    volume = line(0, 10, 20, 30, 40)
    assert values(Percentile(0, 100, onto=(-1, 1)).forward(volume)) == [-1, -0.5, 0, 0.5, 1]
    assert values(Percentile(25, 75).forward(volume)) == [0, 0, 0.5, 1, 1]
    assert values(Percentile(25, 75, clip=False).forward(volume)) == [-0.5, 0, 0.5, 1, 1.5]
    assert values(Percentile(onto=(-1, 1), clip=False).forward(line(7, 7))) == [-1, -1]


def test_zeros_stay_zeros_where_they_do_not_count() -> None:
    after = Standardise(over="nonzero").forward(line(0, 2, 0, 4, 6))
    assert after.voxels.ravel()[[0, 2]].tolist() == [0, 0]
    deviation = np.std([2, 4, 6])
    assert after.voxels.ravel()[[1, 3, 4]] == pytest.approx([-2 / deviation, 0, 2 / deviation])
    assert values(Standardise(over="nonzero").forward(line(0, 0))) == [0, 0]


def test_mean_and_deviation_of_a_training_set_are_taken() -> None:
    assert values(Standardise(mean=10, deviation=5).forward(line(0, 10, 20))) == [-2, 0, 2]
    assert values(Standardise(mean=10).forward(line(3, 3))) == [-7, -7]
    assert values(Standardise().forward(line(3, 3))) == [0, 0]


def test_sum_over_a_large_volume_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    voxels = (rng.normal(0, 1, (40, 200, 200)) + 4096).astype(np.float32)
    after = Standardise().forward(Volume(voxels, affine()))
    assert abs(float(after.voxels.mean(dtype=np.float64))) < 1e-4
    assert float(after.voxels.std(dtype=np.float64)) == pytest.approx(1, abs=1e-4)
