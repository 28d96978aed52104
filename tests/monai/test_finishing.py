"""The order that a bundle chooses after the network, and what it comes to in ours."""

from __future__ import annotations

from typing import Any

import pytest

from node.domain.errors import ImportRefused
from node.monai.expression import evaluate
from node.monai.finishing import CONCLUSIONS, Channel, Finish, first_step, found_channels
from node.monai.transforms import CannotTranslate, Options
from node.monai.workflow import Component

SOFTMAX = ("Activations", {"softmax": True})
SIGMOID = ("Activations", {"sigmoid": True})
ARGMAX = ("AsDiscrete", {"argmax": True})
CUT = ("AsDiscrete", {"threshold": 0.4})
ONEHOT = ("AsDiscrete", {"argmax": True, "to_onehot": 3})
LINEAR = ("Invert", {"nearest_interp": False})
NEAREST = ("Invert", {"nearest_interp": True})
LARGEST = ("KeepLargestConnectedComponent", {})

Step = tuple[str, dict[str, Any]]


def finish(*steps: Step, channels: int = 3, names: str = "", **known: Any) -> Finish:
    named = dict(enumerate(names.split())) if names else {}
    made = Finish(channels, named, resampled=True, **known)
    for name, options in steps:
        asked = Options(Component(name, "post::0", options))
        CONCLUSIONS[name](asked, made)
        asked.finish()
    return made


def refused(*steps: Step) -> str:
    with pytest.raises(CannotTranslate) as error:
        finish(*steps)
    return str(error.value)


@pytest.mark.parametrize(
    ("steps", "back", "activated", "remarks"),
    [
        ([SOFTMAX, LINEAR, ARGMAX], 1, "blended", 0),
        ([SOFTMAX, NEAREST, ARGMAX], 0, "blended", 0),
        ([SOFTMAX, ARGMAX, NEAREST], 0, "blended", 0),
        ([SOFTMAX, ARGMAX, LINEAR], 0, "blended", 1),
        ([LINEAR, SOFTMAX, ARGMAX], 1, "source", 0),
        ([LINEAR, ARGMAX], 1, "source", 0),
        ([ARGMAX, NEAREST], 0, "blended", 0),
        ([SIGMOID, LINEAR, CUT], 1, "blended", 0),
        ([SOFTMAX, ARGMAX], 0, "blended", 0),
        ([SOFTMAX, ARGMAX, LARGEST, NEAREST], 0, "blended", 1),
        ([SOFTMAX, LINEAR, ARGMAX, LARGEST], 1, "blended", 0),
        ([LINEAR, SOFTMAX, LINEAR, ARGMAX], 1, "source", 1),
    ],
)
def test_order_decides_on_the_way_back(
    steps: list[Step], back: int, activated: str, remarks: int
) -> None:
    made = finish(*steps)
    assert (made.back, made.activated, len(made.remarks)) == (back, activated, remarks)


def test_channels_become_labels() -> None:
    assert found_channels(finish(ARGMAX, names="background liver spleen")) == [
        Channel(1, 1, "liver"), Channel(2, 2, "spleen"),
    ]  # fmt: skip
    assert found_channels(finish(CUT, names="core whole enhancing"))[2] == Channel(
        2, 3, "enhancing"
    )
    with_background = finish(CUT, names="background artery vein")
    assert found_channels(with_background) == [Channel(1, 1, "artery"), Channel(2, 2, "vein")]
    assert [one.name for one in found_channels(finish(ARGMAX))] == ["label 1", "label 2"]


def test_background_is_none_of_the_labels() -> None:
    made = finish(SIGMOID, CUT, names="background artery vein")
    assert first_step(made, found_channels(made))["labels"] == [0, 1, 2]


def test_regions_in_one_another_keep_their_order() -> None:
    text = "lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))"
    made = finish(SIGMOID, CUT, ("Lambda", {"func": evaluate(text, str)}))
    step = first_step(made, found_channels(made))
    assert step["labels"] == [1, 0, 4]
    assert step["precedence"] == [2, 0, 1]
    assert step["value"] == 0.4


def test_channels_that_may_overlap_are_marked() -> None:
    made = finish(SIGMOID, CUT)
    assert "most probable" in first_step(made, found_channels(made))["precedence"].why
    assert "precedence" not in first_step(
        finish(CUT, channels=1), found_channels(finish(CUT, channels=1))
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([ARGMAX, SOFTMAX], "after AsDiscrete"),
        ([SOFTMAX, SIGMOID], "an activation before"),
        ([("Activations", {"softmax": True, "sigmoid": True})], "two things at once"),
        ([("Activations", {"other": "f"})], "its other"),
        ([("AsDiscrete", {})], "neither argmax nor threshold"),
        ([("AsDiscrete", {"threshold": 3})], "no probability"),
        ([ARGMAX, ARGMAX], "labels already"),
        ([LARGEST], "no labels yet"),
        ([ARGMAX, ("Lambda", {"func": None})], "not one that is read"),
        ([("Invert", {"post_func": "f"})], "its post_func"),
        ([ARGMAX, ("RemoveSmallObjects", {})], "not its parts"),
        ([ARGMAX, ("KeepLargestConnectedComponent", {"applied_labels": ["a"]})], "applied_labels"),
    ],
)
def test_what_has_no_counterpart_is_refused(steps: list[Step], words: str) -> None:
    assert words in refused(*steps)


def test_dropping_the_background_of_onehot_labels_changes_nothing() -> None:
    made = finish(ONEHOT, ("Lambda", {"func": evaluate("lambda x: x[1:]", str)}))
    assert made.rows == []
    with pytest.raises(CannotTranslate):
        finish(ARGMAX, ("Lambda", {"func": evaluate("lambda x: x[1:]", str)}))


def test_labels_that_a_step_is_applied_to_are_kept() -> None:
    largest = ("KeepLargestConnectedComponent", {"applied_labels": [0, 1, 2], "connectivity": 2})
    assert finish(ARGMAX, largest).rows[0]["labels"] == [1, 2]
    assert finish(ARGMAX, largest).rows[0]["connectivity"] == 18
    # Of several channels MONAI counts the channels, whose labels are one higher here.
    assert finish(CUT, largest).rows[0]["labels"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("steps", "voxel", "wanted"),
    [
        ([ONEHOT, NEAREST, ("RemoveSmallObjects", {})], 2.0, {"minimum_voxels": 64}),
        ([ONEHOT, ("RemoveSmallObjects", {}), NEAREST], 2.0, {"minimum_ml": 0.128}),
        ([ONEHOT, ("RemoveSmallObjects", {"by_measure": True})], 0.0, {"minimum_ml": 0.064}),
    ],
)
def test_small_parts_are_counted_on_the_grid_that_they_are_on(
    steps: list[Step], voxel: float, wanted: dict[str, float]
) -> None:
    row = finish(*steps, voxel_mm3=voxel).rows[0]
    assert {key: row[key] for key in wanted} == wanted
    assert row["connectivity"] == 6


@pytest.mark.parametrize("made", [Finish(10**9), Finish(0, {10**8: "spleen"})])
def test_more_channels_than_labels_are_refused_before_they_are_counted(made: Finish) -> None:
    with pytest.raises(ImportRefused, match="256 at most"):
        found_channels(made)
