"""``ai-node demo``: one command from nothing to a checked overlay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from node.testing.series import SeriesSpec, save
from tests.acceptance.hospital import small_study, tiny_engine
from tests.places import ROOT


def demo(directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command as a user would, in an empty directory."""
    directory.mkdir()
    command = [sys.executable, "-m", "node", "demo", "--json", "--no-browser"]
    done = subprocess.run(
        [*command, "--keep", str(directory / "kept"), *options],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    return demo(tmp_path_factory.mktemp("phantom") / "empty")


def test_every_check_of_the_phantom_holds(phantom: tuple[int, dict[str, Any]]) -> None:
    code, report = phantom
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert code == 0
    assert report["received"] == 24


def test_the_phantoms_lesion_is_found_where_it_is(phantom: tuple[int, dict[str, Any]]) -> None:
    assert phantom[1]["dice"] > 0.8


def test_the_archive_has_a_seg_and_a_report(phantom: tuple[int, dict[str, Any]]) -> None:
    results = phantom[1]["results"]
    assert [result["sop_class"] for result in results] == [
        "Segmentation Storage",
        "Comprehensive 3D SR Storage",
    ]
    for result in results:
        assert set(result) == {"sop_class", "sop_instance_uid", "path", "engine"}
        assert Path(result["path"]).is_file()
        assert result["engine"] == "mr-brain-lesion"


def test_every_stage_has_its_time(phantom: tuple[int, dict[str, Any]]) -> None:
    stages = phantom[1]["stages"]
    assert {"received", "inferred", "encoded", "delivered", "total"} <= set(stages)
    assert all(seconds >= 0 for seconds in stages.values())


def test_the_overlay_is_a_picture_with_an_outline(phantom: tuple[int, dict[str, Any]]) -> None:
    with Image.open(phantom[1]["overlay"]) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24) or []
    assert picture.width >= 512
    assert sum(count for count, (red, green, _) in colours if red > green + 60) > 100


def test_a_study_of_ones_own_takes_the_same_way(tmp_path: Path) -> None:
    save(small_study(), tmp_path / "study")
    engine = tiny_engine(tmp_path)
    code, report = demo(
        tmp_path / "empty", "--study", str(tmp_path / "study"), "--engine", str(engine)
    )
    assert (code, report["received"], len(report["results"])) == (0, 6, 2)
    assert "dice" not in report


def test_a_study_that_the_engine_refuses_fails_in_words(tmp_path: Path) -> None:
    save(small_study(SeriesSpec(modality="CT")), tmp_path / "study")
    engine = tiny_engine(tmp_path)
    code, report = demo(
        tmp_path / "empty", "--study", str(tmp_path / "study"), "--engine", str(engine)
    )
    assert code == 1
    (failed,) = [check for check in report["checks"] if not check["ok"]]
    assert failed["name"] == "study was assessed"
    assert "MR" in failed["detail"]
