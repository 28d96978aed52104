"""What the log holds reaches the repository in order, also when that was down for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from node.atna import Origin
from node.domain.event import EventKind
from node.domain.study import Instance
from node.ledger import Ledger
from node.repository import Disclosure, Reporter, encoded_keys
from node.syslog import Repository, RepositoryUnreachable
from tests.collector import Collector
from tests.conftest import Clock

ORIGIN = Origin("ai-node", "BRAIN", "ward7.example", "4711")
INSTANCE = Instance(
    "1.2.3.1",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.3",
    "1.2",
    "a" * 64,
    "scanner",
    1000.0,
    Path("a.dcm"),
    "1.2.840.10008.1.2.1",
    facts={"PatientID": "CANARY-7"},
)


@dataclass
class Flaky:
    """A repository that fails as often as it is told to."""

    failures: int = 0
    taken: list[bytes] = field(default_factory=list)

    def deliver(self, messages: Sequence[bytes]) -> None:
        if self.failures:
            self.failures -= 1
            raise RepositoryUnreachable("down")
        self.taken += messages


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def note(ledger: Ledger, count: int, kind: str = EventKind.ALARM) -> None:
    with ledger.write() as books:
        before = books.events.head().id
        for number in range(before + 1, before + count + 1):
            books.events.note(float(number), kind, f"number {number};", study_uid="1.2")


def reporter(ledger: Ledger, repository: Any, **options: Any) -> Reporter:
    return Reporter(ledger, repository, ORIGIN, **options)


def drain(reporter: Reporter, clock: Clock) -> None:
    while reporter.step(clock):
        pass


def numbers(taken: Sequence[bytes]) -> list[int]:
    return [int(re.findall(rb"Description>number (\d+);", message)[0]) for message in taken]


def test_every_event_is_told_once_and_in_order(ledger: Ledger, clock: Clock) -> None:
    note(ledger, 200)
    repository = Flaky()
    drain(reporter(ledger, repository), clock)
    assert numbers(repository.taken) == list(range(1, 201))
    drain(reporter(ledger, repository), clock)
    assert len(repository.taken) == 200


def test_nothing_is_lost_while_the_repository_is_down(ledger: Ledger, clock: Clock) -> None:
    repository = Flaky(failures=5)
    one = reporter(ledger, repository)
    for _ in range(5):
        note(ledger, 50)
        assert not one.step(clock)
        clock.advance(1000.0)
    drain(one, clock)
    assert numbers(repository.taken) == list(range(1, 251))


def test_a_repository_that_is_down_is_asked_less_and_less_often(
    ledger: Ledger, clock: Clock
) -> None:
    note(ledger, 1)
    repository = Flaky(failures=3)
    one = reporter(ledger, repository)
    waits = []
    for _ in range(3):
        one.step(clock)
        waits.append(one.next_due(clock.now) - clock.now)
        assert not one.step(clock)
        clock.advance(waits[-1])
    assert waits == [5.0, 10.0, 20.0]
    assert one.step(clock)


def test_a_restart_goes_on_where_the_last_run_stopped(ledger: Ledger, clock: Clock) -> None:
    note(ledger, 100)
    repository = Flaky()
    reporter(ledger, repository).step(clock)
    assert 0 < len(repository.taken) < 100
    drain(reporter(ledger, repository), clock)
    assert numbers(repository.taken) == list(range(1, 101))


def test_events_without_a_message_do_not_hold_up_the_rest(ledger: Ledger, clock: Clock) -> None:
    note(ledger, 300, EventKind.COMPLETE)
    note(ledger, 1)
    repository = Flaky()
    drain(reporter(ledger, repository), clock)
    assert numbers(repository.taken) == [301]


@pytest.mark.parametrize("disclosed", [False, True])
def test_the_patient_id_is_told_only_where_the_configuration_says_so(
    ledger: Ledger, clock: Clock, disclosed: bool
) -> None:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        books.arrivals.record(replace(INSTANCE, sop_instance_uid="1.2.3.2"))
    note(ledger, 1, EventKind.RECEIVED)
    repository = Flaky()
    drain(reporter(ledger, repository, disclosure=Disclosure(disclosed)), clock)
    (message,) = repository.taken
    assert (b"CANARY-7" in message) == disclosed
    assert b'UID="1.2.840.10008.5.1.4.1.1.4" NumberOfInstances="2"' in message


def test_a_query_is_told_with_the_identifier_that_was_sent() -> None:
    words = "ModalitiesInStudy=MR; StudyDescription=*brain*; StudyDate=20250101-20250102"
    keys = dcmread(DicomBytesIO(encoded_keys(words + "; 3 found")), force=True)
    assert keys.ModalitiesInStudy == "MR"
    assert keys.StudyDate == "20250101-20250102"
    assert keys.QueryRetrieveLevel == "STUDY"


def test_a_real_repository_that_dies_and_comes_back_gets_everything(
    ledger: Ledger, clock: Clock
) -> None:
    note(ledger, 100)
    with Collector(dies_after=30) as dying:
        one = reporter(ledger, Repository(dying.url))
        assert not one.step(clock)
    note(ledger, 50)
    clock.advance(5.0)
    assert not one.step(clock)
    clock.advance(1000.0)
    with Collector(port=dying.port) as back:
        drain(one, clock)
    # What it had read before it died comes again: at least once, and nothing is missing.
    assert numbers(back.taken) == list(range(1, 151))
    assert numbers(dying.taken) == list(range(1, 31))
