"""What makes two plans different, and what an order for one says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.errors import InferenceError
from node.gpu.recipe import Profile, Recipe, Settings, digest, read_order, variant


def recipe(folder: Path) -> Recipe:
    return Recipe(
        model=folder / "model.onnx",
        weights="ab",
        flavour="tensorrt",
        version="11.4.0.106",
        precision="fp16",
        profiles=(Profile("image", (1, 3), (2, 3), (4, 3)),),
        settings=Settings(batch=4, device=0),
        driver="580.159.04 (CUDA 13.0)",
        capability="9.0",
        device="NVIDIA H200",
        memory=150_000_000_000,
    )


def test_everything_that_changes_a_plan_changes_its_identity(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    others = [
        replace(first, weights="cd"),
        replace(first, flavour="tensorrt_rtx"),
        replace(first, version="11.4.0.107"),
        replace(first, precision="fp32"),
        replace(first, profiles=()),
        replace(first, settings=replace(first.settings, workspace=1 << 30)),
        replace(first, settings=replace(first.settings, level=4)),
        replace(first, settings=replace(first.settings, tf32=True)),
        replace(first, settings=replace(first.settings, batch=8)),
        replace(first, driver="581.0 (CUDA 13.1)"),
        replace(first, capability="8.9"),
        replace(first, device="NVIDIA L4"),
        replace(first, memory=1),
    ]
    known = {json.dumps(one.identity(), sort_keys=True) for one in (first, *others)}
    assert len(known) == len(others) + 1


def test_where_things_lie_and_on_which_slot_changes_nothing(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    moved = replace(first, model=Path("elsewhere.onnx"), settings=replace(first.settings, device=3))
    assert moved.identity() == first.identity()


def test_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    order = json.loads(json.dumps(first.order(tmp_path / "plan", tmp_path / "timing")))
    found, out, timing = read_order(order)
    assert (out, timing) == (tmp_path / "plan", tmp_path / "timing")
    assert (found.model, found.profiles, found.settings) == (
        first.model,
        first.profiles,
        first.settings,
    )
    assert (found.flavour, found.precision) == (first.flavour, first.precision)


@pytest.mark.parametrize("wrong", [{"settings": {"bach": 1}}, {"profiles": [{}]}, {"model": None}])
def test_order_with_a_wrong_key_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    order = recipe(tmp_path).order(tmp_path / "plan") | wrong
    with pytest.raises(InferenceError, match="the order to build a plan is wrong"):
        read_order(order)


def test_digest_follows_the_weights_beside_the_network(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"graph; weights in parts/model.bin")
    (tmp_path / "parts").mkdir()
    weights = tmp_path / "parts" / "model.bin"
    weights.write_bytes(b"1")
    (tmp_path / "CARD.md").write_text("of no weight")
    first = digest(model)
    (tmp_path / "CARD.md").write_text("changed")
    assert digest(model) == first
    weights.write_bytes(b"2")
    assert digest(model) != first


def test_digest_of_a_network_without_weights_beside_it_is_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"graph")
    assert digest(tmp_path / "a" / "model.onnx") == digest(tmp_path / "b" / "model.onnx")
    (tmp_path / "b" / "model.onnx").write_bytes(b"other")
    assert digest(tmp_path / "a" / "model.onnx") != digest(tmp_path / "b" / "model.onnx")


@pytest.mark.parametrize("content", [None, b""])
def test_network_that_cannot_be_read_has_no_digest(content: bytes | None, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(InferenceError, match=r"model\.onnx cannot be read"):
        digest(model)


def test_precision_chooses_the_network_beside_the_package_s_own(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    half = tmp_path / "model.fp16.onnx"
    half.touch()
    assert variant(model, "fp32") == model
    assert variant(model, "fp16") == half
    with pytest.raises(InferenceError, match=r"no model\.int8\.onnx: make it with"):
        variant(model, "int8")
