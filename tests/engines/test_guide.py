"""The guide of engines/README.md, command by command, as it is written there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from tests.acceptance.hospital import SPEC, small_study
from tests.cli.conftest import Said
from tests.cli.conftest import ai_node as ai_node
from tests.cli.conftest import own_logging as own_logging
from tests.cli.shop import Shop, opened
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


def network(path: Path) -> None:
    """Finds what is bright by five convolutions, so that INT8 has something to gain."""
    names = [f"c{n}" for n in range(5)]
    nodes, weights = [], []
    for n, name in enumerate(names):
        kernel = np.full((1, 1, 1, 1), 20.0 if n == 4 else 1.0, np.float32)
        bias = np.full(1, -40.0 if n == 4 else 0.0, np.float32)
        weights += [numpy_helper.from_array(kernel, f"{name}w")]
        weights += [numpy_helper.from_array(bias, f"{name}b")]
        given = names[n - 1] if n else "image"
        nodes.append(helper.make_node("Conv", [given, f"{name}w", f"{name}b"], [name]))
    nodes.append(helper.make_node("Sigmoid", [names[-1]], ["probability"]))
    shape = ["batch", 1, "rows", "columns"]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, shape)],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A folder with all that the guide names: the network, a study, masks."""
    shop = opened(tmp_path)
    network(tmp_path / "lesion.onnx")
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
            # The guide says what becomes of a variant that loses too much.
            unkept = words[1] == "variants" and "int8 FAILED and was not kept" in said.out
            assert said.code == 0 or unkept, f"{words}: {said.err}"
            done.append(words[1])
    assert [one.mode for one in shop.settings.engines if one.package == "lesion"] == ["live"]
    assert {"add", "show", "try", "verify", "enable", "list"} <= set(done)
    assert (shop.folder / "out" / "overlay.png").is_file()


def test_the_guide_names_every_command_of_engines(ai_node: Callable[..., Said]) -> None:
    for name in re.findall(r"│ (\w+) ", ai_node("engine", "--help").out):
        assert f"engine {name}" in GUIDE or f"`{name}`" in GUIDE, name
