"""Jobs in the ledger: who runs first, whose they are, and when nobody need begin any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.event import prove
from node.domain.job import Job, JobEvent, JobState
from node.domain.study import Instance
from node.ledger import Ledger
from node.ledger.jobs import JobRow

JOB = Job("a" * 32, "1.2", "r", "engine", "d", "c", JobState.QUEUED, 0, 1000.0)
LATER = replace(JOB, id="b" * 32, revision="s", created_at=1001.0)
INSTANCE = Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "scanner", 100.0, Path("a"), "1.1")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
    yield ledger
    ledger.close()


def add(ledger: Ledger, *jobs: Job) -> None:
    with ledger.write() as books:
        for job in jobs:
            assert books.jobs.add(job)


def claim(ledger: Ledger, now: float = 2000.0, worker: str = "worker") -> str:
    with ledger.write() as books:
        job = books.jobs.claim(now, worker)
    return job.id if job else ""


def row(ledger: Ledger, job: Job = JOB) -> JobRow:
    with ledger.read() as books:
        found = books.jobs.row(job.id)
    assert found is not None
    return found


def events(ledger: Ledger) -> list[str]:
    with ledger.read() as books:
        assert prove(books.events.walk()).sound
        return [event.kind for event in books.events.of_study("1.2")]


def test_the_most_urgent_runs_first_and_the_oldest_among_equals(ledger: Ledger) -> None:
    urgent = replace(JOB, id="c" * 32, created_at=1500.0, priority=1000)
    add(ledger, LATER, JOB, urgent)
    assert [claim(ledger) for _ in range(3)] == [urgent.id, JOB.id, LATER.id]


def test_a_job_is_read_back_as_it_was_entered(ledger: Ledger) -> None:
    job = replace(JOB, priority=3, deadline_at=5000.0, supersedes="e" * 32)
    add(ledger, job)
    assert row(ledger).job == job


def test_what_nobody_began_by_its_deadline_ends_with_an_alarm_and_the_rest_goes_on(
    ledger: Ledger,
) -> None:
    add(ledger, replace(JOB, deadline_at=1060.0), LATER)
    assert claim(ledger, 1060.0) == LATER.id
    late = row(ledger)
    assert late.job.state is JobState.FAILED
    assert "60 s" in late.reason
    assert events(ledger) == ["alarm"]


def test_a_job_that_was_begun_in_time_may_be_tried_again_after_its_deadline(
    ledger: Ledger,
) -> None:
    add(ledger, replace(JOB, deadline_at=1060.0))
    assert claim(ledger, 1059.0)
    with ledger.write() as books:
        books.jobs.advance(JOB.id, JobEvent.RETRY, 1061.0, "busy", due_at=1070.0)
    assert claim(ledger, 1070.0) == JOB.id


def test_a_worker_takes_back_its_own_jobs_only(ledger: Ledger) -> None:
    add(ledger, JOB, LATER)
    claim(ledger, worker="cpu")
    claim(ledger, worker="gpu")
    with ledger.write() as books:
        assert books.jobs.reopen_running(2001.0, "cpu") == 1
    assert (row(ledger, JOB).job.state, row(ledger, LATER).job.state) == (
        JobState.QUEUED,
        JobState.RUNNING,
    )
    assert events(ledger) == ["reopened"]


def test_what_runs_on_workers_that_are_gone_is_queued_again(ledger: Ledger) -> None:
    add(ledger, JOB, LATER)
    claim(ledger, worker="cpu")
    claim(ledger, worker="gpu")
    with ledger.write() as books:
        assert books.jobs.reopen_orphans({"gpu", "other"}, 2001.0) == 1
        assert books.jobs.reopen_orphans({"gpu"}, 2001.0) == 0
    assert row(ledger, JOB).job.attempts == 1
    assert claim(ledger, worker="gpu") == JOB.id
    assert row(ledger, JOB).job.attempts == 2


def test_a_claim_no_longer_stands_once_another_worker_has_the_job(ledger: Ledger) -> None:
    add(ledger, JOB)
    with ledger.write() as books:
        old = books.jobs.claim(2000.0, "cpu")
        assert old is not None
        assert books.jobs.standing(old, "cpu") is JobState.RUNNING
        books.jobs.reopen_running(2001.0, "cpu")
        again = books.jobs.claim(2002.0, "cpu")
        assert again is not None
        assert books.jobs.standing(old, "cpu") is None
        assert books.jobs.standing(again, "gpu") is None
        assert books.jobs.standing(again, "cpu") is JobState.RUNNING


def test_a_queued_job_is_cancelled_at_once_and_can_be_run_again(ledger: Ledger) -> None:
    add(ledger, JOB)
    with ledger.write() as books:
        assert books.jobs.advance(JOB.id, JobEvent.CANCEL, 1500.0) is JobState.CANCELLED
    assert claim(ledger) == ""
    with ledger.write() as books:
        books.jobs.advance(JOB.id, JobEvent.RELEASE, 1600.0, due_at=1600.0)
    assert claim(ledger) == JOB.id
    assert row(ledger).job.attempts == 1


def test_a_running_job_that_is_cancelled_is_not_queued_again_when_its_worker_dies(
    ledger: Ledger,
) -> None:
    add(ledger, JOB)
    claim(ledger)
    with ledger.write() as books:
        assert books.jobs.advance(JOB.id, JobEvent.CANCEL, 2001.0) is JobState.CANCELLING
        assert books.jobs.reopen_running(2002.0) == 0
    assert row(ledger).job.state is JobState.CANCELLED
    assert claim(ledger) == ""


def test_the_last_finished_job_on_another_content_is_superseded(ledger: Ledger) -> None:
    add(ledger, JOB, LATER)
    for number, job in enumerate((JOB, LATER)):
        claim(ledger)
        with ledger.write() as books:
            assert books.jobs.superseded("1.2", "engine", "t") == (JOB.id if number else "")
            books.jobs.advance(job.id, JobEvent.FINISH, 2000.0 + number)
    with ledger.read() as books:
        assert books.jobs.superseded("1.2", "engine", "t") == LATER.id
        assert books.jobs.superseded("1.2", "engine", "s") == JOB.id
        assert books.jobs.superseded("1.2", "other", "t") == ""
