"""An nnU-Net model folder becomes an engine that answers as nnU-Net itself does.

The fixtures were written by ``nnunet_reference.py`` with nnU-Net's own predictor.
"""

from __future__ import annotations

import json
import pickle  # noqa: S403 - a trap is made of it, never opened
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from node import bundle
from node.bundle import Bundle
from node.cli import app
from node.dicom.geometry import arrange
from node.dicom.pixels import load
from node.domain.errors import ImportRefused
from node.domain.sampling import resampled
from node.domain.volume import Grid, Volume
from node.engine import Engine
from node.imports import IMPORTS
from node.imports.nnunet import Nnunet
from node.proposal import Guess, Proposal
from node.runtimes.onnx import Onnx
from node.testing.series import SeriesSpec, make, received, save

FIXTURES = Path(__file__).parent / "fixtures" / "nnunet"
EVERY = 29
"""The fixtures keep so manieth value of the probabilities."""

AXES = {"ct": "RAS", "anisotropic": "RAS", "planar": "", "regions": "", "folds": "RAS"}
"""How each case's training files lay, where its import has to be told."""

SINGLE = 2e-5
"""Greatest difference of a probability where nnU-Net sums in single precision, as the node does."""
HALF = 0.006
"""The same where it sums in half precision, as it does: its logits then have 11 bits."""


class Reference:
    """A case's phantom and nnU-Net's answers."""

    def __init__(self, case: str) -> None:
        with np.load(FIXTURES / case / "reference.npz") as stored:
            self.voxels: NDArray[np.int16] = stored["voxels"]
            self.affine: NDArray[np.float64] = stored["affine"]
            self.labels: NDArray[np.uint8] = stored["labels"]
            self.probability: NDArray[np.float32] = stored["probability"]
            self.exact_labels: NDArray[np.uint8] = stored["exact_labels"]
            self.exact_probability: NDArray[np.float32] = stored["exact_probability"]

    def volumes(self, roles: tuple[str, ...]) -> dict[str, Volume]:
        """What a scanner would have sent for each role."""
        return {
            role: Volume(voxels, self.affine, "1.2.3")
            for role, voxels in zip(roles, self.voxels, strict=True)
        }


def package(proposal: Proposal, folder: Path) -> Bundle:
    """Write a proposal down and read it as the node would."""
    folder.mkdir(exist_ok=True)
    (folder / "engine.toml").write_text(proposal.manifest(), encoding="utf-8")
    for name, source in proposal.files.items():
        shutil.copy(source, folder / name)
    return bundle.read(folder)


def answered(made: Bundle, reference: Reference) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The engine's labels (k, j, i) and probabilities (c, k, j, i) on the scanner's grid."""
    volumes = reference.volumes(made.manifest.roles)
    with Engine.load(made, Onnx(threads=1)) as engine:
        prediction = engine.predict(volumes)
    return made.manifest.post[0].apply(prediction).voxels, prediction.voxels


def copied(case: str, folder: Path) -> Path:
    """A case's model folder, to be changed."""
    return Path(shutil.copytree(FIXTURES / case, folder / case))


def change(path: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    """Alter a JSON file."""
    table = json.loads(path.read_text())
    alter(table)
    path.write_text(json.dumps(table))


def block(proposal: Proposal, name: str, kind: str = "") -> dict[str, Any]:
    """The rows of a table of the manifest, guesses as what was guessed."""
    rows = next(
        one.rows
        for one in proposal.blocks
        if one.name == name and kind in {"", one.rows.get("kind")}
    )
    return {key: one.value if isinstance(one, Guess) else one for key, one in rows.items()}


@pytest.mark.parametrize("case", sorted(AXES))
def test_engine_answers_as_nnunet_itself(case: str, tmp_path: Path) -> None:
    reference = Reference(case)
    made = package(Nnunet(AXES[case]).propose(FIXTURES / case, case), tmp_path)
    labels, probability = answered(made, reference)
    counts = np.bincount(reference.labels.ravel(), minlength=3)
    assert counts.min() > 100, "a fixture without every label shows nothing"
    sampled = probability.ravel()[::EVERY]
    np.testing.assert_allclose(sampled, reference.exact_probability, rtol=0, atol=SINGLE)
    assert np.mean(labels == reference.exact_labels) >= 0.9999
    # What is left is nnU-Net's rounding: it is as far from its own single precision.
    assert np.mean(labels == reference.labels) >= 0.999
    np.testing.assert_allclose(sampled, reference.probability, rtol=0, atol=HALF)


@pytest.mark.parametrize(
    ("case", "own", "other"),
    [
        ("ct", 'centre = "voxel"', 'centre = "middle"'),
        ("ct", 'placement = "rounded"', 'placement = "even"'),
        ("ct", 'mirror = ["k", "j", "i"]', ""),
        ("ct", 'activated = "source"', 'activated = "blended"'),
        ("ct", 'activated = "source"', 'activated = "blocks"'),
        ("ct", "order = 3", "order = 1"),
        ("ct", "order_back = 1", "order_back = 3"),
        ("folds", "fill = 0.0", 'fill = "minimum"'),
        ("anisotropic", 'separate = "auto"', 'separate = "never"'),
        ("anisotropic", "masked = [true, true]", "masked = [false, false]"),
    ],
)
def test_every_choice_of_nnunets_shows_in_its_answer(
    case: str, own: str, other: str, tmp_path: Path
) -> None:
    """Else the fixtures could not tell whether the node makes it, too."""
    reference = Reference(case)
    proposal = Nnunet(AXES[case]).propose(FIXTURES / case, case)
    package(proposal, tmp_path)
    text = proposal.manifest()
    assert own in text
    (tmp_path / "engine.toml").write_text(text.replace(own, other), encoding="utf-8")
    _, probability = answered(bundle.read(tmp_path), reference)
    away = np.abs(probability.ravel()[::EVERY] - reference.exact_probability)
    assert away.max() > 100 * SINGLE


def test_a_wrong_side_is_seen(tmp_path: Path) -> None:
    """The phantom is asymmetric and this network sees no mirror images."""
    reference = Reference("regions")
    proposal = Nnunet().propose(FIXTURES / "regions", "regions")
    made = package(proposal, tmp_path)
    text = proposal.manifest().replace('axes = "RAS"', 'axes = "LAS"')
    (tmp_path / "engine.toml").write_text(text, encoding="utf-8")
    turned = bundle.read(tmp_path)
    right, _ = answered(made, reference)
    wrong, _ = answered(turned, reference)
    assert np.mean(right == reference.exact_labels) > np.mean(wrong == reference.exact_labels)
    assert np.mean(wrong == reference.exact_labels) < 0.999


def test_series_of_a_scanner_gives_what_nnunet_made_of_its_nifti_files(tmp_path: Path) -> None:
    """Sagittal slices of two series, the first of them the most left one, to nnU-Net's answer."""
    reference = Reference("anisotropic")
    spacing = np.linalg.norm(reference.affine[:3, :3], axis=0)
    last = reference.affine @ [len(reference.labels) - 1, 0, 0, 1]
    volumes: dict[str, Volume] = {}
    for role, voxels in zip(("t1w", "flair"), reference.voxels, strict=True):
        spec = SeriesSpec(
            orientation=(0, 1, 0, 0, 0, -1),
            origin=(last[0], last[1], last[2]),
            spacing=(spacing[0], spacing[1], spacing[2]),
            series=role,
        )
        files = save(make(spec, voxels[::-1].astype(np.uint16)), tmp_path / role)
        volumes[role] = load(arrange(received(files[::-1])))
    made = package(Nnunet("RAS").propose(FIXTURES / "anisotropic", "knee"), tmp_path / "engine")
    with Engine.load(made, Onnx(threads=1)) as engine:
        prediction = engine.predict(volumes)
    labels = made.manifest.post[0].apply(prediction)
    there = resampled(labels, Grid(reference.labels.shape, reference.affine), order=0)
    assert np.array_equal(prediction.affine, volumes["t1w"].affine)
    assert np.mean(there.voxels == reference.labels) >= 0.999
    assert np.mean(labels.voxels == reference.labels) < 0.999


def test_command_makes_a_package_of_the_folder(tmp_path: Path) -> None:
    source = FIXTURES / "folds"
    result = CliRunner().invoke(app, ["engine", "add", str(source), "--to", str(tmp_path)])
    assert result.exit_code == 0, result.output
    made = bundle.read(tmp_path / "folds")
    assert [path.name for path in made.models] == ["fold_0.onnx", "fold_1.onnx"]


def test_every_fold_counts(tmp_path: Path) -> None:
    reference = Reference("folds")
    folder = copied("folds", tmp_path)
    shutil.rmtree(folder / "fold_1")
    alone = package(Nnunet("RAS").propose(folder, "folds"), tmp_path / "alone")
    assert not alone.manifest.members
    labels, _ = answered(alone, reference)
    assert np.mean(labels == reference.exact_labels) < 0.9999


def test_findings_are_the_labels_of_the_data_set(tmp_path: Path) -> None:
    made = package(Nnunet("RAS").propose(FIXTURES / "ct", "ct"), tmp_path)
    assert [(label.label, label.name) for label in made.manifest.findings] == [
        (1, "organ"), (2, "lesion"),
    ]  # fmt: skip
    with Engine.load(made, Onnx(threads=1)) as engine:
        found = engine.examine(Reference("ct").volumes(made.manifest.roles), "job")
    assert {finding.concept.label for finding in found.findings} == {"organ", "lesion"}
    assert all(finding.probability and finding.probability > 0.3 for finding in found.findings)


def test_regions_become_findings_in_the_order_in_which_they_are_painted(tmp_path: Path) -> None:
    proposal = Nnunet().propose(FIXTURES / "regions", "regions")
    assert block(proposal, "post") == {"kind": "regions", "labels": [1, 2]}
    assert block(proposal, "output")["activation"] == "sigmoid"
    names = [one.rows["name"] for one in proposal.blocks if one.name == "finding"]
    assert [name.value for name in names] == ["whole", "core"]
    made = package(proposal, tmp_path)
    with Engine.load(made, Onnx(threads=1)) as engine:
        found = engine.examine(Reference("regions").volumes(made.manifest.roles), "job")
    assert {finding.concept.label for finding in found.findings} == {"whole", "core"}
    assert all(finding.probability and finding.probability > 0.5 for finding in found.findings)


def test_import_is_found_by_its_kind_and_knows_its_folders(tmp_path: Path) -> None:
    assert IMPORTS["nnunet"] is Nnunet
    assert Nnunet().recognises(FIXTURES / "ct")
    assert not Nnunet().recognises(FIXTURES.parent)
    assert not Nnunet().recognises(FIXTURES / "ct" / "plans.json")
    assert not Nnunet().recognises(tmp_path / "nothing")


def test_folder_of_a_data_set_names_its_models() -> None:
    assert Nnunet().recognises(FIXTURES)
    with pytest.raises(ImportRefused, match="add one of .*nnunet/anisotropic, .*nnunet/ct, "):
        Nnunet().propose(FIXTURES, "all")


def test_transposition_and_orientation_become_one_step() -> None:
    proposal = Nnunet("RAS").propose(FIXTURES / "anisotropic", "knee")
    assert block(proposal, "pre", "orient")["axes"] == "ASR"
    assert block(proposal, "pre", "nnunet_crop")["joint"] is True
    assert block(proposal, "pre", "nnunet_normalise")["masked"] == [True, True]
    assert [one.rows["role"] for one in proposal.blocks if one.name == "series"] == ["t1w", "flair"]


def test_window_is_nnunets_own() -> None:
    proposal = Nnunet().propose(FIXTURES / "planar", "planar")
    assert block(proposal, "window") == {
        "mode": "slice", "patch": [26, 22], "overlap": 0.5, "placement": "rounded",
        "centre": "voxel", "fill": 0.0, "mirror": ["j", "i"],
    }  # fmt: skip
    assert block(proposal, "pre", "nnunet_resample")["spacing"] == [0.0, 1.3, 1.2]


def test_what_the_files_do_not_say_is_marked() -> None:
    guesses = Nnunet().propose(FIXTURES / "ct", "ct").guesses()
    doubted = {guess.partition(":")[0] for guess in guesses}
    assert {"pre.axes", "series.accepts", "finding.type", "engine.version"} <= doubted
    assert not {key for key in doubted if key.startswith(("window.", "output.", "post."))}
    assert "pre.axes" not in str(Nnunet("RAS").propose(FIXTURES / "ct", "ct").guesses())
    assert "pre.axes" not in str(Nnunet().propose(FIXTURES / "regions", "r").guesses())


def test_mirrored_axes_are_a_guess_without_the_exports_file(tmp_path: Path) -> None:
    folder = copied("regions", tmp_path)
    assert "mirror" not in block(Nnunet().propose(folder, "r"), "window")
    change(folder / "fold_0" / "model.json", lambda t: t.pop("inference_allowed_mirroring_axes"))
    proposal = Nnunet().propose(folder, "r")
    assert block(proposal, "window")["mirror"] == ["k", "j", "i"]
    assert any("window.mirror" in guess for guess in proposal.guesses())
    assert any("checkpoint" in note for note in proposal.notes)


@pytest.mark.parametrize(
    ("trainer", "mirror"),
    [
        ("nnUNetTrainer", ["k", "j", "i"]),
        ("nnUNetTrainer_250epochs_NoMirroring", []),
        ("nnUNetTrainer_onlyMirror01", ["k", "j"]),
    ],
)
def test_mirrored_axes_are_guessed_by_the_trainers_name(
    trainer: str, mirror: list[str], tmp_path: Path
) -> None:
    folder = copied("ct", tmp_path).rename(tmp_path / f"{trainer}__nnUNetPlans__3d_fullres")
    (folder / "fold_0" / "model.json").unlink()
    proposal = Nnunet().propose(folder, "ct")
    assert block(proposal, "window")["mirror"] == mirror
    made = package(proposal, tmp_path / "made")
    assert list(made.manifest.window.mirror) == mirror


def test_plans_of_the_first_days_are_understood(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    old, new = (f"foreground_intensity_properties_{end}" for end in ("by_modality", "per_channel"))
    change(folder / "plans.json", lambda table: table.update({old: table.pop(new)}))
    change(folder / "dataset.json", lambda t: t.update(modality=t.pop("channel_names")))
    assert block(Nnunet().propose(folder, "ct"), "pre", "nnunet_normalise")["mean"][0] > 300


def test_channels_ask_for_the_series_that_their_names_say() -> None:
    proposal = Nnunet().propose(FIXTURES / "anisotropic", "brain")
    asked = [one.rows["accepts"].value for one in proposal.blocks if one.name == "series"]
    assert asked[1] == [
        {"fact": "Modality", "equals": "MR"},
        {"fact": "SeriesDescription", "matches": "flair"},
    ]
    scanner = block(Nnunet().propose(FIXTURES / "ct", "ct"), "series")
    assert scanner["accepts"] == [{"fact": "Modality", "equals": "CT"}]


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self._mark), "w"))


def test_checkpoint_is_never_opened_and_its_export_is_spelt_out(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    mark = tmp_path / "executed"
    (folder / "fold_0" / "model.onnx").unlink()
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ImportRefused, match="ai-node engine export") as refused:
        Nnunet().propose(folder, "ct")
    assert f"export {folder} --out {folder}" in str(refused.value)
    assert not mark.exists()


def test_fold_that_was_not_exported_is_not_left_out_silently(tmp_path: Path) -> None:
    folder = copied("folds", tmp_path)
    (folder / "fold_1" / "model.onnx").rename(folder / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(ImportRefused, match="only a checkpoint in fold_1"):
        Nnunet().propose(folder, "folds")


def test_cascade_is_refused_in_words(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    change(folder / "fold_0" / "model.json", lambda t: t.update(configuration="3d_cascade_fullres"))
    change(
        folder / "plans.json",
        lambda t: t["configurations"].update(
            {"3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}}
        ),
    )
    with pytest.raises(ImportRefused, match="second stage of a cascade.*3d_lowres"):
        Nnunet().propose(folder, "ct")


Alter = Callable[[dict[str, Any]], object]


def of_configuration(**keys: Any) -> Alter:
    return lambda table: table["configurations"]["3d_fullres"].update(keys)


@pytest.mark.parametrize(
    ("file", "alter", "words"),
    [
        ("plans", of_configuration(normalization_schemes=["MyNorm"]), "normalisation MyNorm"),
        ("plans", of_configuration(preprocessor_name="Mine"), "preprocessor Mine"),
        ("plans", of_configuration(resampling_fn_data="mine"), "resampling mine"),
        ("plans", of_configuration(patch_size=[16, 20]), "do not fit"),
        ("plans", of_configuration(patch_size=[16, 20, 32]), "patch_size"),
        ("plans", of_configuration(patch_size="large"), "patch_size"),
        ("plans", of_configuration(inherits_from="nowhere"), "'nowhere'"),
        (
            "plans",
            lambda table: table.pop("foreground_intensity_properties_per_channel"),
            "foreground_intensity_properties for channel 0",
        ),
        ("plans", of_configuration(resampling_fn_data_kwargs={"is_seg": True}), "is_seg"),
        (
            "plans",
            of_configuration(resampling_fn_data_kwargs={"force_separate_z": True}),
            "force_separate_z differs",
        ),
        ("plans", lambda table: table.update(label_manager="Mine"), "label manager Mine"),
        ("plans", lambda table: table.update(image_reader_writer="Tiff3DIO"), "Tiff3DIO"),
        ("plans", lambda table: table.update(transpose_forward=[0, 0, 1]), "transpose_forward"),
        ("plans", lambda table: table.pop("configurations"), "configurations"),
        ("plans", of_configuration(inherits_from=["a"]), "no configuration"),
        *(
            ("plans", of_configuration(resampling_fn_data_kwargs={key: value}), f"{key} of")
            for key in ("order", "order_z", "separate_z_anisotropy_threshold")
            for value in ("abc", None, [1], float("nan"))
        ),
        (
            "plans",
            of_configuration(resampling_fn_data_kwargs={"aniso_axis_mode": []}),
            "interpolation",
        ),
        ("dataset", lambda table: table["labels"].pop("lesion"), "2 channels"),
        ("dataset", lambda table: table["labels"].update(lesion=7), "0, 1, 2"),
        ("dataset", lambda table: table["labels"].update(both=[1, 2]), "regions_class_order"),
        ("dataset", lambda table: table.update(channel_names={"0": "a", "1": "b"}), "2 channels"),
        ("dataset", lambda table: table.pop("labels"), "labels"),
    ],
)
def test_what_cannot_be_repeated_is_refused_by_its_name(
    file: str, alter: Alter, words: str, tmp_path: Path
) -> None:
    folder = copied("ct", tmp_path)
    change(folder / f"{file}.json", alter)
    with pytest.raises(ImportRefused, match=words):
        Nnunet().propose(folder, "ct")


@pytest.mark.parametrize("axes", [5, "01", {"0": 1}, [[0]], [7], ["0"]])
def test_mirroring_that_is_no_list_of_axes_is_refused(axes: object, tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    change(
        folder / "fold_0" / "model.json",
        lambda table: table.update(inference_allowed_mirroring_axes=axes),
    )
    with pytest.raises(ImportRefused, match="inference_allowed_mirroring_axes"):
        Nnunet().propose(folder, "ct")


def test_sheets_without_bound_are_refused(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    (folder / "dataset.json").write_text('{"labels": ' + "[" * 100_000)
    with pytest.raises(ImportRefused, match=r"dataset\.json cannot be read"):
        Nnunet().propose(folder, "ct")
    (folder / "dataset.json").write_bytes(b" " * (17 << 20))
    with pytest.raises(ImportRefused, match="larger than"):
        Nnunet().propose(folder, "ct")


@pytest.mark.parametrize("place", ["w.bin", "../../secret", "model.onnx.data"])
def test_weights_elsewhere_do_not_come_into_the_package(place: str, tmp_path: Path) -> None:
    folder = copied("ct", tmp_path / "given")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "fold_0" / "model.onnx.data").symlink_to(tmp_path / "secret")
    path = folder / "fold_0" / "model.onnx"
    network = onnx.load(path)
    weight = network.graph.initializer.add(name="unused", dims=[1], data_type=1)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    path.write_bytes(network.SerializeToString())
    with pytest.raises(ImportRefused, match=place):
        Nnunet().propose(folder, "ct").manifest()


def test_configuration_is_known_by_the_folders_name(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    (folder / "fold_0" / "model.json").unlink()
    with pytest.raises(ImportRefused, match="which configuration"):
        Nnunet().propose(folder, "ct")
    named = folder.rename(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert block(Nnunet().propose(named, "ct"), "window")["patch"] == [16, 20, 24]


def test_ignored_label_is_no_class(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    change(folder / "dataset.json", lambda table: table["labels"].update(ignore=3))
    proposal = Nnunet().propose(folder, "ct")
    assert len([one for one in proposal.blocks if one.name == "finding"]) == 2


def test_postprocessing_is_not_forgotten_silently(tmp_path: Path) -> None:
    folder = copied("ct", tmp_path)
    (folder / "postprocessing.pkl").write_bytes(b"")
    assert any("postprocessing" in note for note in Nnunet().propose(folder, "ct").notes)
