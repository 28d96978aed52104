"""The query trigger and the whole node against Orthanc: each study is pulled and processed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from io import BytesIO
from pathlib import Path

import pytest

from node.config import load
from node.daemon import Node
from node.domain.job import JobState
from node.site import Watcher
from node.testing.archive import Archive
from node.testing.modality import Called, send
from node.triggers.query import Query
from tests.acceptance.hospital import (
    AE_TITLE,
    MODALITY,
    SPEC,
    Lookout,
    Plan,
    ended,
    small_study,
    tiny_engine,
)
from tests.peers import Orthanc

pytestmark = pytest.mark.peer

QUERY = Query(peer="orthanc", modality="MR", days=2, overlap_days=1)


@dataclass
class Site:
    """A node that asks an Orthanc, and delivers to an archive."""

    node: Node
    orthanc: Orthanc
    archive: Archive
    lookout: Lookout
    now: float

    def appear(self, number: int) -> str:
        """A new study at Orthanc; its Study Instance UID."""
        spec = replace(
            SPEC,
            study=f"study {number}",
            patient_id=f"P{number}",
            accession_number=f"ACC{number}",
            study_date=date.fromtimestamp(self.now).strftime("%Y%m%d"),
        )
        for dataset in small_study(spec):
            stream = BytesIO()
            dataset.save_as(stream, enforce_file_format=True)
            self.orthanc.upload(stream.getvalue())
        return spec.study_uid

    def ask(self) -> None:
        """The trigger fires, five minutes after the last time."""
        self.now += 300.0
        QUERY.fire(self.node.room, self.now)

    def moves(self) -> int:
        """How often Orthanc was asked for a C-MOVE in all."""
        return self.orthanc.log.count("Move-SCU request received")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    lookout = Lookout()
    with Archive() as archive, Orthanc(tmp_path / "orthanc") as orthanc:
        peer = (
            '[[peer]]\nname = "orthanc"\nae_title = "ORTHANC"\n'
            f'host = "127.0.0.1"\nport = {orthanc.dicom_port}\n'
        )
        plan = Plan(tiny_engine(tmp_path), archive.port, extra=peer)
        config = load(plan.write(tmp_path / "node"))
        with Node(config, Watcher(reached=lookout.reached)) as node:
            orthanc.know("node", AE_TITLE, node.port)
            yield Site(node, orthanc, archive, lookout, node.room.listening_since)


def test_each_study_is_pulled_and_processed_once_though_windows_overlap(site: Site) -> None:
    studies = {site.appear(1), site.appear(2)}
    site.ask()
    site.ask()  # the same two lie in the overlapping window
    site.orthanc.restart()
    studies |= {site.appear(3)}
    site.ask()
    site.orthanc.stop()
    site.ask()  # nobody answers: the high-water mark stays
    site.orthanc.start()
    studies |= {site.appear(4), site.appear(5)}
    site.ask()
    site.ask()

    assert site.lookout.wait_for(lambda: ended(site.node, jobs=5))
    with site.node.ledger.read() as books:
        rows = books.jobs.recent(100)
        pulled = [
            event.study_uid
            for study in studies
            for event in books.events.of_study(study)
            if event.kind == "pulled"
        ]
    assert {row.job.study_uid for row in rows} == studies
    assert [row.job.state for row in rows] == [JobState.DONE] * 5
    assert sorted(pulled) == sorted(studies)
    assert len(site.archive.stored) == len(set(site.archive.stored)) == 2 * len(studies)


def test_a_study_that_has_grown_is_pulled_again_as_a_new_revision(site: Site) -> None:
    first = site.appear(1)
    site.ask()
    assert site.lookout.wait_for(lambda: ended(site.node, jobs=1))
    spec = replace(
        SPEC,
        study="study 1",
        patient_id="P1",
        accession_number="ACC1",
        series="another",
        study_date=date.fromtimestamp(site.now).strftime("%Y%m%d"),
    )
    for dataset in small_study(spec):
        stream = BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        site.orthanc.upload(stream.getvalue())
    site.ask()
    assert site.lookout.wait_for(lambda: ended(site.node, jobs=2))
    with site.node.ledger.read() as books:
        rows = books.jobs.of_study(first)
    assert len({row.job.revision for row in rows}) == 2


def test_results_that_return_with_their_study_are_no_news(site: Site, tmp_path: Path) -> None:
    """The archive of most hospitals is both: where studies are pulled from and results go."""
    study = site.appear(1)
    site.ask()
    assert site.lookout.wait_for(lambda: ended(site.node, jobs=1))
    for held in site.archive.instances:
        stream = BytesIO()
        held.read().save_as(stream, enforce_file_format=True)
        site.orthanc.upload(stream.getvalue())
    site.ask()
    with site.node.ledger.read() as books:
        pulled = [e for e in books.events.of_study(study) if e.kind == "pulled"]
    assert len(pulled) == 1

    # Even when they are sent here, with everything else, nothing is opened or run again.
    send(
        [held.read() for held in site.archive.instances],
        Called("127.0.0.1", site.node.port, AE_TITLE, MODALITY),
    )
    assert site.lookout.wait_for(lambda: _instances(site.node, study) == 6 + 2)
    with site.node.ledger.read() as books:
        assert books.arrivals.open_rows() == ()
        assert len(books.jobs.of_study(study)) == 1


def _instances(node: Node, study: str) -> int:
    with node.ledger.read() as books:
        return len(books.arrivals.study(study).instances)
