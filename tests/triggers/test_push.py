"""The push trigger: complete studies become jobs, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.peer import Network, Peer
from node.domain.study import Instance
from node.ledger import Ledger
from node.room import EngineIdentity, Room
from node.triggers.push import Push

INSTANCE = Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "scanner", 100.0, Path("a"), "1.1")
ENGINES = (EngineIdentity("one", "d", "c"), EngineIdentity("two", "d", "c"))
PUSH = Push()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    network = Network("AINODE", {"slow": Peer("slow", "SLOW", quiet_period_s=300.0)})
    yield Room(ledger, network, ENGINES, 0.0, lambda: None)
    ledger.close()


def arrive(room: Room, instance: Instance) -> None:
    with room.ledger.write() as books:
        books.arrivals.record(instance)
        at = instance.received_at
        books.arrivals.set_times(instance.study_uid, at, at, instance.peer)


def jobs(room: Room) -> list[str]:
    with room.ledger.read() as books:
        return [row.job.engine for row in books.jobs.of_study("1.2")]


def test_a_complete_study_becomes_one_job_per_engine(room: Room) -> None:
    arrive(room, INSTANCE)
    PUSH.fire(room, 109.9)
    assert jobs(room) == []
    PUSH.fire(room, 110.0)
    assert sorted(jobs(room)) == ["one", "two"]


def test_firing_twice_makes_nothing_twice(room: Room) -> None:
    arrive(room, INSTANCE)
    PUSH.fire(room, 110.0)
    PUSH.fire(room, 120.0)
    assert len(jobs(room)) == 2


def test_the_same_content_again_makes_no_second_job_and_says_so(room: Room) -> None:
    arrive(room, INSTANCE)
    PUSH.fire(room, 110.0)
    arrive(room, replace(INSTANCE, received_at=200.0))
    PUSH.fire(room, 210.0)
    assert len(jobs(room)) == 2
    with room.ledger.read() as books:
        kinds = [event.kind for event in books.events.of_study("1.2")]
    assert kinds == ["complete", "complete", "known", "known"]


def test_a_late_instance_is_a_new_revision_with_jobs_of_its_own(room: Room) -> None:
    arrive(room, INSTANCE)
    PUSH.fire(room, 110.0)
    arrive(room, replace(INSTANCE, sop_instance_uid="1.2.3.2", received_at=200.0))
    PUSH.fire(room, 210.0)
    assert len(jobs(room)) == 4


def test_a_peers_own_quiet_period_overrules_the_triggers(room: Room) -> None:
    arrive(room, replace(INSTANCE, peer="slow"))
    PUSH.fire(room, 399.0)
    assert jobs(room) == []
    PUSH.fire(room, 400.0)
    assert len(jobs(room)) == 2


def test_the_trigger_knows_when_it_is_due_next(room: Room) -> None:
    with room.ledger.read() as books:
        assert PUSH.next_due(books.arrivals.open_rows(), room) is None
    arrive(room, INSTANCE)
    with room.ledger.read() as books:
        assert PUSH.next_due(books.arrivals.open_rows(), room) == 110.0
