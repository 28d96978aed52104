"""From DCMTK's storescu through the node to Orthanc, judged by tools that nobody here wrote."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from node import bundle
from node.config import load
from node.daemon import Node
from node.dicom import pixels
from node.dicom.geometry import arrange
from node.domain.job import JobState
from node.engine import Engine
from node.runtimes.onnx import Onnx
from node.site import Watcher
from node.testing.phantom import study as phantom_study
from node.testing.series import save
from tests.acceptance.hospital import AE_TITLE, MODALITY, Lookout, Plan, ended
from tests.peers import Orthanc, storescu
from tests.places import tool, unpacked

pytestmark = pytest.mark.peer


@dataclass(frozen=True)
class Journey:
    """A study that has gone through the node: its files, the node, and what Orthanc holds."""

    sent: tuple[Path, ...]
    node: Node
    returned: dict[str, Path]

    def files(self, modality: str) -> list[Path]:
        return [path for path in self.returned.values() if dcmread(path).Modality == modality]


def _images(kind: str, directory: Path) -> list[Path]:
    if kind == "phantom":
        return save(phantom_study(seed=3).datasets, directory / "study")
    folder = unpacked("mr_brain_gbm", directory / "study")
    return [path for path in sorted(folder.rglob("*")) if _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[128:132] == b"DICM"


@pytest.fixture(scope="module", params=["phantom", "real glioblastoma study"])
def journey(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Journey]:
    directory = tmp_path_factory.mktemp("journey")
    sent = _images(request.param, directory)
    lookout = Lookout()
    with Orthanc(directory / "orthanc", ae_title="ARCHIVE") as orthanc:
        plan = Plan(bundle.find("mr-brain-lesion"), orthanc.dicom_port, quiet_period_s=2.0)
        config = load(plan.write(directory / "node"))
        with Node(config, Watcher(reached=lookout.reached)) as node:
            done = storescu(sent, node.port, AE_TITLE, calling_ae=MODALITY)
            assert done.returncode == 0, done.stderr
            assert lookout.wait_for(lambda: ended(node), 120.0)
            returned = {}
            for number, uid in enumerate(orthanc.instances()):
                returned[uid] = directory / f"returned-{number}.dcm"
                returned[uid].write_bytes(orthanc.file(uid))
            yield Journey(tuple(sent), node, returned)


def test_orthanc_holds_one_segmentation_and_one_report(journey: Journey) -> None:
    with journey.node.ledger.read() as books:
        (row,) = books.jobs.recent(10)
        deliveries = books.deliveries.of_job(row.job.id)
    assert row.job.state is JobState.DONE, row.reason
    assert sorted(dcmread(path).Modality for path in journey.returned.values()) == ["SEG", "SR"]
    assert {row.result.sop_instance_uid for row in deliveries} == set(journey.returned)


def test_what_orthanc_holds_is_what_was_frozen(journey: Journey) -> None:
    """Orthanc writes file meta information of its own; the data sets are the same bytes."""
    with journey.node.ledger.read() as books:
        (row,) = books.jobs.recent(10)
        results = books.deliveries.results_of(row.job.id)
    for result in results:
        frozen = result.path.read_bytes()
        assert _data_set(frozen) == _data_set(
            journey.returned[result.sop_instance_uid].read_bytes()
        )


def _data_set(content: bytes) -> bytes:
    """What follows the file meta information."""
    stream = BytesIO(content)
    meta = dcmread(stream, stop_before_pixels=True).file_meta
    return content[144 + int(meta.FileMetaInformationGroupLength) :]


def test_dciodvfy_finds_no_error(journey: Journey) -> None:
    for path in journey.returned.values():
        done = subprocess.run([tool("dciodvfy"), "-new", path], capture_output=True, text=True)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert errors == []


def test_dcentvfy_agrees_with_the_source_study(journey: Journey) -> None:
    """Only what concerns a result counts: real source series disagree among themselves."""
    series = _sources(journey)
    command = [tool("dcentvfy"), *series, *journey.returned.values()]
    alone = subprocess.run([tool("dcentvfy"), *series], capture_output=True, text=True)
    together = subprocess.run(command, capture_output=True, text=True)
    before = set(alone.stderr.splitlines())
    after = [line for line in together.stderr.splitlines() if line not in before]
    # The validator holds Accession Number to be an attribute of the Patient.
    assert [line for line in after if "AccessionNumber" not in line] == []


def test_dsrdump_reads_the_report(journey: Journey) -> None:
    (report,) = journey.files("SR")
    done = subprocess.run([tool("dsrdump"), report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("Imaging Measurement Report", "Device Observer UID", "Volume", "mr-brain-lesion"):
        assert words in done.stdout


def test_the_segmentation_has_the_masks_voxels_at_the_sources_positions(journey: Journey) -> None:
    """The engine's own mask, computed once more from the sent files, against the SEG read back."""
    node = journey.node
    with node.ledger.read() as books:
        (row,) = books.jobs.recent(10)
        study = books.arrivals.study(row.job.study_uid)
    (chosen,) = [s for s in study.series if s.uid in row.trace["chosen"].values()]
    volume = pixels.load(arrange(chosen.instances))
    with Engine.load(bundle.read(bundle.find("mr-brain-lesion")), Onnx()) as engine:
        findings = engine.examine({"flair": volume}, row.job.id).findings

    (path,) = journey.files("SEG")
    seg = hd.seg.segread(path)
    assert findings
    assert len(seg.SegmentSequence) == len(findings)
    stack = seg.get_pixels_by_source_instance(
        [instance.sop_instance_uid for instance in volume.sources],
        assert_missing_frames_are_empty=True,
    )
    for number, finding in enumerate(findings):
        np.testing.assert_array_equal(stack[..., number] > 0, finding.mask)
        assert seg.SegmentSequence[number].TrackingUID == finding.tracking_uid
    _assert_in_place(seg, _sources(journey))


def _assert_in_place(seg: Dataset, sources: list[Path]) -> None:
    """Each frame's plane position is that of the source image which it names."""
    positions = {d.SOPInstanceUID: d.ImagePositionPatient for d in map(_header, sources)}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient, positions[named], atol=1e-3
        )


def _sources(journey: Journey) -> list[Path]:
    """The sent files of the analysed series."""
    with journey.node.ledger.read() as books:
        (row,) = books.jobs.recent(10)
    (chosen,) = row.trace["chosen"].values()
    return [path for path in journey.sent if _header(path).SeriesInstanceUID == chosen]


def _header(path: Path) -> Dataset:
    return dcmread(path, stop_before_pixels=True)
