"""A job may be cancelled, taken over, superseded or found finished, and its result counts once."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.errors import InferenceError, LedgerBusy, SpoolFull
from node.domain.job import JobEvent, JobState
from node.domain.stage import Stage
from node.ledger import Ledger
from node.room import Terms
from node.spool import Frozen, Spool
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.places import tool
from tests.ward import Bench, at_work, failing


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench


def at(stage: Stage, do: Callable[[], object]) -> Callable[[Stage, str], None]:
    """An observer that does something when a stage is reached for the first time."""
    left = [do]

    def reached(seen: Stage, subject: str) -> None:
        if seen is stage and left:
            left.pop()()

    return reached


def advance(bench: Bench, event: JobEvent) -> None:
    with bench.ledger.write() as books:
        (row,) = books.jobs.of_study(SPEC.study_uid)
        books.jobs.advance(row.job.id, event, bench.clock.now, due_at=bench.clock.now)


def waiting(bench: Bench) -> list[str]:
    with bench.ledger.read() as books:
        return [row.result.kind for row in books.deliveries.due("pacs", bench.clock.now + 1e6)]


def state(bench: Bench) -> JobState:
    return bench.jobs()[-1].job.state


@pytest.mark.parametrize(
    "stage", [Stage.SELECTED, Stage.LOADED, Stage.CHECKED, Stage.RESULT_FROZEN]
)
def test_a_job_that_is_cancelled_while_it_runs_delivers_nothing(bench: Bench, stage: Stage) -> None:
    bench.receive()
    bench.reached = at(stage, lambda: advance(bench, JobEvent.CANCEL))
    assert bench.work()
    assert state(bench) is JobState.CANCELLED
    assert waiting(bench) == []
    assert bench.frozen() == {}
    assert bench.kinds()[-1] == "cancelled"


def test_a_job_is_stopped_in_the_middle_of_the_network_too(bench: Bench) -> None:
    bench.receive()
    seconds = iter(range(1000))
    worker = bench.worker()
    worker._tools = replace(
        worker._tools,
        stopwatch=lambda: float(next(seconds)),
        progress=lambda done, total: advance(bench, JobEvent.CANCEL),
    )
    seen: list[Stage] = []
    bench.reached = lambda stage, subject: seen.append(stage)
    assert worker.step(bench.clock)
    worker.close()
    assert state(bench) is JobState.CANCELLED
    assert Stage.INFERRED not in seen


def test_a_failure_of_a_cancelled_job_does_not_queue_it_again(bench: Bench) -> None:
    bench.receive()
    bench.reached = at(Stage.LOADED, lambda: None)
    setup = failing(bench, InferenceError("out of memory"))
    worker = bench.worker(setup)
    examine = setup.engine.examine

    def cancelling(*arguments: object) -> object:
        advance(bench, JobEvent.CANCEL)
        return examine(*arguments)  # type: ignore[arg-type]

    setup.engine.examine = cancelling  # type: ignore[method-assign, misc, assignment]
    worker.step(bench.clock)
    worker.close()
    assert state(bench) is JobState.CANCELLED


def test_a_worker_that_wakes_up_after_another_took_over_changes_nothing(bench: Bench) -> None:
    bench.receive()

    def taken_over() -> None:
        with bench.ledger.write() as books:
            books.jobs.reopen_orphans({"second"}, bench.clock.now)
        second = Bench(bench.ledger, bench.spool, bench.setup, bench.clock)
        assert second.work(name="second")

    bench.reached = at(Stage.CHECKED, taken_over)
    assert bench.work(name="first")
    assert state(bench) is JobState.DONE
    assert waiting(bench) == ["seg", "sr"]
    assert bench.kinds().count("done") == 1


def test_results_that_were_frozen_before_a_crash_are_recorded_and_not_made_again(
    bench: Bench,
) -> None:
    bench.receive()
    with closing(
        sqlite3.connect(bench.ledger._path, isolation_level=None, check_same_thread=False)
    ) as other:
        # From the last stage on another program locks the ledger: the end cannot be recorded.
        bench.reached = at(Stage.RESULT_FROZEN, lambda: other.execute("BEGIN IMMEDIATE"))
        impatient = Ledger.open(bench.ledger._path, patience_s=0.01)
        patient, bench.ledger = bench.ledger, impatient
        worker = bench.worker()
        with pytest.raises(LedgerBusy):
            worker.step(bench.clock)
        other.execute("ROLLBACK")
        first = bench.frozen()
        assert state(bench) is JobState.RUNNING
        worker._setups = {"tiny": failing(bench, *[InferenceError("asked again")] * 9)}
        assert worker.step(bench.clock)
        worker.close()
    patient.close()
    assert state(bench) is JobState.DONE
    assert bench.frozen() == first
    assert waiting(bench) == ["seg", "sr"]


def test_frozen_results_that_were_damaged_since_are_made_again(bench: Bench) -> None:
    bench.receive()
    bench.work()
    first = bench.frozen()
    (path, *_) = (bench.spool.root / "results").rglob("*.dcm")
    path.write_bytes(b"damaged")
    other = Bench(
        Ledger.open(bench.ledger._path.with_name("other.sqlite")),
        bench.spool,
        bench.setup,
        Clock(),
    )
    bench.spool.unshelve()
    other.complete()
    assert other.work()
    assert other.frozen() == first
    other.ledger.close()


class Full(Spool):
    """A spool on a disk without space."""

    def freeze(self, job: str, kind: str, content: bytes, uids: tuple[str, str]) -> Frozen:
        """Nothing can be written."""
        raise SpoolFull("the spool could not write: No space left on device")


def test_a_full_disk_costs_a_job_no_attempt(bench: Bench) -> None:
    bench.receive()
    roomy, bench.spool = bench.spool, Full(bench.spool.root, bench.clock)
    for _ in range(5):
        assert bench.work()
        assert state(bench) is JobState.QUEUED
        bench.clock.advance(1000.0)
    bench.spool = roomy
    assert bench.work()
    (row,) = bench.jobs()
    assert (row.job.state, row.job.attempts) == (JobState.DONE, 1)


def test_a_poison_study_is_given_up_and_the_queue_behind_it_moves_on(bench: Bench) -> None:
    poison = replace(SPEC, study="poison")
    bench.receive(poison)
    bench.receive()
    setup = failing(bench, *[MemoryError()] * 3)
    for _ in range(4):
        bench.work(setup)
        bench.clock.advance(1000.0)
    (dead,), (done,) = bench.jobs(poison.study_uid), bench.jobs()
    assert (dead.job.state, dead.job.attempts) == (JobState.FAILED, 3)
    assert done.job.state is JobState.DONE


def test_the_same_study_again_makes_no_second_result(bench: Bench) -> None:
    bench.receive()
    assert bench.work()
    first = bench.frozen()
    bench.receive()
    assert not bench.work()
    assert len(bench.jobs()) == 1
    assert (bench.frozen(), waiting(bench)) == (first, ["seg", "sr"])


def test_a_late_instance_makes_results_that_name_their_predecessors(
    bench: Bench, tmp_path: Path
) -> None:
    *most, last = small_study()
    bench.receive(datasets=most)
    bench.work()
    bench.receive(datasets=[last])
    bench.work()
    early, late = bench.jobs()
    assert (early.job.state, late.job.state) == (JobState.DONE, JobState.DONE)
    assert late.job.supersedes == early.job.id
    old, new = (
        dcmread(bench.spool.root / "results" / row.job.id / "sr.dcm") for row in (early, late)
    )
    assert "PredecessorDocumentsSequence" not in old
    (study,) = new.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (report,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == SPEC.study_uid
    assert series.SeriesInstanceUID == old.SeriesInstanceUID
    assert report.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert report.ReferencedSOPClassUID == old.SOPClassUID
    assert new.SOPInstanceUID != old.SOPInstanceUID


@pytest.mark.peer
def test_no_validator_finds_an_error_in_a_report_with_predecessors(bench: Bench) -> None:
    *most, last = small_study()
    for datasets in (most, [last]):
        bench.receive(datasets=datasets)
        bench.work()
    path = bench.spool.root / "results" / bench.jobs()[-1].job.id / "sr.dcm"
    assert "PredecessorDocumentsSequence" in dcmread(path)
    done = subprocess.run([tool("dciodvfy"), path, "-new"], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_late_instances_wait_for_a_person_where_the_configuration_wants_it(bench: Bench) -> None:
    bench.terms = Terms(late_instances="hold")
    *most, last = small_study()
    bench.receive(datasets=most)
    bench.work()
    bench.receive(datasets=[last])
    assert not bench.work()
    held = bench.jobs()[-1]
    assert held.job.state is JobState.HELD
    with bench.ledger.write() as books:
        books.jobs.advance(held.job.id, JobEvent.RELEASE, bench.clock.now, due_at=bench.clock.now)
    assert bench.work()
    assert state(bench) is JobState.DONE


def test_a_study_of_which_retention_removed_a_part_is_not_assessed_by_the_rest(
    bench: Bench,
) -> None:
    *most, last = small_study()
    bench.receive(datasets=most)
    bench.work()
    with bench.ledger.write() as books:
        bench.spool.remove(books.upkeep.files(SPEC.study_uid))
        books.upkeep.forget_files(SPEC.study_uid)
    bench.receive(datasets=[last])
    bench.work()
    late = bench.jobs()[-1]
    assert late.job.state is JobState.FAILED
    assert "5 of 6 instances were removed" in late.reason
    # The sender still has them.
    bench.receive(datasets=most)
    with bench.ledger.write() as books:
        books.jobs.advance(late.job.id, JobEvent.RELEASE, bench.clock.now, due_at=bench.clock.now)
    bench.work()
    assert state(bench) is JobState.DONE


class Interrupted(Spool):
    """A spool in which something happens when a job's results are all frozen."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def note(self, job: str, content: bytes) -> None:
        """The last moment before the ledger learns of the results."""
        super().note(job, content)
        self.happens()


def test_a_job_that_is_cancelled_at_the_last_moment_delivers_nothing(bench: Bench) -> None:
    bench.receive()
    bench.spool = spool = Interrupted(bench.spool.root, bench.clock)
    spool.happens = lambda: advance(bench, JobEvent.CANCEL)
    bench.work()
    assert state(bench) is JobState.CANCELLED
    assert (waiting(bench), bench.frozen()) == ([], {})
