"""Export: what is recognised, what is missing, and that only what was checked is written."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from node import export as module
from node.domain.errors import ImportRefused, RuntimeUnavailable
from node.export import Asked, export
from node.nnunet import understood
from node.runtimes.onnx import Onnx
from tests.trained_models import folds, monai_bundle, needs

SHEETS = ("plans.json", "dataset.json")


def refused(source: Path, out: Path) -> str:
    with pytest.raises(ImportRefused) as raised:
        list(export(source, out))
    return str(raised.value)


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in SHEETS:
        (folder / name).write_text("{}")
    return folder


def test_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/constants.pkl", b"")
    words = refused(path, tmp_path / "model.onnx")
    assert "model.ts is TorchScript" in words
    assert "torch.onnx.export(network.eval(), (torch.zeros(2, channels, *patch),)" in words
    assert "opset_version=18" in words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.pt", "model.pt has weights, or a pickled module whose reading would execute it"),
        ("model.onnx", "is ONNX already: ai-node engine add"),
        ("model.pt2", "torch.onnx.export(torch.export.load('model.pt2'), "),
        ("bundle.zip", "unpack bundle.zip first"),
    ],
)
def test_single_file_is_refused_with_the_way_out(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something")
    assert words in refused(tmp_path / name, tmp_path / "out.onnx")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "neither a MONAI bundle" in refused(tmp_path, tmp_path)
    assert "there is no" in refused(tmp_path / "nothing", tmp_path)


def test_folds_need_a_folder_to_go_to(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    assert "--out is a folder" in refused(source, tmp_path / "model.onnx")


def test_folder_of_several_models_is_refused_with_their_names(tmp_path: Path) -> None:
    model_folder(tmp_path / "Dataset001" / "nnUNetTrainer__nnUNetPlans__2d")
    words = refused(tmp_path / "Dataset001", tmp_path)
    assert "several trained models" in words
    assert "nnUNetTrainer__nnUNetPlans__2d" in words


@pytest.mark.parametrize("library", ["monai", "nnunetv2"])
def test_missing_library_is_named_with_the_command_that_brings_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    if library == "monai":
        (source / "configs").mkdir(parents=True)
        (source / "configs" / "inference.json").write_text("{}")
    else:
        model_folder(source)
    found = importlib.util.find_spec

    def absent(name: str) -> object:
        return None if name in {"torch", library} else found(name)

    monkeypatch.setattr(module.importlib.util, "find_spec", absent)
    out = tmp_path / "out"
    with pytest.raises(RuntimeUnavailable) as raised:
        list(export(source, out))
    words = str(raised.value)
    assert words.startswith("exporting needs torch, ")
    assert f"uvx --from 'dicom-ai-node[train]' --with {library} ai-node engine export" in words
    assert f"pip install 'dicom-ai-node[train]' {library}" in words
    assert not out.exists()


def exported(source: Path, out: Path, asked: Asked | None = None) -> Sequence[module.Traced]:
    return list(export(source, out, asked))


def test_bundle_becomes_one_file_that_answers_as_torch(tmp_path: Path) -> None:
    source = monai_bundle(tmp_path / "bundle")
    out = source / "models" / "model.onnx"
    (traced,) = exported(source, out)
    assert traced.path == out
    assert traced.shape == (1, 2, 16, 16, 16)
    assert traced.difference < 1e-4 * traced.greatest
    assert traced.notes == ("weights of models/model.pt",)
    session = Onnx().load(out)
    assert [str(one) for one in session.inputs] == ["image: float32 (any, 1, 16, 16, 16)"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model.pt"]
    assert out.stat().st_mode & 0o777 == 0o644


def test_patch_and_folder_of_the_export_can_be_chosen(tmp_path: Path) -> None:
    source = monai_bundle(tmp_path / "bundle")
    (traced,) = exported(source, tmp_path / "out", Asked((32, 16, 16)))
    assert traced.path == tmp_path / "out" / "model.onnx"
    assert traced.shape == (1, 2, 32, 16, 16)


def test_exported_folds_are_a_model_folder_that_can_be_added(tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    out = tmp_path / "exported"
    made = exported(source, out)
    assert [one.path for one in made] == [out / f"fold_{n}" / "model.onnx" for n in range(2)]
    trained = understood(out)
    assert trained.configuration == "3d_fullres"
    assert trained.mirror == (0, 2)
    assert trained.mirror_stated
    assert trained.models == tuple(one.path for one in made)
    assert not (out / "fold_0" / "checkpoint_final.pth").exists()


def test_export_into_the_model_folder_adds_files_and_changes_none(tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    exported(source, source)
    after = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert sorted(path.name for path in after.keys() - before.keys()) == [
        "model.json", "model.json", "model.onnx", "model.onnx",
    ]  # fmt: skip


def test_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    needs("torch", "monai", "onnxscript")
    source = monai_bundle(tmp_path / "bundle")
    out = tmp_path / "model.onnx"
    out.write_bytes(b"former")
    assert "does not take a block" in refused_with(source, out, Asked((16, 16)))
    assert out.read_bytes() == b"former"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model.onnx"]


def refused_with(source: Path, out: Path, asked: Asked) -> str:
    with pytest.raises(ImportRefused) as raised:
        list(export(source, out, asked))
    return str(raised.value)
