"""The ledger's books, each change in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from node.domain.job import DeliveryEvent, Job, JobEvent, JobState, TransitionError
from node.domain.study import Instance, revision
from node.ledger import Ledger
from node.ledger.arrivals import Recorded
from node.ledger.deliveries import ResultRow
from node.ledger.migrations import upgrade
from node.ledger.tables import metadata

INSTANCE = Instance(
    sop_instance_uid="1.2.3.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
    series_uid="1.2.3",
    study_uid="1.2",
    sha256="a" * 64,
    peer="scanner",
    received_at=1000.0,
    path=Path("spool/a.dcm"),
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    facts={"Modality": "MR", "AccessionNumber": "ACC7", "PixelSpacing": (1.0, 0.5)},
)
JOB = Job("j" * 32, "1.2", "r", "engine", "d", "c", JobState.QUEUED, 0, 2000.0)
RESULT = ResultRow("2.25.1", JOB.id, "1.2.840.10008.5.1.4.1.1.66.4", "seg", Path("seg.dcm"), "s")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def with_job(ledger: Ledger) -> Ledger:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        books.jobs.add(JOB)
    return ledger


def test_an_instance_is_read_back_as_it_was_recorded(ledger: Ledger) -> None:
    with ledger.write() as books:
        assert books.arrivals.record(INSTANCE) is Recorded.NEW
    with ledger.read() as books:
        assert books.arrivals.study("1.2").instances == (INSTANCE,)


def test_the_same_bytes_again_are_a_duplicate(ledger: Ledger) -> None:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        assert books.arrivals.record(INSTANCE) is Recorded.DUPLICATE


@pytest.mark.parametrize("change", [{"sha256": "b" * 64}, {"study_uid": "9.9"}])
def test_the_same_uid_with_other_content_is_a_conflict(
    ledger: Ledger, change: dict[str, str]
) -> None:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        assert books.arrivals.record(replace(INSTANCE, **change)) is Recorded.CONFLICT
    with ledger.read() as books:
        assert books.arrivals.study("1.2").instances == (INSTANCE,)


@pytest.mark.parametrize("identifier", ["ACC7", "1.2", "1.2.3", "1.2.3.1"])
def test_a_study_is_found_by_every_number_on_it(ledger: Ledger, identifier: str) -> None:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
    with ledger.read() as books:
        assert books.arrivals.find(identifier) == ("1.2",)
        assert books.arrivals.find("unknown") == ()


def test_completing_a_study_gives_the_revision_of_its_content(ledger: Ledger) -> None:
    with ledger.write() as books:
        books.arrivals.record(INSTANCE)
        books.arrivals.set_times("1.2", 1000.0, 1005.0, "scanner")
        assert [row.study_uid for row in books.arrivals.open_rows()] == ["1.2"]
        assert books.arrivals.complete("1.2", "quiet period", 1015.0) == revision([INSTANCE.key])
        assert books.arrivals.open_rows() == ()


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.write() as books:
        books.arrivals.record(INSTANCE)
        _ = 1 / 0
    with ledger.read() as books:
        assert books.arrivals.row("1.2") is None


def test_the_same_job_is_entered_once(with_job: Ledger) -> None:
    with with_job.write() as books:
        assert not books.jobs.add(replace(JOB, created_at=9000.0))
        assert len(books.jobs.of_study("1.2")) == 1


def test_a_claim_counts_the_attempt_before_it_runs(with_job: Ledger) -> None:
    with with_job.write() as books:
        claimed = books.jobs.claim(2000.0)
    assert claimed is not None
    assert (claimed.state, claimed.attempts) == (JobState.RUNNING, 1)
    with with_job.write() as books:
        assert books.jobs.claim(2000.0) is None


def test_a_job_that_is_not_due_is_not_claimed(with_job: Ledger) -> None:
    with with_job.write() as books:
        books.jobs.claim(2000.0)
        books.jobs.advance(JOB.id, JobEvent.RETRY, 2001.0, "busy", due_at=2031.0)
        assert books.jobs.claim(2030.9) is None
        assert books.jobs.next_due() == 2031.0
        assert books.jobs.claim(2031.0) is not None


def test_what_a_dead_process_was_running_is_queued_again(with_job: Ledger) -> None:
    with with_job.write() as books:
        books.jobs.claim(2000.0)
        assert books.jobs.reopen_running(2000.0) == 1
        again = books.jobs.claim(2000.0)
    assert again is not None
    assert again.attempts == 2


def test_one_job_goes_to_one_of_many_claimants(with_job: Ledger) -> None:
    def claim(_: int) -> bool:
        with with_job.write() as books:
            return books.jobs.claim(3000.0) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(24))) == 1


def test_a_finished_job_takes_no_further_event(with_job: Ledger) -> None:
    with with_job.write() as books:
        books.jobs.claim(2000.0)
        books.jobs.advance(JOB.id, JobEvent.FINISH, 2001.0)
        with pytest.raises(TransitionError, match="done"):
            books.jobs.advance(JOB.id, JobEvent.RETRY, 2002.0)


def test_a_delivery_waits_for_its_time_and_is_sent_once(with_job: Ledger) -> None:
    with with_job.write() as books:
        books.deliveries.add(RESULT, ["pacs", "archive"], 2100.0)
        (row,) = books.deliveries.due("pacs", 2100.0)
        books.deliveries.advance(row, DeliveryEvent.POSTPONE, reason="down", due_at=2105.0)
        assert books.deliveries.due("pacs", 2104.0) == ()
        assert books.deliveries.next_due("pacs") == 2105.0
        (row,) = books.deliveries.due("pacs", 2105.0)
        assert (row.attempts, row.study_uid, row.result) == (1, "1.2", RESULT)
        books.deliveries.advance(row, DeliveryEvent.ACCEPT, reason="", sent_at=2106.0)
        assert books.deliveries.due("pacs", 9999.0) == ()
        assert len(books.deliveries.due("archive", 9999.0)) == 1
        assert books.deliveries.find("2.25.1") == "1.2"


def test_pull_is_due_once_and_again_when_the_study_has_grown(ledger: Ledger) -> None:
    with ledger.write() as books:
        pulls = books.pulls
        pulls.note("pacs", "1.2", "ACC", 10, 100.0)
        pulls.note("pacs", "1.2", "ACC", 10, 101.0)
        assert [pull.study_uid for pull in pulls.due("pacs", 101.0)] == ["1.2"]
        pulls.pulled("pacs", "1.2", 102.0, 10)
        pulls.note("pacs", "1.2", "ACC", 10, 103.0)
        assert pulls.due("pacs", 103.0) == ()
        pulls.note("pacs", "1.2", "ACC", 12, 104.0)
        assert len(pulls.due("pacs", 104.0)) == 1


def test_watermark_never_moves_back(ledger: Ledger) -> None:
    with ledger.write() as books:
        assert books.pulls.watermark("q") is None
        books.pulls.advance("q", 100.0)
        books.pulls.advance("q", 50.0)
        assert books.pulls.watermark("q") == 100.0


def test_sqlite_is_durable_and_enforces_its_references(ledger: Ledger) -> None:
    with ledger.read() as books:
        connection = books.connection
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_migrations_lead_to_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.sqlite'}")
    upgrade(engine)
    upgrade(engine)
    found = inspect(engine)
    for table in metadata.sorted_tables:
        assert {column["name"] for column in found.get_columns(table.name)} == set(
            table.columns.keys()
        )
        assert len(found.get_indexes(table.name)) == len(table.indexes)
    engine.dispose()


def test_events_are_told_in_order(with_job: Ledger) -> None:
    with with_job.write() as books:
        books.events.note(1.0, "complete", "first", study_uid="1.2")
        books.events.note(2.0, "done", "second", job=JOB.id)
        books.events.note(3.0, "other", "elsewhere", study_uid="9.9")
    with with_job.read() as books:
        told = books.events.of_study("1.2", (JOB.id,))
    assert [event.words for event in told] == ["first", "second"]
