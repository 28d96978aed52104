"""A package is read as a whole: every fault at once with its line, or a bundle that holds."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from node import bundle
from node.domain.errors import ConfigError
from node.domain.job import derived_uid
from node.steps.intensity import ZScore
from node.steps.masks import Threshold
from tests.engines.package import (
    FLAIR,
    IMAGE,
    LESION,
    PARTS,
    PROBABILITY,
    SLICES,
    T1,
    THRESHOLD,
    brighter_than,
    package,
)

ZSCORE = '\n[[pre]]\nkind = "zscore"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder called as the engine in it, with a model and no manifest yet."""
    place = tmp_path / "tester"
    place.mkdir()
    brighter_than(place / "model.onnx", 200)
    return place


def faults(folder: Path, *parts: str) -> dict[str, str]:
    """Message by path."""
    with pytest.raises(ConfigError) as refused:
        bundle.read(package(folder, *parts) if parts else folder)
    return {fault.path: fault.message for fault in refused.value.faults}


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "engine.toml").read_text(encoding="utf-8").splitlines()
    return 1 + next(n for n, line in enumerate(lines) if text in line)


def test_whole_manifest_is_understood(folder: Path) -> None:
    point = '\n[operating_point]\nthreshold = 0.5\nnote = "best Dice"\n'
    only = ZSCORE + 'foreground = 0.15\nroles = ["t1"]\n'
    images = IMAGE.replace('["flair"]', '["flair", "t1"]')
    parts = (FLAIR, T1, SLICES, images, PROBABILITY, THRESHOLD, LESION, ZSCORE, only, point)
    manifest = bundle.read(package(folder, *parts)).manifest
    assert manifest.roles == ("flair", "t1")
    assert [one.roles for one in manifest.pre] == [("flair", "t1"), ("t1",)]
    assert manifest.pre[1].step == ZScore(foreground=0.15)
    assert manifest.post == (Threshold(0.5),)
    assert manifest.findings[0].concept.type.meaning == "Lesion"
    assert manifest.window.batch == 4
    assert manifest.reports.outputs == ("seg", "sr")


def test_series_are_wanted_with_the_reference_first(folder: Path) -> None:
    images = IMAGE.replace('["flair"]', '["t1", "flair"]')
    tolerance = "\n[tolerance]\ntilt_degrees = 2.5\n"
    parts = (FLAIR, T1, SLICES, images, PROBABILITY, THRESHOLD, LESION, tolerance)
    first, second = bundle.read(package(folder, *parts)).wanted
    assert (first.role, second.role) == ("flair", "t1")
    assert first.accepts[0].fact == "Modality"
    assert first.tolerance.tilt_degrees == second.tolerance.tilt_degrees == 2.5


def test_every_fault_is_told_at_once_with_its_line(folder: Path) -> None:
    flair = FLAIR.replace('equals = "MR"', 'matches = "MR("')
    parts = (
        flair.replace("Modality", "Modalty"), '\n[window]\nmode = "slices"\n', IMAGE,
        PROBABILITY, THRESHOLD.replace("0.5", "2"), LESION.replace("label = 1", "label = 0"),
        '\n[[pre]]\nkind = "zscor"\n', ZSCORE + "clipp = 3\n", "\n[outputs]\nx = 1\n",
    )  # fmt: skip
    package(folder, *parts)
    manifest = folder / "engine.toml"
    manifest.write_text(manifest.read_text().replace('licence = "Apache-2.0"\n', ""))
    with pytest.raises(ConfigError) as refused:
        bundle.read(folder)
    told = [(fault.path, fault.line) for fault in refused.value.faults]
    assert sorted(told) == sorted([
        ("engine.licence", line_of(folder, "[engine]")),
        ("series[0].accepts[0]", line_of(folder, "Modalty")),
        ("series[0].accepts[0]", line_of(folder, "Modalty")),
        ("window.mode", line_of(folder, '"slices"')),
        ("post[0].value", line_of(folder, "value = 2")),
        ("finding[0].label", line_of(folder, "label = 0")),
        ("pre[0].kind", line_of(folder, "zscor")),
        ("pre[1].clipp", line_of(folder, "clipp")),
        ("outputs", line_of(folder, "[outputs]")),
    ])  # fmt: skip
    assert [line for _, line in told] == sorted(line for _, line in told)
    assert all(fault.file == str(manifest) for fault in refused.value.faults)
    text = str(refused.value)
    assert "did you mean Modality?" in text
    assert "not a regular expression" in text
    assert "did you mean 'zscore'" in text
    assert "did you mean 'output'" in text


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({IMAGE: IMAGE.replace("flair", "flare")}, "input[0].roles[0]", "known: flair)"),
        ({FLAIR: FLAIR + T1}, "series[1].role", "no [[input]] takes the role 't1'"),
        ({FLAIR: FLAIR + FLAIR}, "series[1].role", "another [[series]] has 'flair' already"),
        ({IMAGE: IMAGE + ZSCORE + 'roles = ["t2"]\n'}, "pre[0].roles[0]", "has the role 't2'"),
        ({IMAGE: IMAGE + IMAGE}, "input[1].tensor", "another [[input]] has 'image' already"),
        ({LESION: LESION + LESION}, "finding[1].label", "another [[finding]] has 1 already"),
        ({LESION: LESION.replace('"Lesion"', '""', 1)}, "finding[0].name", "at least 1"),
        ({THRESHOLD: ""}, "post", "is missing"),
        ({THRESHOLD: "[[post]]\nradius_mm = 1\n"}, "post[0].kind", "is missing; known kinds"),
        ({FLAIR: '[[series]]\nrole = "flair"\naccepts = []\n'}, "series[0].accepts", "at least 1"),
        (
            {THRESHOLD: THRESHOLD + "[operating_point]\nthreshold = 0.4\n"},
            "operating_point.threshold",
            "is 0.4, but the threshold step applies 0.5",
        ),
        ({SLICES: SLICES + "logits = true\n"}, "window.logits", "said by [output].activation"),
        (
            {
                SLICES: SLICES + "exclusive = true\n",
                PROBABILITY: PROBABILITY + 'activation = "sigmoid"\n',
            },
            "window.exclusive",
            "activation softmax, not sigmoid",
        ),
    ],
)
def test_contradiction_is_told_where_it_stands(
    folder: Path, changes: dict[str, str], path: str, words: str
) -> None:
    told = faults(folder, *[changes.get(part, part) for part in PARTS])
    assert words in told[path]
    assert len(told) <= 2


def test_name_that_no_folder_may_have_is_refused(folder: Path) -> None:
    package(folder)
    manifest = folder / "engine.toml"
    manifest.write_text(manifest.read_text().replace('"tester"', '"../tester"'))
    assert "engine.name" in faults(folder)


def test_model_outside_of_the_folder_is_refused(folder: Path) -> None:
    package(folder)
    manifest = folder / "engine.toml"
    manifest.write_text(manifest.read_text().replace('"model.onnx"', '"../model.onnx"'))
    assert "engine.model" in faults(folder)


def test_other_model_than_the_manifest_means_is_refused(folder: Path) -> None:
    package(folder)
    brighter_than(folder / "model.onnx", 150)
    message = faults(folder)["engine.sha256"]
    assert bundle.file_digest(folder / "model.onnx") in message
    assert "raise the version" in message


def test_missing_model_is_told(folder: Path) -> None:
    package(folder)
    (folder / "model.onnx").unlink()
    assert "there is no file 'model.onnx'" in faults(folder)["engine.model"]


def test_missing_manifest_is_told(tmp_path: Path) -> None:
    (message,) = faults(tmp_path).values()
    assert message == "there is no such file; an engine folder has an engine.toml"


def test_missing_card_is_noted(folder: Path) -> None:
    package(folder)
    assert "CARD.md is missing" in bundle.read(folder).notes[0]
    (folder / "CARD.md").write_text("# Card\n")
    read = bundle.read(folder)
    assert read.notes == ()
    assert read.card == folder / "CARD.md"


def test_digest_is_that_of_the_content_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    here = bundle.read(package(folder))
    there = bundle.read(shutil.copytree(folder, tmp_path / "elsewhere"))
    (folder / "CARD.md").write_text("# Card\n")
    assert here.digest == there.digest == bundle.read(folder).digest


def test_digest_changes_with_manifest_model_and_weights(folder: Path) -> None:
    digests = [bundle.read(package(folder)).digest]
    digests.append(bundle.read(package(folder, version="1.1")).digest)
    brighter_than(folder / "model.onnx", 150)
    digests.append(bundle.read(package(folder, version="1.1")).digest)
    (folder / "model.onnx.data").write_bytes(b"weights")
    digests.append(bundle.read(folder).digest)
    assert len(set(digests)) == 4


def test_digest_of_one_network_is_that_of_its_files_and_of_nothing_else(folder: Path) -> None:
    # Whoever changes this makes other engines of all that are installed.
    package(folder)
    files = [(name, bundle.file_digest(folder / name)) for name in ("engine.toml", "model.onnx")]
    lines = "".join(f"{name}\n{digest}\n" for name, digest in sorted(files))
    assert bundle.read(folder).digest == hashlib.sha256(lines.encode()).hexdigest()


def test_package_digest_ignores_the_order_of_files() -> None:
    files = [("model.onnx", "aa"), ("engine.toml", "bb")]
    assert bundle.package_digest(files) == bundle.package_digest(files[::-1])


def test_algorithm_is_named_by_the_package(folder: Path) -> None:
    point = '\n[operating_point]\nthreshold = 0.5\nnote = "best Dice"\n'
    read = bundle.read(package(folder, *PARTS, point))
    algorithm = read.algorithm()
    assert (algorithm.name, algorithm.version) == ("tester", "1.0")
    assert algorithm.device_uid == derived_uid("engine", read.digest)
    assert algorithm.parameters == "threshold 0.5; best Dice"


def test_engine_is_found_by_path_or_by_name(folder: Path, tmp_path: Path) -> None:
    package(folder)
    assert bundle.find(str(folder)) == folder
    assert bundle.find("tester", [tmp_path]) == folder


def test_unknown_engine_lists_the_known_ones(folder: Path, tmp_path: Path) -> None:
    package(folder)
    with pytest.raises(ConfigError, match="did you mean 'tester'.*known: .*tester"):
        bundle.find("testr", [tmp_path])
    with pytest.raises(ConfigError, match="there is no engine folder ./nowhere"):
        bundle.find("./nowhere")


def test_shipped_engines_are_found_by_name() -> None:
    shipped = bundle.list_shipped()
    assert "mr-brain-lesion" in [folder.name for folder in shipped]
    for folder in shipped:
        assert bundle.find(folder.name) == folder
