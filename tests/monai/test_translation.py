"""A whole configuration as one engine's steps: roles, axes and what is left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.monai.imprint import Imprint
from node.monai.parcel import Parcel
from node.monai.translation import Translation, translate
from node.monai.workflow import Workflow
from node.proposal import Guess
from tests.imports.chains import ARGMAX, INVERT, RAS, SOFTMAX, SPACED, sliding, step

NET = {"_target_": "UNet", "in_channels": 1, "out_channels": 2}
POST = [SOFTMAX, INVERT, ARGMAX]
SLICES = {"_target_": "SliceInferer", "roi_size": [8, 8]}


def translated(pre: list[Any], **other: Any) -> Translation:
    table = {
        "network_def": other.pop("net", NET),
        "preprocessing": {"_target_": "Compose", "transforms": pre},
        "inferer": other.pop("inferer", sliding()),
        "postprocessing": {"_target_": "Compose", "transforms": other.pop("post", POST)},
    }
    metadata = other.pop("metadata", {})
    workflow = Workflow("inference.json", table, Parcel(Path("nowhere"), frozenset()))
    return translate(workflow, Imprint(metadata))


def kinds(made: Translation) -> list[str]:
    return [row["kind"] for row in made.pre]


def test_axes_are_turned_once_where_the_bundle_orients_first() -> None:
    assert kinds(translated([step("ScaleIntensityd"), RAS, SPACED])) == [
        "percentile", "orient", "resample",
    ]  # fmt: skip


def test_axes_are_monais_before_anything_asks_for_them() -> None:
    made = translated([SPACED, RAS])
    assert kinds(made) == ["transpose", "resample", "orient"]
    assert isinstance(made.pre[0]["order"], Guess)
    assert made.pre[0]["order"].value == [2, 1, 0]


@pytest.mark.parametrize(("along", "order"), [(0, None), (1, [1, 0, 2]), (2, [2, 0, 1])])
def test_slices_come_first_in_the_end(along: int, order: list[int] | None) -> None:
    net = {**NET, "spatial_dims": 2}
    made = translated([RAS], inferer={**SLICES, "spatial_dim": along}, net=net)
    assert [row.get("order") for row in made.pre[1:]] == ([] if order is None else [order])
    bare = translated([], inferer={**SLICES, "spatial_dim": along}, net=net)
    assert [row["order"].value for row in bare.pre] == [
        [2 - axis for axis in ([0, 1, 2] if order is None else order)]
    ]


def test_series_that_are_joined_are_roles_in_their_order() -> None:
    made = translated(
        [
            step("Orientationd", ["t1", "t2", "label"], axcodes="RAS"),
            step("NormalizeIntensityd", "t2"),
            step("ScaleIntensityd", "label"),
            step("ConcatItemsd", ["t2", "t1"], name="both"),
            step("ScaleIntensityd", "both"),
        ],
        net={**NET, "in_channels": 2},
    )
    assert made.refused == []
    assert made.roles == ("t2", "t1")
    assert made.pre == [
        {"kind": "orient", "axes": "SAR"},
        {"kind": "standardise", "roles": ["t2"]},
        {"kind": "percentile", "lower": 0.0, "upper": 100.0, "joint": True},
    ]
    assert made.needless["ScaleIntensityd"] == "label does not feed the network"


def test_steps_that_differ_between_series_stay_apart() -> None:
    pre = [
        step("Spacingd", ["a", "b"], pixdim=[1, 1, 1], mode=["bilinear", "nearest"]),
        step("ConcatItemsd", ["a", "b"], name="image"),
    ]
    made = translated(pre, net={**NET, "in_channels": 2})
    assert [(row.get("roles"), row.get("order")) for row in made.pre[1:]] == [
        (["a"], None),
        (["b"], 0),
    ]


def test_channels_that_are_joined_along_another_axis_are_refused() -> None:
    joined = step("ConcatItemsd", ["a", "b"], name="image", dim=1)
    made = translated([joined], net={**NET, "in_channels": 2})
    assert "its dim is 1" in made.refused[0]


def test_labels_of_a_training_chain_are_not_what_the_network_gives() -> None:
    made = translated([RAS], post=[*POST, step("FillHolesd", "label")])
    assert made.needless["FillHolesd"] == "label is not what the network gives"


def test_noise_of_interpolation_beside_air_is_named() -> None:
    nonzero = step("NormalizeIntensityd", nonzero=True)
    assert any("1e-15" in one for one in translated([RAS, SPACED, nonzero]).remarks)
    assert translated([RAS, nonzero, SPACED]).remarks == []


def test_network_with_more_channels_than_a_study_has_series_is_refused() -> None:
    made = translated([RAS], net={**NET, "in_channels": 2048})
    assert "2048 input channels" in made.refused[0]
    assert made.roles == ("image",)


def test_channels_of_metadata_stand_in_where_the_network_names_none() -> None:
    formats = {"inputs": {"image": {"num_channels": 2}}, "outputs": {"pred": {"num_channels": 3}}}
    made = translated([RAS], net="$nets.make()", metadata={"network_data_format": formats})
    assert (made.network.inputs, made.network.outputs) == (2, 3)
    assert made.roles == ("image-1", "image-2")


def test_transform_that_is_no_component_is_named() -> None:
    made = translated([RAS, "$mine()", 3])
    assert [line.split(": ", 1)[1] for line in made.refused] == [
        "'$mine()' (a call of mine) is no list of transforms",
        "3 is no list of transforms",
    ]


def test_labels_of_bare_logits_are_those_of_their_probabilities() -> None:
    output = translated([RAS], post=[INVERT, ARGMAX]).output
    assert output["activation"].value == "softmax"
    threshold = step("AsDiscreted", "pred", threshold=0.5)
    assert translated([RAS], post=[INVERT, threshold]).output["activation"].value == "none"


def test_way_back_goes_as_the_way_there() -> None:
    nearest = {**SPACED, "mode": "nearest"}
    rows = translated([RAS, SPACED, nearest]).pre
    assert [row.get("back") for row in rows] == [None, None, 0]


def test_sampling_beside_the_centre_is_named() -> None:
    post = [SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}]
    made = translated([RAS, step("Resized", spatial_size=9, mode="trilinear")], post=post)
    assert "at or before a place" in made.remarks[0]
