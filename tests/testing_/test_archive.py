"""The archive of the demo and the tests: what it keeps, finds and sends."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.dicom import scu
from node.dicom.contexts import STUDY_ROOT_FIND, plain
from node.dicom.requestor import associated
from node.domain.errors import PeerRejected
from node.domain.peer import Network
from node.testing.archive import Archive, Faults
from node.testing.modality import Called, send
from node.testing.series import SeriesSpec
from tests.dicom.callers import archive_at, images
from tests.places import tool

NETWORK = Network("NODE", connect_timeout_s=2.0, answer_timeout_s=5.0)


def sent_to(archive: Archive, datasets: list[Dataset]) -> dict[int, int]:
    return send(datasets, Called("127.0.0.1", archive.port, "ARCHIVE")).statuses


def test_it_keeps_its_port_and_its_objects_over_a_restart() -> None:
    archive = Archive()
    with archive:
        port = archive.port
        sent_to(archive, images(2))
    with archive:
        assert archive.port == port
        assert len(archive.instances) == 2
        assert sent_to(archive, images(3)) == {0x0000: 3}


def test_an_object_sent_twice_is_held_once_and_counted_twice() -> None:
    (image,) = images(1)
    with Archive() as archive:
        sent_to(archive, [image, image])
    assert archive.stored == [image.SOPInstanceUID] * 2
    assert len(archive.instances) == 1


def test_in_a_folder_objects_are_files_with_their_bytes(tmp_path: Path) -> None:
    sent = images(2)
    (tmp_path / "archive").mkdir()
    with Archive(directory=tmp_path / "archive") as archive:
        sent_to(archive, [*sent, sent[0]])
    assert [held.dataset.SOPInstanceUID for held in archive.instances] == [
        image.SOPInstanceUID for image in sent
    ]
    for held, image in zip(archive.instances, sent, strict=True):
        assert held.path is not None
        assert "PixelData" not in held.dataset
        assert held.read().PixelData == image.PixelData
        assert dcmread(held.path).SOPInstanceUID == image.SOPInstanceUID
    assert len(list((tmp_path / "archive").iterdir())) == 2


def test_waiting_ends_when_what_is_waited_for_has_come() -> None:
    with Archive() as archive:
        sender = threading.Thread(target=sent_to, args=(archive, images(3)))
        sender.start()
        assert archive.wait_for(lambda a: len(a.stored) == 3, timeout_s=20.0)
        sender.join()
        assert not archive.wait_for(lambda a: len(a.stored) == 4, timeout_s=0.01)


def test_a_bad_day_is_planned_by_number() -> None:
    with Archive(faults=Faults(statuses={2: 0xA700, 3: 0xB000})) as archive:
        assert sent_to(archive, images(4)) == {0x0000: 2, 0xA700: 1, 0xB000: 1}
        assert len(archive.stored) == 3
        archive.faults = Faults(refuse=True)
        with pytest.raises(PeerRejected):
            sent_to(archive, images(1))


def series_of(archive: Archive, **keys: str) -> list[Dataset]:
    """C-FIND at series level, which only tests ask for."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    for keyword, value in {"SeriesInstanceUID": "", "Modality": "", **keys}.items():
        setattr(identifier, keyword, value)
    with associated(NETWORK, archive_at(archive), [plain(STUDY_ROOT_FIND)]) as association:
        answers = list(association.send_c_find(identifier, STUDY_ROOT_FIND))
    return [answer for _, answer in answers if answer is not None]


def test_series_are_found_within_their_study() -> None:
    archive = Archive()
    for image in [
        *images(2, SeriesSpec(series="t1", description="T1")),
        *images(1, SeriesSpec(series="t2", description="T2")),
        *images(1, SeriesSpec(study="other", series="t1", description="T1")),
    ]:
        archive.hold(image)
    with archive:
        study = SeriesSpec().study_uid
        both = series_of(archive, StudyInstanceUID=study, NumberOfSeriesRelatedInstances="")
        (one,) = series_of(archive, StudyInstanceUID=study, SeriesDescription="T2")
    assert [answer.NumberOfSeriesRelatedInstances for answer in both] == [2, 1]
    assert one.SeriesInstanceUID == SeriesSpec(series="t2").series_uid


def test_a_question_at_another_level_is_refused() -> None:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "PATIENT"
    with (
        Archive() as archive,
        associated(NETWORK, archive_at(archive), [plain(STUDY_ROOT_FIND)]) as association,
    ):
        ((status, _),) = association.send_c_find(identifier, STUDY_ROOT_FIND)
    assert status.Status == 0xA900


def test_wildcards_of_dicom_are_two_and_no_more() -> None:
    archive = Archive()
    archive.hold(images(1, SeriesSpec(study_description="MR [x] Brain"))[0])
    with archive:
        peer = archive_at(archive)
        for pattern, count in (("MR*", 1), ("MR [x] Br?in", 1), ("MR [[]x] *", 0), ("CT*", 0)):
            found = scu.find(NETWORK, peer, scu.FindQuery(description=pattern))
            assert len(found) == count, pattern


def test_a_moved_study_arrives_in_the_syntax_it_has() -> None:
    (image,) = images(1)
    image.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    with Archive("NODE") as node, Archive(destinations={"NODE": ("127.0.0.1", node.port)}) as pacs:
        pacs.hold(image)
        scu.move(NETWORK, archive_at(pacs), image.StudyInstanceUID, "NODE")
        (held,) = node.instances
    assert held.dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    assert held.dataset.PixelData == image.PixelData


@pytest.mark.peer
def test_dcmtk_understands_its_answers() -> None:
    findscu = tool("findscu")
    archive = Archive()
    archive.hold(images(1, SeriesSpec(accession_number="ACC9"))[0])
    with archive:
        answer = subprocess.run(
            [findscu, "-S", "-aec", "ARCHIVE", "127.0.0.1", str(archive.port)]
            + ["-k", "QueryRetrieveLevel=STUDY", "-k", "AccessionNumber=ACC9"]
            + ["-k", "ModalitiesInStudy", "-k", "NumberOfStudyRelatedInstances"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    assert "[ACC9" in answer.stderr + answer.stdout
