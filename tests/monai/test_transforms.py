"""Which options of MONAI's transforms are translated, and which are refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from node.monai.expression import evaluate
from node.monai.transforms import PREPARATIONS, CannotTranslate, Options, Row, plain, turned_by
from node.monai.workflow import Component, Unknown


def rows(name: str, several: bool = False, index: int = 0, **options: Any) -> list[Row]:
    asked = Options(Component(name, "pre::0", options), several, index)
    made = PREPARATIONS[name](asked)
    asked.finish()
    return made


def refused(name: str, **options: Any) -> str:
    with pytest.raises(CannotTranslate) as error:
        rows(name, **options)
    return str(error.value)


def test_axes_are_named_from_the_last_to_the_first() -> None:
    assert rows("Orientation", axcodes="PIR") == [{"kind": "orient", "axes": "RIP"}]
    assert rows("Orientation", as_closest_canonical=True) == [{"kind": "orient", "axes": "SAR"}]
    assert "axcodes" in refused("Orientation", axcodes="RA")


@pytest.mark.parametrize(
    ("pixdim", "wanted"),
    [([1.5, 1.5, 2], [1.5, 1.5, 2.0]), (1.2, [1.2] * 3), ([1, -1, 0], [1.0, 0.0, 0.0])],
)
def test_spacing_is_per_axis_as_monai_fills_it_up(pixdim: Any, wanted: list[float]) -> None:
    assert rows("Spacing", pixdim=pixdim)[0]["spacing"] == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixdim": [1, 1, 1], "diagonal": True}, "another grid"),
        ({"pixdim": [1, 1, 1], "scale_extent": True}, "another grid"),
        ({"pixdim": [1, 1, 1], "padding_mode": "zeros"}, "its padding_mode is 'zeros'"),
        ({"pixdim": [1, 1, 1], "mode": "bicubic"}, "its mode is 'bicubic'"),
        ({"pixdim": [1, 1, 1], "mode": 3}, "its mode is '3'"),
        ({"pixdim": [1, 1, 1], "max_pixdim": [3, 3, 3]}, "its max_pixdim"),
        ({"pixdim": [1, 1]}, "two axes"),
        ({"pixdim": "a"}, "not one number per axis"),
        ({"pixdim": Unknown("$f()", "a call of f")}, "its pixdim is '$f()' (a call of f)"),
        ({"pixdim": [1, 1, 1], "odd": 1}, "its option odd is not known"),
    ],
)
def test_spacing_that_no_step_does_is_refused(options: dict[str, Any], words: str) -> None:
    assert words in refused("Spacing", **options)


def test_list_over_keys_is_read_at_our_key() -> None:
    modes = ["bilinear", "nearest"]
    assert "order" not in rows("Spacing", pixdim=[1, 1, 1], mode=modes)[0]
    assert rows("Spacing", index=1, pixdim=[1, 1, 1], mode=modes)[0]["order"] == 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ScaleIntensityRange", {"a_min": 1, "a_max": 1}, "is empty"),
        ("ScaleIntensityRange", {"a_min": 0, "a_max": 1, "clip": True}, "without b_min"),
        (
            "ScaleIntensityRange",
            {"a_min": 0, "a_max": 1, "b_min": 1, "b_max": 0, "clip": True},
            "turned round",
        ),
        ("ScaleIntensityRange", {"a_max": 1}, "it has no a_min"),
        ("ScaleIntensityRange", {"a_min": "x", "a_max": 1}, "not a number"),
        ("ScaleIntensityRangePercentiles", {"lower": 1, "upper": 99}, "no b_min"),
        ("NormalizeIntensity", {"subtrahend": [1, 2]}, "differs between channels"),
        ("NormalizeIntensity", {"nonzero": "False"}, "MONAI takes for true"),
        ("ThresholdIntensity", {"threshold": 3, "cval": 0}, "not the threshold"),
        ("CropForeground", {"select_fn": Unknown("$f", "a name")}, "its select_fn"),
        ("CropForeground", {"channel_indices": [0]}, "its channel_indices"),
        ("CropForeground", {"margin": 1, "mode": "reflect"}, "its mode is 'reflect'"),
        ("SpatialPad", {"spatial_size": [9, 9, 9], "mode": "minimum"}, "'minimum'"),
        ("SpatialPad", {"spatial_size": [9, 9, 9], "method": "odd"}, "its method"),
        ("Resize", {"spatial_size": [9, 9, 9], "mode": "bicubic"}, "its mode is 'bicubic'"),
        ("Resize", {"spatial_size": [9, 9, 9], "mode": "nearest"}, "beside the centre"),
        ("Resize", {"spatial_size": 9, "mode": "bilinear", "size_mode": "longest"}, "size_mode"),
        ("Resize", {"spatial_size": 9, "mode": "bilinear", "align_corners": True}, "align_corners"),
        ("CastToType", {"dtype": "int16"}, "its dtype is int16"),
    ],
)
def test_option_that_no_step_does_is_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    assert words in refused(name, **options)


def test_statistics_over_all_channels_are_taken_over_all() -> None:
    assert rows("ScaleIntensity", several=True)[0]["joint"] is True
    assert "joint" not in rows("ScaleIntensity", several=True, channel_wise=True)[0]
    assert "joint" not in rows("ScaleIntensity")[0]


def test_box_that_is_not_filled_up_needs_no_padding() -> None:
    made = rows("CropForeground", source_key="image", mode=["minimum"])
    assert made == [{"kind": "crop_foreground", "threshold": 0.0}]


def test_margin_without_a_word_on_the_border_is_a_guess() -> None:
    assert rows("CropForeground", margin=3)[0]["beyond"].value is True
    assert rows("CropForeground", margin=3, allow_smaller=False)[0]["beyond"] is True
    assert "beyond" not in rows("CropForeground", margin=3, allow_smaller=True)[0]


def test_foreground_may_be_written_as_a_function() -> None:
    function = evaluate("lambda x: x > -900", str)
    assert rows("CropForeground", select_fn=function)[0]["threshold"] == -900


def test_number_types_that_only_hold_more_digits_change_nothing() -> None:
    for dtype in ("float32", "torch.float32", "numpy.float64", None):
        assert rows("CastToType", dtype=dtype) == []


def test_endings_of_dictionary_transforms_are_left_out() -> None:
    for name in ("Spacing", "Spacingd", "SpacingD", "SpacingDict"):
        assert plain(name, PREPARATIONS) == "Spacing"
    assert plain("Oddd", PREPARATIONS) == "Oddd"


def test_reader_that_turns_axes_is_seen() -> None:
    assert turned_by(Component("LoadImaged", "a", {"reverse_indexing": True})) == "reverse_indexing"
    assert turned_by(Component("LoadImaged", "a", {"affine_lps_to_ras": True})) == ""
    assert turned_by(Component("Spacingd", "a", {"reverse_indexing": True})) == ""
