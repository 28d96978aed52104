"""What a bundle says of itself becomes tables; what it does not say is marked."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from node.monai.finishing import Channel
from node.monai.imprint import Imprint
from node.proposal import Guess, Proposal

METADATA: dict[str, Any] = {
    "version": "0.2.0",
    "name": "Spleen " + "x" * 80,
    "task": "Spleen segmentation",
    "description": "Segments the\nspleen in CT.",
    "authors": "MONAI team",
    "eval_metrics": {"mean_dice": 0.96},
    "references": ["One", "Two"],
    "intended_use": "Research only",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1}},
        "outputs": {"pred": {"label_def": {"0": "background", "1": "spleen", "x": "no"}}},
    },
}


def rows(imprint: Imprint) -> dict[str, Any]:
    return dict(imprint.identity("spleen", "model.onnx", "0" * 64).rows)


def conditions(imprint: Imprint, *roles: str) -> list[list[dict[str, Any]]]:
    return [block.rows["accepts"].value for block in imprint.series(roles)]


def test_identity_holds_what_metadata_states() -> None:
    found = rows(Imprint(METADATA, "Apache License, Version 2.0"))
    assert len(found["title"]) == 64
    assert found["version"] == "0.2.0"
    assert found["description"] == "Segments the spleen in CT."
    assert found["licence"].value == "Apache-2.0"


def test_bundle_that_says_nothing_is_marked_everywhere() -> None:
    found = rows(Imprint({}))
    for key in ("title", "version", "manufacturer", "licence"):
        assert isinstance(found[key], Guess)
    assert Imprint({"network_data_format": 3}).channels("outputs") == {}
    assert Imprint({"network_data_format": {"outputs": {"pred": 1}}}).format("outputs") == {}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Permission is hereby granted, free of charge, to any person", "MIT"),
        ("Attribution-NonCommercial-ShareAlike 4.0", "CC-BY-NC-SA-4.0"),
        ("All rights reserved", "unknown"),
    ],
)
def test_licence_is_read_from_its_words(text: str, wanted: str) -> None:
    assert rows(Imprint({}, text))["licence"].value == wanted


def test_channels_are_named_by_either_key() -> None:
    assert Imprint(METADATA).channels("outputs") == {0: "background", 1: "spleen"}


def test_series_are_guessed_from_modality_and_words() -> None:
    first = conditions(Imprint(METADATA), "image")[0]
    assert first[0] == {"fact": "Modality", "equals": "CT"}
    assert "spleen" in first[1]["any_of"][0]["matches"]
    assert not any(one.get("fact") == "SeriesDescription" for one in first)


def test_several_series_are_told_apart_by_their_descriptions() -> None:
    imprint = Imprint({"task": "brain MR", "name": "BraTS"})
    wanted = [
        next(one["matches"] for one in role if one.get("fact") == "SeriesDescription")
        for role in conditions(imprint, "t1c", "t1", "t2", "flair", "odd")
    ]
    assert len(set(wanted)) == 5
    assert wanted[4] == "odd"
    assert conditions(imprint, "t1")[0][0] == {"fact": "Modality", "equals": "MR"}


def test_findings_have_codes_colours_and_different_names() -> None:
    channels = [Channel(1, 1, "spleen"), Channel(2, 2, "spleen"), Channel(3, 3, "label 3")]
    found = [dict(block.rows) for block in Imprint(METADATA).findings(channels)]
    assert [one["label"] for one in found] == [1, 2, 3]
    assert [found[0]["name"], found[1]["name"]] == ["spleen", "spleen 2"]
    assert isinstance(found[2]["name"], Guess)
    assert found[0]["type"]["meaning"] == "Spleen"
    assert isinstance(found[2]["type"], Guess)
    assert found[0]["colour"] != found[1]["colour"]


def test_names_stay_short_and_different_however_long_they_are() -> None:
    channels = [Channel(n, n, "x" * 80) for n in (1, 2, 255)] + [Channel(4, 4, " ")]
    names = [str(block.rows["name"]) for block in Imprint({}).findings(channels)]
    assert len(set(names)) == 4
    assert all(1 <= len(name) <= 64 for name in names)


def test_words_of_a_stranger_stay_words() -> None:
    channels = [Channel(1, 1, 'odd"\n[[pre]]\nkind = "x')]
    block = next(Imprint({}).findings(channels))
    text = Proposal("a", [block]).manifest()
    assert tomllib.loads(text).keys() == {"finding"}


def test_channels_are_numbered_by_plain_digits() -> None:
    names = {"0": "air", "1": "spleen", "\u00b2": "two", "9" * 5_000: "many"}
    form = {"outputs": {"pred": {"channel_def": names}}}
    assert Imprint({"network_data_format": form}).channels("outputs") == {0: "air", 1: "spleen"}


def test_half_a_character_can_be_written() -> None:
    imprint = Imprint({"name": "Spleen \ud800", "description": "\udc00"})
    imprint.card().encode()
    block = imprint.identity("spleen", "model.onnx", "0" * 64)
    text = Proposal("a", [block]).manifest()
    assert tomllib.loads(text.encode().decode())["engine"]["title"] == "Spleen ?"


def test_card_says_what_is_missing() -> None:
    card = Imprint(METADATA).card()
    assert "- mean_dice: 0.96" in card
    assert "- Two" in card
    assert "## Limits\n\nNot stated by the bundle" in card
