"""The push trigger: complete studies become jobs, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.job import JobState
from node.domain.peer import Network, Peer
from node.domain.study import Instance
from node.ledger import Ledger
from node.room import EngineIdentity, Room, Terms
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
    assert kinds == ["received", "complete"] * 2 + ["known", "known"]


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


def with_terms(room: Room, **terms: object) -> Room:
    return replace(room, terms=Terms(**terms))  # type: ignore[arg-type]


def late(room: Room) -> None:
    arrive(room, replace(INSTANCE, sop_instance_uid="1.2.3.2", received_at=200.0))
    PUSH.fire(room, 210.0)


def test_late_instances_make_no_job_where_they_are_to_be_ignored(room: Room) -> None:
    room = with_terms(room, late_instances="ignore")
    arrive(room, INSTANCE)
    PUSH.fire(room, 110.0)
    late(room)
    assert len(jobs(room)) == 2
    with room.ledger.read() as books:
        assert "late instances" in books.events.of_study("1.2")[-1].words


def test_late_instances_make_jobs_that_wait_where_they_are_to_be_held(room: Room) -> None:
    room = with_terms(room, late_instances="hold")
    arrive(room, INSTANCE)
    PUSH.fire(room, 110.0)
    late(room)
    with room.ledger.read() as books:
        states = [row.job.state for row in books.jobs.of_study("1.2")]
    assert states == [JobState.QUEUED] * 2 + [JobState.HELD] * 2


def test_a_job_has_a_deadline_where_the_configuration_sets_one(room: Room) -> None:
    arrive(room, INSTANCE)
    PUSH.fire(with_terms(room, deadline_s=600.0), 110.0)
    with room.ledger.read() as books:
        assert {row.job.deadline_at for row in books.jobs.of_study("1.2")} == {710.0}


@pytest.mark.parametrize(
    ("fact", "value", "priority"),
    [
        ("RequestedProcedurePriority", "STAT", 1005),
        ("StudyPriorityID", "HIGH", 505),
        ("RequestedProcedurePriority", "ROUTINE", 5),
        ("Modality", "STAT", 5),
    ],
)
def test_a_study_that_was_ordered_urgently_goes_first(
    room: Room, fact: str, value: str, priority: int
) -> None:
    room = replace(room, engines=(EngineIdentity("one", "d", "c", 5),))
    arrive(room, replace(INSTANCE, facts={fact: value}))
    PUSH.fire(room, 110.0)
    with room.ledger.read() as books:
        (row,) = books.jobs.of_study("1.2")
    assert row.job.priority == priority
