"""The guide of engines/README.md, command by command, as it is written there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.hospital import SPEC, small_study
from tests.cli.conftest import Said
from tests.cli.conftest import ai_node as ai_node
from tests.cli.conftest import own_logging as own_logging
from tests.cli.shop import Shop, opened
from tests.engines.package import brighter_than
from tests.places import ROOT

GUIDE = (ROOT / "engines/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Every command of the guide, as its words."""
    for block in BLOCKS:
        for line in block.splitlines():
            yield shlex.split(line)


def present(words: list[str]) -> bool:
    """Whether what a command needs beside the node is installed."""
    if "openvino" in words:
        return importlib.util.find_spec("openvino") is not None
    if "--dry-run" in words:
        return importlib.util.find_spec("tensorrt_rtx_bindings") is not None
    return True


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A folder with all that the guide names: the network, a study, masks."""
    shop = opened(tmp_path)
    brighter_than(tmp_path / "lesion.onnx", 2.0, steepness=20.0)
    shop.study()
    shop.study(small_study(SPEC), "studies/one")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "one.npy", np.zeros((6, 32, 24), np.uint8))
    monkeypatch.setenv("AI_NODE_CONFIG", str(shop.config))
    monkeypatch.chdir(tmp_path)
    return shop


def test_every_command_of_the_guide_does_what_it_says(
    shop: Shop, ai_node: Callable[..., Said]
) -> None:
    package = shop.folder / "state" / "engines" / "lesion"
    done: list[str] = []
    for program, *words in commands():
        assert program == "ai-node"
        if "--live" in words or words == ["engine", "verify", "lesion"] and done:
            # The reader has put the manifest right and written the card by now.
            manifest = package / "engine.toml"
            lines = manifest.read_text().splitlines()
            manifest.write_text("\n".join(one.partition("  # guessed")[0] for one in lines))
            (package / "CARD.md").write_text("# Model card: lesion\n")
        if present(words):
            said = ai_node(*words)
            assert said.code == 0, f"{words}: {said.err}"
            done.append(words[1])
    assert [one.mode for one in shop.settings.engines if one.package == "lesion"] == ["live"]
    assert {"add", "show", "try", "verify", "enable", "list"} <= set(done)
    assert (shop.folder / "out" / "overlay.png").is_file()


def test_the_guide_names_every_command_of_engines(ai_node: Callable[..., Said]) -> None:
    for name in re.findall(r"│ (\w+) ", ai_node("engine", "--help").out):
        assert f"engine {name}" in GUIDE or f"`{name}`" in GUIDE, name
