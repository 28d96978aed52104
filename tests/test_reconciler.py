"""The reconciler closes the gaps between "acknowledged" and "done", and touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.job import JobEvent, JobState
from node.ledger import Ledger
from node.reconciler import DAY_S, Reconciler
from node.room import Terms
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.ward import Bench, at_work


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench


def reconcile(bench: Bench, *present: str, engines: bool = True) -> int:
    room = bench.room if engines else replace(bench.room, engines=())
    return Reconciler(room, bench.spool, lambda: present).step(bench.clock.now)


def complete_without_jobs(bench: Bench) -> None:
    """A study becomes complete, and the process ends before its jobs are entered."""
    reconcile(bench)
    engine, bench.setup = bench.setup, replace(bench.setup)
    quiet = Bench(bench.ledger, bench.spool, bench.setup, bench.clock)
    quiet.receive()
    with bench.ledger.write() as books:
        books.connection.exec_driver_sql("DELETE FROM jobs")
    bench.setup = engine


def test_a_sound_node_is_left_as_it_is(bench: Bench) -> None:
    bench.receive()
    bench.work()
    before = bench.kinds(), bench.jobs(), bench.frozen()
    assert reconcile(bench, "worker") == 0
    assert reconcile(bench, "worker") == 0
    assert (bench.kinds(), bench.jobs(), bench.frozen()) == before


def test_a_complete_study_without_a_job_gets_one(bench: Bench) -> None:
    complete_without_jobs(bench)
    assert reconcile(bench) == 1
    assert reconcile(bench) == 0
    assert bench.kinds()[-1] == "reconciled"
    assert bench.work()
    assert bench.jobs()[0].job.state is JobState.DONE


def test_studies_of_long_ago_are_left(bench: Bench) -> None:
    complete_without_jobs(bench)
    bench.clock.advance(DAY_S + 60)
    assert reconcile(bench) == 0


def test_an_engine_that_is_new_does_not_work_through_the_past(bench: Bench) -> None:
    bench.receive()
    with bench.ledger.write() as books:
        books.connection.exec_driver_sql("DELETE FROM jobs")
    bench.clock.advance(60.0)
    assert reconcile(bench) == 0
    assert bench.jobs() == ()


def test_late_instances_that_are_to_be_ignored_stay_ignored(bench: Bench) -> None:
    bench.terms = Terms(late_instances="ignore")
    *most, last = small_study()
    reconcile(bench)
    bench.receive(datasets=most)
    bench.receive(datasets=[last])
    assert reconcile(bench) == 0
    assert len(bench.jobs()) == 1


def test_a_job_whose_worker_is_gone_is_run_by_another(bench: Bench) -> None:
    bench.receive()
    with bench.ledger.write() as books:
        assert books.jobs.claim(bench.clock.now, "gpu0")
    assert reconcile(bench, "gpu0", "gpu1") == 0
    assert reconcile(bench, "gpu1") == 1
    assert bench.work(name="gpu1")
    assert bench.jobs()[0].job.state is JobState.DONE


def test_a_job_that_nobody_began_in_time_ends_though_no_worker_lives(bench: Bench) -> None:
    bench.terms = Terms(deadline_s=300.0)
    bench.receive()
    bench.clock.advance(300.0)
    assert reconcile(bench) == 1
    assert bench.jobs()[0].job.state is JobState.FAILED
    assert bench.kinds()[-1] == "alarm"


def test_objects_of_a_job_that_ended_without_a_result_are_cleared_away(bench: Bench) -> None:
    bench.receive()
    (row,) = bench.jobs()
    bench.spool.freeze(row.job.id, "seg", b"half a result", ("2.25.1", "1.4"))
    reconcile(bench)
    assert bench.frozen()
    with bench.ledger.write() as books:
        books.jobs.advance(row.job.id, JobEvent.CANCEL, bench.clock.now)
    reconcile(bench)
    assert bench.frozen() == {}


def test_results_on_disk_of_which_the_ledger_knows_nothing_are_delivered(
    bench: Bench, tmp_path: Path
) -> None:
    bench.receive()
    bench.work()
    first = bench.frozen()
    (job,) = bench.jobs()
    bench.ledger.close()
    bench.ledger = Ledger.open(tmp_path / "new.sqlite")
    assert reconcile(bench, engines=False) == 0
    bench.spool.unshelve()
    # Another configuration by now: no job of today would lead to these results.
    bench.setup = replace(bench.setup, config_digest="other")
    bench.complete()
    assert reconcile(bench) == 1
    restored = next(row for row in bench.jobs() if row.job.id == job.job.id)
    assert restored.job.state is JobState.DONE
    assert restored.trace == job.trace
    with bench.ledger.read() as books:
        due = books.deliveries.due("pacs", bench.clock.now)
    assert {row.result.path.name: row.result.path.read_bytes() for row in due} == first
    assert reconcile(bench) == 0
    assert SPEC.study_uid in {row.study_uid for row in due}
