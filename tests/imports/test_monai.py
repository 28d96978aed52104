"""MONAI bundles: which published ones translate, which are refused and by which names."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest

from node.bundle import read
from node.cli.engine.add import write
from node.domain.errors import ImportRefused
from node.imports import IMPORTS
from node.imports.monai import DRAFT, Monai
from node.proposal import Proposal
from tests.engines.package import network as tiny
from tests.imports.published import BUNDLES
from tests.imports.zoo import ARGMAX, DEVICE, SOFTMAX, Bundle, after, step

TRANSLATING = [one for one in BUNDLES if not one.refused]
REFUSED = [one for one in BUNDLES if one.refused]
SPLEEN = next(one for one in BUNDLES if one.name == "spleen_ct_segmentation")
WEIGHTS = "models/model.pt"


def laid(folder: Path, bundle: Bundle, **changed: Any) -> Path:
    """A bundle's folder, with weights but without a network as ONNX."""
    source = folder / bundle.name
    (source / "configs").mkdir(parents=True)
    (source / "models").mkdir()
    configuration = {**bundle.configuration(), **changed}
    (source / "configs/inference.json").write_text(json.dumps(configuration))
    (source / "configs/metadata.json").write_text(json.dumps(bundle.metadata()))
    (source / WEIGHTS).write_bytes(b"weights")
    (source / "LICENSE").write_text("Apache License\nVersion 2.0")
    return source


def exported(source: Path, bundle: Bundle) -> Path:
    """The folder with a network that has the bundle's channels."""
    inputs = max(len(bundle.channels), 1)
    axes = ("h", "w") if bundle.inferer["_target_"] == "SliceInferer" else ("d", "h", "w")
    weights = [[1.0] * inputs] * len(bundle.labels)
    tiny(source / "models/model.onnx", weights, [0.0] * len(weights), "Identity", ("n", "c", *axes))
    return source


def proposed(source: Path) -> Proposal:
    return Monai().propose(source, "tested")


def rows(proposal: Proposal, table: str) -> list[dict[str, Any]]:
    return [dict(block.rows) for block in proposal.blocks if block.name == table]


def refusal(source: Path) -> str:
    with pytest.raises(ImportRefused) as refused:
        proposed(source)
    return str(refused.value)


@pytest.mark.parametrize("bundle", TRANSLATING, ids=lambda bundle: bundle.name)
def test_published_bundle_becomes_an_engine(bundle: Bundle, tmp_path: Path) -> None:
    proposal = proposed(exported(laid(tmp_path, bundle), bundle))
    assert tuple(row["kind"] for row in rows(proposal, "pre")) == bundle.pre_kinds
    assert tuple(row["kind"] for row in rows(proposal, "post")) == bundle.post_kinds
    differing = [note for note in proposal.notes if note.startswith("differs from MONAI")]
    assert len(differing) == bundle.remarks
    package = write(proposal, tmp_path / "engines")
    assert package.manifest.engine.name == "tested"
    assert package.card is None


@pytest.mark.parametrize("bundle", REFUSED, ids=lambda bundle: bundle.name)
def test_what_has_no_counterpart_is_named_all_at_once(bundle: Bundle, tmp_path: Path) -> None:
    lines = refusal(laid(tmp_path, bundle)).splitlines()[1:-1]
    assert [name in line for name, line in zip(bundle.refused, lines, strict=True)] == [
        True for _ in lines
    ]


def test_weights_without_a_network_give_the_command_that_exports_it(tmp_path: Path) -> None:
    source = laid(tmp_path, SPLEEN)
    words = refusal(source)
    assert f"ai-node engine export {source} --out {source}/models/model.onnx" in words
    assert "UNet, 1 input channels, 2 output channels, blocks of 96 x 96 x 96" in words
    assert WEIGHTS in words


def test_bundle_without_weights_says_where_they_are_listed(tmp_path: Path) -> None:
    source = laid(tmp_path, SPLEEN)
    (source / WEIGHTS).unlink()
    assert "large_files.yml" in refusal(source)


def test_all_roles_of_several_series_are_named_after_the_channels(tmp_path: Path) -> None:
    bundle = next(one for one in BUNDLES if one.name == "brats_mri_segmentation")
    proposal = proposed(exported(laid(tmp_path, bundle), bundle))
    assert [row["role"] for row in rows(proposal, "series")] == ["t1c", "t1", "t2", "flair"]
    assert rows(proposal, "input")[0]["roles"].value == ["t1c", "t1", "t2", "flair"]
    assert {row["label"]: row["name"] for row in rows(proposal, "finding")} == {
        1: "Tumor core", 2: "Whole tumor", 4: "Enhancing tumor",
    }  # fmt: skip
    assert rows(proposal, "post")[0]["precedence"] == [2, 0, 1]


def test_what_makes_no_difference_is_listed_with_the_reason(tmp_path: Path) -> None:
    notes = proposed(exported(laid(tmp_path, SPLEEN), SPLEEN)).notes
    assert "not needed: LoadImaged, because the node reads the DICOM series itself" in notes
    assert "not needed: SaveImaged, because results are written as DICOM" in notes


def test_what_the_bundle_does_not_state_is_marked(tmp_path: Path) -> None:
    text = proposed(exported(laid(tmp_path, SPLEEN), SPLEEN)).manifest()
    marked = [line for line in text.splitlines() if "# guessed" in line]
    assert any(line.startswith("accepts") for line in marked)
    assert any(line.startswith("licence") and "Apache-2.0" in line for line in marked)


def test_draft_of_a_card_is_no_card(tmp_path: Path) -> None:
    proposal = proposed(exported(laid(tmp_path, SPLEEN), SPLEEN))
    assert "not to be used for diagnostic purposes" in proposal.texts[DRAFT]
    assert "Not stated by the bundle" in proposal.texts[DRAFT]
    assert "CARD.md" not in proposal.texts


def test_terms_of_the_bundle_go_with_the_package(tmp_path: Path) -> None:
    package = write(proposed(exported(laid(tmp_path, SPLEEN), SPLEEN)), tmp_path / "engines")
    assert (package.folder / "LICENSE").read_text() == "Apache License\nVersion 2.0"


def packed(path: Path, source: Path, root: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, f"{root}{file.relative_to(source)}")
    return path


@pytest.mark.parametrize("root", ["", "spleen_ct_segmentation/"])
def test_zip_gives_the_same_package_as_the_folder(root: str, tmp_path: Path) -> None:
    source = exported(laid(tmp_path, SPLEEN), SPLEEN)
    archive = packed(tmp_path / "bundle.zip", source, root)
    assert Monai().recognises(archive)
    assert proposed(archive).manifest() == proposed(source).manifest()
    write(proposed(archive), tmp_path / "engines")
    assert read(tmp_path / "engines/tested").model.is_file()


def test_zip_without_network_is_to_be_unpacked_first(tmp_path: Path) -> None:
    words = refusal(packed(tmp_path / "spleen.zip", laid(tmp_path, SPLEEN)))
    assert "unpack it (spleen.zip)" in words
    assert f"ai-node engine export {tmp_path / 'spleen'}" in words


def test_no_code_of_the_bundle_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    attack = f"$__import__('pathlib').Path('{proof}').touch() or [1.5, 1.5, 2.0]"
    pre = [*SPLEEN.pre[:3], step("Spacingd", pixdim=attack), step("scripts.mine.Mine")]
    source = laid(
        tmp_path,
        SPLEEN,
        preprocessing={"_target_": "Compose", "transforms": pre},
        imports=[f"$open('{proof}', 'w')"],
        initialize=[attack],
    )
    (source / "scripts").mkdir()
    (source / "scripts/__init__.py").write_text(f"open('{proof}', 'w')")
    (source / "scripts/mine.py").write_text(f"open('{proof}', 'w')")
    words = refusal(source)
    assert "preprocessing::transforms::3: Spacingd: its pixdim is" in words
    assert "a call of __import__" in words
    assert "preprocessing::transforms::4: scripts.mine.Mine" in words
    assert not proof.exists()
    assert not {"monai", "torch", "scripts"} & set(sys.modules)


def test_option_that_is_not_known_is_named(tmp_path: Path) -> None:
    pre = [*SPLEEN.pre[:3], step("Spacingd", pixdim=[1, 1, 1], sharpen=True)]
    changed = {"preprocessing": {"_target_": "Compose", "transforms": pre}}
    assert "its option sharpen is not known" in refusal(laid(tmp_path, SPLEEN, **changed))


def test_weights_that_the_digest_would_not_cover_are_refused(tmp_path: Path) -> None:
    source = exported(laid(tmp_path, SPLEEN), SPLEEN)
    path = source / "models/model.onnx"
    content = onnx.load(path)
    weight = content.graph.initializer.add(name="w", dims=[1], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    path.write_bytes(content.SerializeToString())
    path.with_name("weights.bin").write_bytes(bytes(4))
    assert "its weights lie in weights.bin" in refusal(source)


def test_network_with_other_channels_is_refused(tmp_path: Path) -> None:
    source = laid(tmp_path, SPLEEN)
    tiny(
        source / "models/model.onnx", [[1.0]] * 3, [0.0] * 3, "Identity", ("n", "c", "d", "h", "w")
    )
    assert "3 output channels, it has 2" in refusal(source)


def test_network_that_was_exported_for_other_blocks_is_refused(tmp_path: Path) -> None:
    source = laid(tmp_path, SPLEEN)
    tiny(source / "models/model.onnx", [[1.0]] * 2, [0.0] * 2, "Identity", (1, "c", 64, 96, 96))
    assert "64 voxels along an axis, the inferer's roi_size has 96" in refusal(source)


def test_broken_configuration_is_refused_in_words(tmp_path: Path) -> None:
    source = laid(tmp_path, SPLEEN)
    (source / "configs/inference.json").write_text("{")
    assert "configs/inference.json cannot be read" in refusal(source)
    (source / "configs/inference.json").write_text("[]")
    assert "no table of keys and values" in refusal(source)
    (source / "configs/inference.json").unlink()
    assert "there is no configs/inference.json" in refusal(source)


def test_chain_that_is_missing_is_named(tmp_path: Path) -> None:
    words = refusal(laid(tmp_path, SPLEEN, preprocessing="@nothing", inferer=None))
    assert "preprocessing: '@nothing' (there is nothing at nothing) is no list" in words
    assert "inferer: there is none" in words


def test_bundle_is_recognised_and_other_files_are_not(tmp_path: Path) -> None:
    assert IMPORTS["monai"] is Monai
    assert Monai().recognises(laid(tmp_path, SPLEEN))
    (tmp_path / "model.onnx").write_bytes(b"no zip")
    (tmp_path / "empty").mkdir()
    for other in ("model.onnx", "empty", "absent"):
        assert not Monai().recognises(tmp_path / other)
    packed(tmp_path / "other.zip", tmp_path / "empty")
    assert not Monai().recognises(tmp_path / "other.zip")


def test_labels_that_are_interpolated_are_named_as_a_difference(tmp_path: Path) -> None:
    bundle = next(one for one in BUNDLES if one.name == "prostate_mri_anatomy")
    proposal = proposed(exported(laid(tmp_path, bundle), bundle))
    assert any("interpolates label numbers linearly" in note for note in proposal.notes)
    assert rows(proposal, "pre")[1]["back"] == 0


def test_way_back_without_invert_takes_the_nearest_label(tmp_path: Path) -> None:
    post = [SOFTMAX, ARGMAX, after("SaveImaged", resample=True)]
    source = laid(tmp_path, SPLEEN, postprocessing={"_target_": "Compose", "transforms": post})
    proposal = proposed(exported(source, SPLEEN))
    assert rows(proposal, "pre")[1]["back"] == 0
    assert any("no Invert" in note for note in proposal.notes)


def test_two_dimensional_network_needs_a_slice_inferer(tmp_path: Path) -> None:
    net = {"_target_": "UNet", "in_channels": 1, "out_channels": 2, "spatial_dims": 2}
    assert "it sees pictures" in refusal(laid(tmp_path, SPLEEN, network_def=net))


def test_device_in_an_option_makes_no_difference(tmp_path: Path) -> None:
    post = [SOFTMAX, after("ToDeviced", device=DEVICE), ARGMAX]
    source = laid(tmp_path, SPLEEN, postprocessing={"_target_": "Compose", "transforms": post})
    assert rows(proposed(exported(source, SPLEEN)), "post") == [{"kind": "argmax"}]
