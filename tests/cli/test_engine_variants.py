"""``engine variants``: FP16 and INT8 of an added engine, and what they lose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from node.gpu.lineage import origin
from node.gpu.recipe import digest
from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened
from tests.places import ROOT

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path, ai_node: Command) -> Shop:
    """With the engine ``bright`` on the shelf."""
    shop = opened(tmp_path)
    assert ai_node("engine", "add", shop.network, "--config", shop.config).code == 0
    return shop


def asked(shop: Shop, ai_node: Command, *words: object) -> Said:
    return ai_node("engine", "variants", "bright", *words, "--config", shop.config)


def test_fp16_is_made_when_nothing_is_said(shop: Shop, ai_node: Command) -> None:
    said = asked(shop, ai_node)
    assert said.code == 0, said.err
    (path,) = shop.added.glob("*.fp16.onnx")
    assert not list(shop.added.glob("*.int8.onnx"))
    assert "agreement of labels" in said.out
    assert "largest, mean" in said.out
    assert "in FP32: 1 Sigmoid" in said.out
    assert f"{path}: 0.00 MB, where FP32 has 0.00 MB" in said.out
    (original,) = [one for one in shop.added.glob("*.onnx") if one != path]
    assert origin(path) == digest(original)


def test_json_has_gates_and_sizes(shop: Shop, ai_node: Command) -> None:
    (made,) = asked(shop, ai_node, "--json", "--calibrate", shop.study()).json
    assert (made["precision"], made["kept"], made["verdict"]["passed"]) == ("fp16", True, True)
    assert made["files"][0]["after"] > 0
    assert {gate["name"] for gate in made["verdict"]["gates"]} >= {"share of finite values"}


def test_int8_without_studies_is_refused(shop: Shop, ai_node: Command) -> None:
    said = asked(shop, ai_node, "--int8")
    assert said.code != 0
    assert "--calibrate" in said.err
    assert not list(shop.added.glob("*.int8.onnx"))


def test_variant_that_fails_is_not_kept_and_the_command_fails(shop: Shop, ai_node: Command) -> None:
    (path,) = shop.added.glob("*.onnx")
    network = onnx.load(str(path))
    (weight,) = [one for one in network.graph.initializer if np.prod(one.dims) == 1][:1]
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, 6e4, np.float32), weight.name))
    (conv,) = [node for node in network.graph.node if node.op_type == "Conv"]
    undone = helper.make_node("Sub", [conv.output[0], conv.output[0]], ["nothing"])
    network.graph.node[-1].input[0] = "nothing"
    network.graph.node.insert(1, undone)
    onnx.save(network, str(path))
    manifest = shop.added / "engine.toml"
    before = next(line for line in manifest.read_text().splitlines() if line.startswith("sha256"))
    fresh = f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"'
    manifest.write_text(manifest.read_text().replace(before, fresh))
    said = asked(shop, ai_node)
    assert said.code == 1
    assert "FAILED" in said.out
    assert "fp16 FAILED and was not kept; FP32 serves, or keep it with --force" in said.out
    assert not list(shop.added.glob("*.fp16.onnx"))
    assert asked(shop, ai_node, "--force").code == 1
    assert list(shop.added.glob("*.fp16.onnx"))


def test_unknown_engine_is_refused(shop: Shop, ai_node: Command) -> None:
    said = ai_node("engine", "variants", "brigth", "--config", shop.config)
    assert said.code != 0
    assert "bright" in said.err


def test_a_shipped_engine_stays_as_it_is(shop: Shop, ai_node: Command) -> None:
    said = ai_node("engine", "variants", "mr-brain-lesion", "--config", shop.config)
    assert said.code == 1
    assert "mr-brain-lesion is shipped with the node and stays as it is" in said.err
    assert not list((ROOT / "engines" / "mr-brain-lesion").glob("*.fp16.onnx"))
