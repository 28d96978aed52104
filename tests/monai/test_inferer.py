"""MONAI's inferers as windows."""

from __future__ import annotations

from typing import Any

import pytest

from node.monai.inferer import INFERERS, View
from node.monai.transforms import CannotTranslate, Options
from node.monai.workflow import Component
from node.sight import Window


def view(name: str, **options: Any) -> View:
    asked = Options(Component(name, "inferer", options))
    made = INFERERS[name](asked)
    asked.finish()
    return made


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"roi_size": [96, 96, 48]}, {"patch": [96, 96, 48], "overlap": 0.25, "batch": 1}),
        ({"roi_size": 64, "overlap": [0.5] * 3}, {"patch": [64] * 3, "overlap": 0.5}),
        ({"roi_size": [96, -1, 48]}, {"patch": [96, 0, 48]}),
        ({"roi_size": 8}, {"importance": "constant", "fill": 0.0, "placement": "stride"}),
        (
            {"roi_size": 8, "mode": "gaussian", "sigma_scale": 0.2},
            {"importance": "gaussian", "sigma": 0.2, "floor": 0.001},
        ),
        ({"roi_size": 8, "padding_mode": "replicate"}, {"fill": "edge"}),
        ({"roi_size": 8, "cval": -1}, {"fill": -1.0}),
        ({"roi_size": 8, "sw_device": "cuda", "progress": True, "buffer_steps": 2}, {}),
    ],
)
def test_sliding_window_sees_as_monai_does(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    row = view("SlidingWindowInferer", **options).row
    assert {key: row[key] for key in wanted} == wanted
    Window(**row)


def test_slices_are_led_along_the_axis_that_is_named() -> None:
    found = view("SliceInferer", roi_size=[256, 0], spatial_dim=2)
    assert found.across == 2
    assert found.row["patch"] == [256, 0]
    Window(**found.row)


def test_simple_inferer_sees_everything_at_once() -> None:
    assert view("SimpleInferer").row["mode"] == "volume"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SlidingWindowInferer", {"roi_size": 8, "overlap": [0.1, 0.2, 0.3]}, "between axes"),
        ("SlidingWindowInferer", {"roi_size": 8, "overlap": 0.95}, "up to 0.9"),
        ("SlidingWindowInferer", {"roi_size": 8, "padding_mode": "circular"}, "padding_mode"),
        ("SlidingWindowInferer", {"roi_size": 8, "with_coord": True}, "where a block lies"),
        ("SlidingWindowInferer", {"roi_size": [8, 8]}, "two axes"),
        ("SlidingWindowInferer", {"roi_size": 8, "mode": "odd"}, "its mode is 'odd'"),
        ("SlidingWindowInferer", {"roi_size": 8, "other": 1}, "its option other"),
        ("SliceInferer", {"roi_size": [8, 8, 8]}, "its roi_size"),
        ("SliceInferer", {"roi_size": [8, 8], "spatial_dim": 4}, "its roi_size"),
        ("SliceInferer", {"roi_size": ["a", float("inf")]}, "its roi_size"),
        ("SlidingWindowInferer", {"roi_size": float("inf")}, "its roi_size"),
        ("SlidingWindowInferer", {"roi_size": 8, "sw_batch_size": float("nan")}, "sw_batch_size"),
        ("SlidingWindowInferer", {"roi_size": 8, "cval": 10**400}, "its cval"),
    ],
)
def test_window_that_the_node_has_not_is_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotTranslate, match=words):
        view(name, **options)
