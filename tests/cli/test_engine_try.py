"""``engine try``: one study from a folder goes through an engine as a node would run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from node.testing.series import make
from tests.acceptance.hospital import SPEC, small_study
from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path, ai_node: Command, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """With the engine ``bright`` on the shelf; what is kept nowhere else lies in its folder too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shop = opened(tmp_path)
    assert ai_node("engine", "add", shop.network, "--config", shop.config).code == 0
    return shop


def trial(shop: Shop, ai_node: Command, study: Path, *words: object) -> Said:
    return ai_node("engine", "try", "bright", study, *words, "--config", shop.config)


def test_try_writes_seg_sr_and_picture_of_what_was_found(shop: Shop, ai_node: Command) -> None:
    out = shop.folder / "out"
    said = trial(shop, ai_node, shop.study(), "--out", out)
    assert said.code == 0, said.err
    assert sorted(path.name for path in out.iterdir()) == ["overlay.png", "seg.dcm", "sr.dcm"]
    seg, sr = dcmread(out / "seg.dcm"), dcmread(out / "sr.dcm")
    assert (seg.SOPClassUID, sr.SOPClassUID) == (SegmentationStorage, Comprehensive3DSRStorage)
    assert seg.StudyInstanceUID == sr.StudyInstanceUID == SPEC.study_uid
    assert seg.NumberOfFrames == 2  # the box lies on two slices
    parameters = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "computed by ONNX Runtime" in parameters.AlgorithmParameters
    assert "found bright Finding 1 1" in said.out
    assert "series 1 (MR, 6 instances) as image: taken" in said.out


def test_try_tells_stages_and_memory(shop: Shop, ai_node: Command) -> None:
    said = trial(shop, ai_node, shop.study(), "--json").json
    stages = [
        "engine loaded", "selected", "loaded", "inferred", "encoded", "checked", "result frozen",
    ]  # fmt: skip
    assert list(said["stages"]) == stages
    assert list(said["peak_memory"]) == stages
    assert all(value >= 0 for value in said["stages"].values())
    assert all(20e6 < value < 20e9 for value in said["peak_memory"].values())
    assert Path(said["files"]["seg"]).is_file()


def test_try_says_why_each_series_was_not_taken(shop: Shop, ai_node: Command) -> None:
    odd = replace(SPEC, modality="CT", series="ct", series_number=2, slope=1.0)
    voxels = np.full((6, 32, 24), 40, np.int16)
    bare = replace(odd, series="xa", series_number=3, extra={"Modality": "XA"})
    study = shop.study([*make(odd, voxels), *make(bare, voxels)])
    shop.correct(series__accepts=[{"fact": "Modality", "equals": "MR", "reason": "no MR"}])
    said = trial(shop, ai_node, study)
    assert said.code == 1
    assert "series 2 (CT, 6 instances) as image: not taken\n    no MR" in said.out
    assert "series 3 (XA, 6 instances) as image: not taken\n    no MR" in said.out
    assert "could not assess: no series fits 'image'" in said.out


def test_try_reads_what_it_can_and_tells_of_the_rest(shop: Shop, ai_node: Command) -> None:
    study = shop.study()
    (study / "README").write_text("not DICOM")
    whole = next(iter(sorted(study.glob("*.dcm")))).read_bytes()
    (study / "cut.dcm").write_bytes(whole[:300])
    said = trial(shop, ai_node, study)
    assert said.code == 0
    assert "files that are no DICOM: 1" in said.out
    assert "not read: cut.dcm" in said.out


def test_try_wants_one_study(shop: Shop, ai_node: Command) -> None:
    other = replace(SPEC, study="another")
    study = shop.study([*small_study(), *small_study(other)])
    said = trial(shop, ai_node, study)
    assert said.code == 1
    assert "there are 2 studies" in said.err
    assert SPEC.study_uid in said.err
    assert trial(shop, ai_node, study, "--study", SPEC.study_uid).code == 0
    (shop.folder / "empty").mkdir()
    said = trial(shop, ai_node, shop.folder / "empty")
    assert "no DICOM image was found" in said.err


def test_try_says_when_it_may_not_write(shop: Shop, ai_node: Command) -> None:
    (shop.folder / "taken").touch()
    said = trial(shop, ai_node, shop.study(), "--out", shop.folder / "taken" / "out")
    assert said.code == 1
    assert "cannot be written" in said.err


def test_try_names_the_runtimes_that_there_are(shop: Shop, ai_node: Command) -> None:
    said = trial(shop, ai_node, shop.study(), "--runtime", "onx")
    assert said.code == 2
    assert "did you mean 'onnx'?" in said.err


def test_try_shows_no_patient(shop: Shop, ai_node: Command) -> None:
    """The canary fixture searches what was printed and written."""
    said = trial(shop, ai_node, shop.study())
    assert SPEC.patient_id not in said.out + said.err
