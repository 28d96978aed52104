"""The validators of the field find no fault with what is sent."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node.conformance import gate
from node.dicom.source import Source
from node.domain.finding import Assessment
from node.domain.volume import Grid
from node.outputs import OUTPUTS
from node.testing.series import SeriesSpec
from tests.places import tool, unpacked
from tests.results import assessment, finding, source, written

pytestmark = pytest.mark.peer

OUTCOMES = {
    "one finding": assessment(1),
    "three findings": assessment(3),
    "nothing found": assessment(0),
    "refusal": assessment(0, "No series fits: the gantry is tilted"),
}


def results(outcome: Assessment, images: Source, directory: Path) -> list[Path]:
    """What every output makes of an outcome, through the gate, as files."""
    made, paths = [], []
    for kind, output in OUTPUTS.items():
        dataset = output().encode(outcome, images, made)
        if dataset is not None:
            path = directory / f"{kind}.dcm"
            path.write_bytes(gate(dataset, images.headers, made))
            made.append(dcmread(path))
            paths.append(path)
    return paths


def files(images: Source, directory: Path) -> list[Path]:
    paths = []
    for number, header in enumerate(images.headers):
        paths.append(directory / f"source-{number}.dcm")
        paths[-1].write_bytes(written(header))
    return paths


def errors(program: str, paths: Sequence[Path], *options: str) -> list[str]:
    """Lines that begin with Error; the exit status says nothing."""
    done = subprocess.run([tool(program), *options, *paths], capture_output=True, text=True)
    assert "Segmentation fault" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def disagreements(paths: Sequence[Path]) -> list[str]:
    """What dcentvfy says, less its known false alarm (Accession Number is of the Study)."""
    done = subprocess.run([tool("dcentvfy"), *paths], capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if "AccessionNumber" not in line]


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_no_validator_finds_an_error(outcome: Assessment, tmp_path: Path) -> None:
    images = source(SeriesSpec(extra={"TimezoneOffsetFromUTC": "+0100"}))
    paths = results(outcome, images, tmp_path)
    assert len(paths) == (2 if outcome.findings else 1)
    for path in paths:
        assert errors("dciodvfy", [path], "-new") == []
    assert disagreements([*files(images, tmp_path), *paths]) == []


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_dcmtk_reads_the_report(outcome: Assessment, tmp_path: Path) -> None:
    path = results(outcome, source(), tmp_path)[-1]
    done = subprocess.run([tool("dsrdump"), path], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Imaging Measurement Report" in done.stdout


@pytest.mark.parametrize(
    "spec",
    [
        SeriesSpec(patient_name="Yamada=山田=やまだ", character_set=["", "ISO 2022 IR 87"]),
        SeriesSpec(patient_name="Иванов^Пётр", character_set="ISO_IR 144"),
        SeriesSpec(modality="CT", tilt_degrees=12),
    ],
    ids=["Japanese", "Russian", "tilted CT"],
)
def test_no_validator_minds_names_and_geometry(spec: SeriesSpec, tmp_path: Path) -> None:
    for path in results(assessment(2), source(spec), tmp_path):
        assert errors("dciodvfy", [path], "-new") == []


@pytest.mark.parametrize(
    ("archive", "series"),
    [
        ("mr_brain_gbm", "FLAIR"),
        ("ct_abdomen_misnamed", "LUNG"),
        ("ct_head_gantry_tilt", ""),
        ("mr_liver_coronal", "HASTE"),
    ],
)
def test_results_on_real_series_are_as_good(archive: str, series: str, tmp_path: Path) -> None:
    directory = unpacked(archive, tmp_path)
    found = {path: dcmread(path, stop_before_pixels=True) for path in _dicom(directory)}
    paths = [p for p, header in found.items() if series in str(header.get("SeriesDescription"))]
    assert len(paths) > 10
    images = _ordered(paths)
    shape = images.grid.shape if images.grid else (0, 0, 0)
    boxes = [
        (slice(3, 9), slice(60, 90), slice(70, 99)),
        (slice(10, 12), slice(9, 40), slice(0, 9)),
    ]
    outcome = replace(
        assessment(),
        findings=tuple(finding(number, box, shape) for number, box in enumerate(boxes, 1)),
    )
    results_of = {"found": outcome, "nothing": replace(outcome, findings=())}
    for name, each in results_of.items():
        (tmp_path / name).mkdir()
        for path in results(each, images, tmp_path / name):
            assert errors("dciodvfy", [path], "-new") == []
    told = disagreements([*paths, *(tmp_path / "found").glob("*.dcm")])
    # Attributes that a source has empty are absent in a result, and neither identifies anyone.
    assert [line for line in told if "present in one instance but not the other" not in line] == []


def _dicom(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*.dcm")) if path.is_file()]


def _ordered(paths: Sequence[Path]) -> Source:
    """A real series along its normal, as the geometry gate hands it on."""
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    row, column = np.reshape(np.array(headers[0].ImageOrientationPatient, float), (2, 3))
    normal = np.cross(row, column)
    headers.sort(key=lambda header: float(normal @ np.array(header.ImagePositionPatient, float)))
    first, last = (np.array(headers[at].ImagePositionPatient, float) for at in (0, -1))
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(headers) - 1)
    affine[:3, 1] = column * float(headers[0].PixelSpacing[0])
    affine[:3, 2] = row * float(headers[0].PixelSpacing[1])
    affine[:3, 3] = first
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    return Source(tuple(headers), Grid(shape, affine))
