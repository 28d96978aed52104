"""``engine add``, ``list``, ``show`` and ``remove``: what is on the shelf, whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from node.bundle import read
from node.cli.engine.add import write
from node.domain.errors import InferenceError
from node.gpu.recipe import digest
from node.imports.bare import Bare
from node.plans import Key, Plans
from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened
from tests.engines.package import network

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return opened(tmp_path)


def added(shop: Shop, ai_node: Command) -> Said:
    """The network is added under its own name."""
    return ai_node("engine", "add", shop.network, "--config", shop.config)


def test_add_writes_a_package_and_says_what_it_guessed_and_what_comes_next(
    shop: Shop, ai_node: Command
) -> None:
    said = added(shop, ai_node)
    assert said.code == 0
    bundle = read(shop.added)
    assert f"{shop.added} is written, package {bundle.digest}" in said.out
    assert 'window.mode = "slice"' in said.out
    assert said.out.rstrip().splitlines()[-3:] == [
        "  ai-node engine show bright",
        "  ai-node engine try bright STUDY_DIR",
        "  ai-node engine verify bright",
    ]
    assert not (shop.added / "CARD.md").exists()
    assert "CARD.template.md" in said.out


def test_add_can_write_into_any_folder_without_a_configuration(
    tmp_path: Path, ai_node: Command
) -> None:
    path = network(tmp_path / "Unet (v2).onnx", [[1.0]], [0.0])
    said = ai_node("engine", "add", path, "--to", tmp_path / "out", "--json").json
    assert said["name"] == "unet-v2"
    assert read(tmp_path / "out" / "unet-v2").digest == said["digest"]
    assert any(guess.startswith("window.mode") for guess in said["guesses"])


def test_add_never_overwrites_unless_it_is_told_to(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    (shop.added / "mark").touch()
    said = added(shop, ai_node)
    assert said.code == 1
    assert "--replace replaces it" in said.err
    assert (shop.added / "mark").exists()
    said = ai_node("engine", "add", shop.network, "--replace", "--config", shop.config)
    assert said.code == 0
    assert not (shop.added / "mark").exists()


def test_add_does_not_replace_an_engine_that_is_live(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    shop.correct()
    shop.write_card()
    ai_node("engine", "verify", "bright", "--config", shop.config)
    ai_node("engine", "enable", "bright", "--live", "--reason", "x", "--config", shop.config)
    replace = ("engine", "add", shop.network, "--replace", "--config", shop.config)
    assert "bright is live" in ai_node(*replace).err
    assert (shop.added / "CARD.md").exists()
    ai_node("engine", "enable", "bright", "--shadow", "--config", shop.config)
    assert ai_node(*replace).code == 0


def test_what_is_refused_leaves_nothing_behind(shop: Shop, ai_node: Command) -> None:
    bad = network(shop.folder / "bad.onnx", [[1.0]], [0.0], "Sigmoid", (1, 64, 64, 64))
    said = ai_node("engine", "add", bad, "--config", shop.config)
    assert said.code == 1
    assert "no axis" in said.err
    place = shop.added.parent
    assert not place.exists() or list(place.iterdir()) == []


def test_a_package_that_does_not_hold_is_not_published(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    before = read(shop.added).digest
    broken = network(shop.folder / "other.onnx", [[1.0]], [float("nan")])
    said = ai_node(
        "engine", "add", broken, "--name", "bright", "--replace", "--config", shop.config
    )
    assert said.code == 1
    assert read(shop.added).digest == before
    assert [path.name for path in shop.added.parent.iterdir()] == ["bright"]


def test_a_manifest_that_does_not_fit_its_network_is_not_published(shop: Shop) -> None:
    proposal = Bare().propose(shop.network, "bright")
    blocks = [
        replace(block, rows=dict(block.rows) | {"mode": "patch"})
        if block.name == "window"
        else block
        for block in proposal.blocks
    ]
    with pytest.raises(InferenceError, match="correct the mode"):
        write(replace(proposal, blocks=blocks), shop.added.parent)
    assert list(shop.added.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights.pth", "is a file of torch, and the node runs ONNX: export it"),
        ("net.engine", "is a plan of TensorRT.*bound to one GPU"),
        ("net.txt", r"is nothing that an import recognises \(known are: onnx"),
        ("folder", "is a folder that no import recognises"),
        ("absent.onnx", "there is no file or folder"),
    ],
)
def test_wrong_sources_get_exact_words(shop: Shop, ai_node: Command, name: str, words: str) -> None:
    path = shop.folder / name
    if name == "folder":
        path.mkdir()
    elif name != "absent.onnx":
        path.write_bytes(b"x")
    said = ai_node("engine", "add", path, "--config", shop.config)
    assert said.code == 1
    assert re.search(words, said.err), said.err


def test_names_that_cannot_be_are_refused(shop: Shop, ai_node: Command) -> None:
    said = ai_node("engine", "add", shop.network, "--name", "Not/One", "--config", shop.config)
    assert said.code == 2
    assert "is no name for an engine" in said.err
    said = ai_node(
        "engine", "add", shop.network, "--name", "mr-brain-lesion", "--config", shop.config
    )
    assert "is shipped with the node" in said.err
    said = ai_node("engine", "add", shop.network, "--kind", "onxn", "--config", shop.config)
    assert "did you mean 'onnx'?" in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_said(shop: Shop, ai_node: Command) -> None:
    (shop.folder / "state").mkdir(mode=0o500)
    assert "cannot be written" in added(shop, ai_node).err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_adds_belongs_to_the_owner_of_the_state(shop: Shop, ai_node: Command) -> None:
    state = shop.folder / "state"
    state.mkdir()
    os.chown(state, 1234, 2345)
    added(shop, ai_node)
    ai_node("engine", "verify", "bright", "--config", shop.config)
    folders = (shop.added.parent, shop.added, shop.added / "engine.toml", state / "verified")
    for path in folders:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345), path


def test_a_package_can_be_read_by_whoever_runs_it(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    assert shop.added.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in shop.added.iterdir()} == {0o644}


def test_list_shows_what_is_shipped_and_what_was_added(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    rows = ai_node("engine", "list", "--config", shop.config, "--json").json
    by_name = {row["name"]: row for row in rows}
    assert by_name["mr-brain-lesion"]["origin"] == "shipped"
    assert by_name["mr-brain-lesion"]["mode"] == "live"
    assert by_name["bright"]["origin"] == "added"
    assert by_name["bright"]["mode"] == "not configured"
    assert by_name["bright"]["verified"] == "no"
    assert "bright" in ai_node("engine", "list", "--config", shop.config).out


def test_list_works_without_a_configuration(
    tmp_path: Path, ai_node: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ai_node("engine", "list", "--json").json
    assert [row["origin"] for row in rows] == ["shipped"] * len(rows)


def test_an_engine_that_cannot_be_read_does_not_hide_the_others(
    shop: Shop, ai_node: Command
) -> None:
    added(shop, ai_node)
    (shop.added / "model.onnx").write_bytes(b"another")
    rows = ai_node("engine", "list", "--config", shop.config, "--json").json
    assert len(rows) > 1
    assert "is another file" in rows[-1]["fault"]
    shown = " ".join(ai_node("engine", "list", "--config", shop.config).out.split())
    assert "bright" in shown
    assert "cannot be read" in shown


def test_show_prints_the_manifest_the_guesses_and_the_card(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    said = ai_node("engine", "show", "bright", "--config", shop.config)
    for words in (
        "series     image: 1 conditions", "before     orient", "input      image from image",
        "output     probability, activation none", "after      threshold",
        "finding    1: Finding 1", "verified   no", "# guessed:", "CARD.md is missing",
    ):  # fmt: skip
        assert words in said.out
    shop.correct()
    shop.write_card()
    said = ai_node("engine", "show", "bright", "--config", shop.config)
    assert "guessed" not in said.out
    assert "| # Model card: bright" in said.out
    document = ai_node("engine", "show", "bright", "--config", shop.config, "--json").json
    assert document["guessed"] == []
    assert document["manifest"]["engine"]["name"] == "bright"


def test_show_lists_the_plans_of_the_engine_and_no_others(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    plans = Plans(shop.folder / "state" / "plans", 10**9)
    for weights in (digest(shop.added / "model.onnx"), "another"):
        plans.store(Key(weights, "tensorrt", "11.4.0.106", "fp32", device="NVIDIA L4"), b"plan")
    said = ai_node("engine", "show", "bright", "--config", shop.config)
    assert said.out.count("  plan  ") == 1
    assert "fp32 for NVIDIA L4, tensorrt 11.4.0.106" in said.out


def test_show_names_those_that_there_are(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    said = ai_node("engine", "show", "brigth", "--config", shop.config)
    assert said.code == 2
    assert "did you mean 'bright'?" in said.err


def test_remove_takes_an_added_engine_away(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    said = ai_node("engine", "remove", "bright", "--yes", "--config", shop.config)
    assert said.code == 0
    assert list(shop.added.parent.iterdir()) == []


def test_remove_refuses_shipped_engines_and_those_at_work(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    said = ai_node("engine", "remove", "mr-brain-lesion", "--yes", "--config", shop.config)
    assert said.code == 1
    assert "is shipped with the node" in said.err
    ai_node("engine", "enable", "bright", "--shadow", "--config", shop.config)
    said = ai_node("engine", "remove", "bright", "--yes", "--config", shop.config)
    assert said.code == 1
    assert "has bright at work (shadow)" in said.err
    assert shop.added.exists()


def test_a_disabled_engine_is_removed_with_its_table(shop: Shop, ai_node: Command) -> None:
    before = shop.config.read_text()
    added(shop, ai_node)
    ai_node("engine", "enable", "bright", "--shadow", "--config", shop.config)
    ai_node("engine", "disable", "bright", "--config", shop.config)
    assert ai_node("engine", "remove", "bright", "--yes", "--config", shop.config).code == 0
    assert shop.config.read_text() == before
    assert ai_node("check", "--config", shop.config).code == 0


def test_remove_asks_first(shop: Shop, ai_node: Command) -> None:
    added(shop, ai_node)
    said = ai_node("engine", "remove", "bright", "--config", shop.config)
    assert said.code == 1
    assert shop.added.exists()
