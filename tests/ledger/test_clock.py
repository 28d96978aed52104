"""A clock that is set back leaves nothing waiting for longer than it was meant to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.domain.event import EventKind
from node.domain.job import JobEvent
from node.ledger import Ledger
from node.ledger.clock import bring_forward, set_back
from tests.ledger.test_ledger import INSTANCE, JOB, RESULT

NOW = 10_000.0
YEAR_S = 31_557_600.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A study that is open, a job that waits for a second, a delivery that waits for three."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        books.arrivals.set_times(INSTANCE.study_uid, NOW - 2, NOW - 1, "scanner")
        books.jobs.add(JOB)
        books.jobs.claim(NOW)
        books.jobs.advance(JOB.id, JobEvent.RETRY, NOW, due_at=NOW + 1)
        books.deliveries.add(RESULT, ["pacs"], NOW + 3)
        books.pulls.advance("query", NOW - 5)
        books.events.note(NOW, EventKind.POSTPONED, "an attempt failed")
    yield ledger
    ledger.close()


def corrected(ledger: Ledger, now: float) -> float:
    with ledger.write() as books:
        seconds = set_back(books.connection, now)
        if seconds:
            bring_forward(books.connection, now, seconds)
            books.events.note(now, EventKind.RECONCILED, "the clock was set back")
    return seconds


@pytest.mark.parametrize("now", [NOW, NOW + YEAR_S, NOW - 4])
def test_a_clock_that_runs_on_or_is_put_right_a_little_changes_nothing(
    ledger: Ledger, now: float
) -> None:
    assert corrected(ledger, now) == 0
    with ledger.read() as books:
        assert books.jobs.next_due() == NOW + 1


def test_what_waits_is_due_as_long_after_now_as_it_was_before(ledger: Ledger) -> None:
    past = NOW - YEAR_S
    assert corrected(ledger, past) == YEAR_S
    with ledger.read() as books:
        assert books.jobs.next_due() == past + 1
        assert books.deliveries.next_due("pacs") == past + 3
        assert books.pulls.watermark("query") == past - 5
        (study,) = books.arrivals.open_rows()
    assert (study.opened_at, study.last_at) == (past, past)


def test_a_clock_is_put_right_once(ledger: Ledger) -> None:
    assert corrected(ledger, NOW - YEAR_S)
    assert not corrected(ledger, NOW - YEAR_S + 1)


def test_an_arrival_from_the_future_alone_is_noticed(ledger: Ledger) -> None:
    past = NOW - YEAR_S
    corrected(ledger, past)
    with ledger.write() as books:
        books.arrivals.set_times(INSTANCE.study_uid, past, NOW, "scanner")
    assert corrected(ledger, past + 1)
    with ledger.read() as books:
        (study,) = books.arrivals.open_rows()
    assert (study.opened_at, study.last_at) == (past, past + 1)
