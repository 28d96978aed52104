"""The worker: a job ends done, refused or failed, and its results are frozen before that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.errors import InferenceError
from node.domain.job import JobState
from node.ledger import Ledger
from node.spool import Spool
from tests.acceptance.hospital import SPEC
from tests.conftest import Clock
from tests.ward import Bench, at_work, failing


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench


def test_an_assessed_study_has_its_results_frozen_and_waiting(bench: Bench) -> None:
    bench.receive()
    assert bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.DONE
    with bench.ledger.read() as books:
        waiting = books.deliveries.due("pacs", bench.clock.now)
    assert [delivery.result.kind for delivery in waiting] == ["seg", "sr"]
    for delivery in waiting:
        assert bench.spool.verify(delivery.result.path, delivery.result.sha256)
    assert len(row.trace["findings"]) == 1


def test_nothing_due_is_no_work(bench: Bench) -> None:
    assert not bench.work()


def test_the_same_study_gives_the_same_bytes_wherever_it_is_run(
    bench: Bench, tmp_path: Path
) -> None:
    bench.receive()
    bench.work()
    first = bench.frozen()
    with bench.ledger.write() as books:
        (row,) = books.jobs.of_study(SPEC.study_uid)
    for path in (bench.spool.root / "results").rglob("*.dcm"):
        path.unlink()
    other = Bench(
        Ledger.open(tmp_path / "other.sqlite"),
        Spool(tmp_path / "other", Clock()),
        bench.setup,
        Clock(),
    )
    other.receive()
    other.work()
    (again,) = other.jobs()
    assert again.job.id == row.job.id
    assert other.frozen() == first
    other.ledger.close()


def test_a_study_that_does_not_fit_is_refused_with_the_reason_and_nothing_is_made(
    bench: Bench,
) -> None:
    bench.receive(replace(SPEC, modality="CT"))
    bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.REFUSED
    assert "MR" in row.trace["series"][0]["words"][0]
    assert bench.frozen() == {}


def test_a_refusal_is_reported_where_the_configuration_wants_it(bench: Bench) -> None:
    bench.receive(replace(SPEC, modality="CT"))
    bench.work(replace(bench.setup, report_refusals=True))
    assert list(bench.frozen()) == ["sr.dcm"]


def test_an_engine_that_fails_is_tried_again_after_a_while(bench: Bench) -> None:
    bench.receive()
    setup = failing(bench, InferenceError("out of memory"))
    bench.work(setup)
    assert not bench.work(setup)
    bench.clock.advance(30.0)
    assert bench.work(setup)
    (row,) = bench.jobs()
    assert (row.job.state, row.job.attempts) == (JobState.DONE, 2)


def test_an_engine_that_always_fails_is_given_up_with_its_words(bench: Bench) -> None:
    bench.receive()
    setup = failing(bench, *[InferenceError("out of memory")] * 3)
    for _ in range(3):
        bench.work(setup)
        bench.clock.advance(1000.0)
    (row,) = bench.jobs()
    assert (row.job.state, row.reason) == (JobState.FAILED, "out of memory")


def test_an_unforeseen_error_costs_the_job_an_attempt_and_shows_only_its_type(
    bench: Bench,
) -> None:
    bench.receive()
    bench.work(failing(bench, ZeroDivisionError("Doe^John")))
    (row,) = bench.jobs()
    assert row.job.state is JobState.QUEUED
    assert row.reason == "ZeroDivisionError in the node"


def test_a_study_that_kills_the_node_each_time_is_given_up(bench: Bench) -> None:
    bench.receive()
    for _ in range(3):
        with bench.ledger.write() as books:
            assert books.jobs.claim(bench.clock.now) is not None
        with bench.ledger.write() as books:
            books.jobs.reopen_running(bench.clock.now)
    assert bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.FAILED
    assert "died" in row.reason


def test_another_engine_package_takes_the_job_over(bench: Bench) -> None:
    bench.receive()
    changed = replace(bench.setup, bundle=replace(bench.setup.bundle, digest="other"))
    bench.work(changed)
    old, new = sorted(bench.jobs(), key=lambda row: row.job.engine_digest == "other")
    assert (old.job.state, new.job.state) == (JobState.FAILED, JobState.QUEUED)
    bench.work(changed)
    assert {row.job.state for row in bench.jobs()} == {JobState.FAILED, JobState.DONE}


def test_images_that_were_exchanged_on_the_disk_make_no_result(bench: Bench) -> None:
    """The gate sees a consistent set of files; only the ledger knows whose they were."""
    bench.receive()
    with bench.ledger.read() as books:
        instances = books.arrivals.study(SPEC.study_uid).instances
    for instance in instances:
        dataset = dcmread(instance.path)
        dataset.PatientID, dataset.PatientName = "OTHER", "Other^Name"
        dataset.save_as(instance.path)
    assert bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.FAILED
    assert "another patient" in row.reason
    assert bench.frozen() == {}
