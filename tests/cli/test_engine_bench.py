"""``engine bench`` and ``compile``: times with their spread, and plans or the reason why not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path, ai_node: Command) -> Shop:
    """With the engine ``bright`` on the shelf."""
    shop = opened(tmp_path)
    assert ai_node("engine", "add", shop.network, "--config", shop.config).code == 0
    return shop


def bench(shop: Shop, ai_node: Command, *words: object) -> Said:
    small = ("--shape", 4, 16, 16, "--runs", 3)
    return ai_node("engine", "bench", "bright", *small, *words, "--config", shop.config)


def test_bench_tells_median_and_quartiles_of_each_stage(shop: Shop, ai_node: Command) -> None:
    (side,) = bench(shop, ai_node, "--json").json["sides"]
    assert list(side["stages"]) == ["steps and window", "network", "findings", "total"]
    for spread in side["stages"].values():
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        assert spread["runs"] == 3
    assert side["words"].startswith("ONNX Runtime")
    assert "2 more were not counted" in bench(shop, ai_node).out


def test_bench_beside_another_runtime_gives_the_ratio_with_its_spread(
    shop: Shop, ai_node: Command
) -> None:
    said = bench(shop, ai_node, "--vs", "onnx", "--study", shop.study(), "--json").json
    one, other = said["sides"]
    ratio = said["ratio"]["network"]
    assert ratio["median"] == pytest.approx(
        other["stages"]["network"]["median"] / one["stages"]["network"]["median"]
    )
    assert ratio["least"] <= ratio["median"] <= ratio["most"]
    assert "times as long as" in bench(shop, ai_node, "--vs", "onnx").out


def test_bench_beside_torch_says_what_it_needs(shop: Shop, ai_node: Command) -> None:
    said = bench(shop, ai_node, "--vs", "torch")
    assert said.code == 2
    assert "--torch-module" in said.err
    if importlib.util.find_spec("torch") is None:
        module = shop.folder / "n.pt2"
        module.touch()
        said = bench(shop, ai_node, "--vs", "torch", "--torch-module", module)
        assert said.code == 1
        assert "torch is not installed here" in said.err


def test_compile_without_a_gpu_says_why_in_one_sentence(shop: Shop, ai_node: Command) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    said = ai_node("engine", "compile", "bright", "--config", shop.config)
    assert said.code == 1
    assert len(said.err.strip().splitlines()) == 1
    assert "NVIDIA" in said.err or "pycuda" in said.err


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None
    and importlib.util.find_spec("tensorrt_rtx") is None,
    reason="the extra rtx (TensorRT-RTX) is not installed",
)
def test_compile_dry_runs_without_a_gpu(shop: Shop, ai_node: Command) -> None:
    said = ai_node(
        "engine", "compile", "bright", "--dry-run", "--capability", "8.9",
        "--config", shop.config, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    (told,) = said.json
    assert told["library"].startswith("TensorRT-RTX")
    assert told["layers"] >= 2
    assert not (shop.folder / "state" / "plans").exists()


def test_compile_of_a_precision_that_the_package_lacks_says_how_to_make_it(
    shop: Shop, ai_node: Command
) -> None:
    said = ai_node(
        "engine", "compile", "bright", "--dry-run", "--precision", "fp16", "--config", shop.config
    )
    assert said.code == 1
    assert "has no model.fp16.onnx" in said.err
