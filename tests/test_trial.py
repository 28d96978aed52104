"""A folder as a study: whatever lies in it is read, or told of, and nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.bundle import read
from node.domain.errors import HeaderError
from node.runtimes.onnx import Onnx
from node.testing.series import save
from node.trial import attempt, gather
from tests.acceptance.hospital import SPEC, small_study, tiny_engine
from tests.places import unpacked


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


def test_files_of_one_study_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    save(small_study()[:3], tmp_path / "a" / "b")
    save(small_study(), tmp_path / "c")
    found = gather(tmp_path)
    assert [len(study.instances) for study in found.studies] == [6]
    assert found.study().uid == SPEC.study_uid


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    save(small_study(), tmp_path)
    (tmp_path / "z.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / "empty").touch()
    found = gather(tmp_path)
    assert len(found.study().instances) == 6
    assert found.strangers == 1
    assert len(found.unread) == 1
    assert found.unread[0].startswith("z.dcm: ")


def test_the_study_that_is_named_is_the_one_that_is_taken(tmp_path: Path) -> None:
    other = replace(SPEC, study="another")
    save([*small_study(), *small_study(other)], tmp_path)
    found = gather(tmp_path)
    with pytest.raises(HeaderError, match="there are 2 studies"):
        found.study()
    assert found.study(other.study_uid).uid == other.study_uid
    with pytest.raises(HeaderError, match="there are 2 studies"):
        found.study("1.2.3")


def test_a_trial_leaves_its_results_and_nothing_else(tmp_path: Path) -> None:
    save(small_study(), tmp_path / "study")
    bundle = read(tiny_engine(tmp_path))
    study = gather(tmp_path / "study").study()
    trial = attempt(bundle, ("onnx", Onnx(threads=1)), study, tmp_path / "out", quiet)
    files = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert files == ["overlay.png", "seg.dcm", "sr.dcm"]
    assert trial.overlay is not None
    assert trial.overlay.read_bytes().startswith(b"\x89PNG")
    again = attempt(bundle, ("onnx", Onnx(threads=1)), study, tmp_path / "out", quiet)
    assert again.files == trial.files


def test_what_another_trial_found_does_not_stay(tmp_path: Path) -> None:
    save(small_study(), tmp_path / "study")
    save(small_study(replace(SPEC, modality="CT", slope=1.0)), tmp_path / "other")
    bundle, out = read(tiny_engine(tmp_path)), tmp_path / "out"
    for name, left in (("study", 3), ("other", 0)):
        study = gather(tmp_path / name).study()
        attempt(bundle, ("onnx", Onnx(threads=1)), study, out, quiet)
        assert len(list(out.iterdir())) == left


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield unpacked("mr_brain_gbm", tmp_path_factory.mktemp("real"))


@pytest.mark.slow
def test_a_real_study_goes_through_and_every_other_series_has_its_reason(
    brain: Path, tmp_path: Path
) -> None:
    from node.bundle import find

    bundle = read(find("mr-brain-lesion"))
    study = gather(brain).study()
    trial = attempt(bundle, ("onnx", Onnx()), study, tmp_path, quiet)
    assert set(trial.files) == {"seg", "sr"}
    verdicts = trial.outcome.trace["series"]
    assert [one["accepted"] for one in verdicts].count(True) == 1
    assert all(one["words"] for one in verdicts)
