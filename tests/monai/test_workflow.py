"""A configuration is resolved as MONAI resolves it, as far as that needs no code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from node.domain.errors import ImportRefused
from node.monai.expression import Formula
from node.monai.parcel import Parcel, opened
from node.monai.workflow import Component, Unknown, Workflow, read_table

NOWHERE = Parcel(Path("nowhere"), frozenset())


def workflow(**table: Any) -> Workflow:
    return Workflow("inference.json", table, NOWHERE)


def test_references_are_followed_through_tables_lists_and_components() -> None:
    found = workflow(
        size=[96, 64, 32],
        shown={"overlap": 0.25},
        inferer={"_target_": "SlidingWindowInferer", "roi_size": "@size", "overlap": "@a"},
        a="@shown#overlap",
        evaluator={"inferer": "@inferer"},
    )
    inferer = found.at("evaluator::inferer")
    assert isinstance(inferer, Component)
    assert inferer.options == {"roi_size": [96, 64, 32], "overlap": 0.25}
    assert found.at("inferer::roi_size::1") == 64
    assert found.at("evaluator::inferer::roi_size::0") == 96


def test_place_behind_references_is_found() -> None:
    found = workflow(
        evaluator={"_target_": "E", "val_data_loader": "@loader"},
        loader={"_target_": "DataLoader", "dataset": "@dataset"},
        dataset={"_target_": "Dataset", "transform": "@steps", "data": "$glob.glob('*')"},
        steps={"_target_": "Compose", "transforms": [{"_target_": "A"}]},
    )
    chain = found.at("evaluator::val_data_loader::dataset::transform")
    assert [one.name for one in chain.options["transforms"]] == ["A"]


def test_relative_references_begin_where_they_stand() -> None:
    found = workflow(a=1, outer={"a": 2, "inner": {"near": "@::a", "far": "@::::a", "a": 3}})
    assert found.at("outer::inner::near") == 3
    assert found.at("outer::inner::far") == 2


def test_macro_quotes_another_place_or_file(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/net.json").write_text(json.dumps({"net": {"_target_": "UNet"}}))
    table = {"default": [1, 2], "here": "%default", "there": "%configs/net.json::net"}
    found = Workflow("configs/inference.json", table, opened(tmp_path))
    assert found.at("here") == [1, 2]
    assert found.at("there") == Component("UNet", "there", {})


def test_macro_does_not_leave_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"a": 1}')
    (tmp_path / "bundle").mkdir()
    table = {"a": "%../secret.json::a", "b": f"%{tmp_path}/secret.json::a"}
    found = Workflow("inference.json", table, opened(tmp_path / "bundle"))
    assert isinstance(found.at("a"), Unknown)
    assert isinstance(found.at("b"), Unknown)


@pytest.mark.parametrize(
    ("said", "there"), [(True, False), ("true", False), ("$not @no", False), ("x", True), (0, True)]
)
def test_component_that_is_disabled_is_none(said: Any, there: bool) -> None:
    found = workflow(no=False, chain=[{"_target_": "A", "_disabled_": said}, {"_target_": "B"}])
    assert [one.name for one in found.at("chain")] == (["A", "B"] if there else ["B"])


def test_lists_of_transforms_are_put_together() -> None:
    found = workflow(
        first=[{"_target_": "A"}], second=[{"_target_": "B"}], both="$@first + @second"
    )
    assert [str(one) for one in found.at("both")] == ["first::0: A", "second::0: B"]


def test_what_is_not_read_stays_with_its_reason() -> None:
    found = workflow(a="$torch.load('x')", b="@absent", c="$@a + 1", d="$lambda x: x > 0")
    assert str(found.at("a")) == "\"$torch.load('x')\" (a call of torch.load)"
    assert "nothing at absent" in str(found.at("b"))
    assert "@a is a call of torch.load" in str(found.at("c"))
    assert isinstance(found.at("d"), Formula)


def test_text_that_only_holds_an_at_sign_is_text() -> None:
    assert workflow(a="mail@somewhere.org", b="@a").at("b") == "mail@somewhere.org"


def test_circles_end() -> None:
    found = workflow(a="@b", b="@a", c="$@c + 1", d={"e": "@d"}, f="%f")
    for place in ("a", "c", "f"):
        assert isinstance(found.at(place), Unknown)
    assert isinstance(found.at("d")["e"], Unknown)


def test_configuration_that_unfolds_without_end_is_refused() -> None:
    table = {"a0": [1] * 10, **{f"a{n}": [f"@a{n - 1}"] * 10 for n in range(1, 9)}}
    with pytest.raises(ImportRefused, match="is it a circle"):
        workflow(**table).at("a8")


def test_class_of_monai_is_known_by_its_own_name() -> None:
    assert Component("monai.networks.nets.UNet", "a", {}).short == "UNet"
    assert Component("scripts.networks.UNet", "a", {}).short == "scripts.networks.UNet"


def test_deep_and_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[1]")
    for name, words in (("deep.json", "cannot be read"), ("list.json", "no table")):
        with pytest.raises(ImportRefused, match=words):
            read_table(opened(tmp_path), name)


YAML = "a: &x [1, 2]\nb: *x\nnet:\n  _target_: UNet\n  spatial_dims: $len(@a)\n"


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="PyYAML is not installed")
def test_yaml_is_read_without_its_tags(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    found = Workflow("a.yaml", read_table(opened(tmp_path), "a.yaml"), NOWHERE)
    assert found.at("net") == Component("UNet", "net", {"spatial_dims": 2})
    (tmp_path / "b.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ImportRefused, match="cannot be read"):
        read_table(opened(tmp_path), "b.yaml")


@pytest.mark.skipif(importlib.util.find_spec("yaml") is not None, reason="PyYAML is installed")
def test_yaml_without_pyyaml_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    with pytest.raises(ImportRefused, match=r"dicom-ai-node\[convert\]"):
        read_table(opened(tmp_path), "a.yaml")
