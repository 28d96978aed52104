"""``engine export``: what a person types, and what is said where torch is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said
from tests.trained_models import folds, monai_bundle

Command = Callable[..., Said]


def test_what_is_no_model_is_refused(ai_node: Command, tmp_path: Path) -> None:
    said = ai_node("engine", "export", tmp_path, "--out", tmp_path / "model.onnx")
    assert said.code != 0
    assert "neither a MONAI bundle" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patch", ["96", "96,96,0", "a,b,c", "1,2,3,4", "9,-9"])
def test_patch_that_is_none_is_refused(patch: str, ai_node: Command, tmp_path: Path) -> None:
    said = ai_node("engine", "export", tmp_path, "--out", tmp_path, "--patch", patch)
    assert said.code != 0
    assert "such as 96,96,96" in said.err


def test_bundle_is_exported_and_the_next_step_is_said(ai_node: Command, tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    out = bundle / "models" / "model.onnx"
    said = ai_node("engine", "export", bundle, "--out", out, "--patch", "16x16x8")
    assert said.code == 0, said.err
    assert f"{out}: answers (1, 2, 16, 16, 8); at most " in said.out
    assert f"Next: ai-node engine add {bundle}" in said.out


def test_json_has_every_fold_with_its_difference(ai_node: Command, tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    said = ai_node("engine", "export", source, "--out", source, "--json")
    assert [Path(one["path"]).parent.name for one in said.json] == ["fold_0", "fold_1"]
    assert all(one["difference"] < 1e-3 * one["greatest"] for one in said.json)
