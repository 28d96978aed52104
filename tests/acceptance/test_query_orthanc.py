"""The query trigger against Orthanc: each study is fetched once, whatever happens in between."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from node.dicom import scu
from node.domain.errors import StatusError
from node.domain.peer import Network
from node.testing.series import SeriesSpec
from node.triggers.query import Query, pull
from tests.conftest import Clock
from tests.dicom.callers import Shelf, images, listening
from tests.peers import Orthanc
from tests.triggers.memory import MemoryRoom

pytestmark = pytest.mark.peer

HOUR, DAY = 3600.0, 86400.0
QUERY = Query("orthanc", modality="MR", days=2, overlap_days=1)


def study(name: str, day: datetime.date, slices: int = 2) -> list[Dataset]:
    """A small MR study with an accession number like its name."""
    spec = SeriesSpec(
        study=name,
        study_date=f"{day:%Y%m%d}",
        accession_number=name,
        study_description="MR Brain äöü",
    )
    return images(slices, spec)


@dataclass
class Ward:
    """Orthanc, and a node that collects what comes."""

    orthanc: Orthanc
    shelf: Shelf
    room: MemoryRoom
    clock: Clock

    def arrive(self, name: str, slices: int = 2) -> str:
        """A study of today appears at Orthanc; its Study Instance UID."""
        made = study(name, datetime.date.fromtimestamp(self.clock.now), slices)
        for image in made:
            stream = BytesIO()
            image.save_as(stream, enforce_file_format=True)
            self.orthanc.upload(stream.getvalue())
        return str(made[0].StudyInstanceUID)

    def fire(self) -> None:
        QUERY.fire(self.room, self.clock.now)

    @property
    def received(self) -> Counter[str]:
        """How often each SOP instance came."""
        return Counter(received.sop_instance_uid for received in self.shelf.received)


@pytest.fixture
def ward(tmp_path: Path, clock: Clock) -> Iterator[Ward]:
    orthanc, shelf = Orthanc(tmp_path / "orthanc"), Shelf()
    with orthanc, listening(shelf, [orthanc.peer]) as scp:
        orthanc.know("node", "NODE", scp.port)
        network = Network("NODE", {"orthanc": orthanc.peer}, 5.0, 20.0)
        yield Ward(orthanc, shelf, MemoryRoom(network), clock)


def test_five_studies_are_fetched_once_each_though_orthanc_restarts(ward: Ward) -> None:
    uids = [ward.arrive("one"), ward.arrive("two")]
    ward.fire()
    assert len(ward.received) == 4
    # The same windows again: "two" is in all of them.
    ward.clock.advance(HOUR)
    ward.fire()
    uids.append(ward.arrive("three"))

    ward.orthanc.stop()
    ward.clock.advance(HOUR)
    ward.fire()  # nobody answers
    assert len(ward.received) == 4
    ward.orthanc.start()

    uids.append(ward.arrive("four"))
    ward.fire()
    ward.clock.advance(DAY)
    uids.append(ward.arrive("five"))
    ward.fire()
    ward.fire()

    assert ward.room.pulls.states() == dict.fromkeys(uids, "pulled")
    assert len(ward.received) == 10
    assert set(ward.received.values()) == {1}
    assert {received.peer for received in ward.shelf.received} == {"orthanc"}


def test_a_study_that_grows_is_fetched_again_with_what_is_new(ward: Ward) -> None:
    uid = ward.arrive("one", slices=2)
    ward.fire()
    assert len(ward.received) == 2
    ward.clock.advance(HOUR)
    ward.arrive("one", slices=3)
    ward.fire()
    ward.fire()
    assert sorted(ward.received.values()) == [1, 2, 2]
    assert ward.room.pulls.states() == {uid: "pulled"}


def test_orthanc_counts_instances_and_keeps_the_script_of_the_words(ward: Ward) -> None:
    ward.arrive("one", slices=3)
    (match,) = scu.find(ward.room.network, ward.orthanc.peer, scu.FindQuery(accession="one"))
    assert match.instances == 3
    assert match.description == "MR Brain äöü"
    assert match.modalities == ("MR",)


def test_pull_by_hand_brings_one_study(ward: Ward) -> None:
    uid, _ = ward.arrive("one", slices=3), ward.arrive("two")
    ((match, moved),) = pull(ward.room.network, ward.orthanc.peer, "one")
    assert match.study_uid == uid
    assert moved.completed == 3
    assert len(ward.received) == 3


def test_orthanc_that_does_not_know_us_leaves_the_study_due_with_the_reason(ward: Ward) -> None:
    uid = ward.arrive("one")
    network = Network("STRANGER", {"orthanc": ward.orthanc.peer}, 5.0, 20.0)
    room = MemoryRoom(network)
    QUERY.fire(room, ward.clock.now)
    assert room.pulls.states() == {uid: "due"}
    (entry,) = room.pulls.entries.values()
    assert entry.attempts == 1
    assert "orthanc" in entry.reason
    with pytest.raises(StatusError):
        scu.move(network, ward.orthanc.peer, uid, "STRANGER")
