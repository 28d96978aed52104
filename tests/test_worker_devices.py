"""The worker and what computes: it is named in every result, and what it lacks costs no study."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.domain.computation import Computation
from node.domain.errors import DeviceLost, NotAssessable
from node.domain.job import JobState
from node.ladder import NoRung
from node.pipeline import Setup
from tests.conftest import Clock
from tests.places import tool
from tests.ward import Bench, at_work, failing

RAN = Computation("TensorRT 11.4.0.106 FP16 plan 1a2b3c4d5e6f on NVIDIA L4", "c0ffee" * 10)


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench


def ran(bench: Bench) -> Setup:
    return replace(bench.setup, computed=lambda: RAN)


def frozen(bench: Bench, name: str) -> Dataset:
    (path,) = (bench.spool.root / "results").rglob(name)
    return dcmread(path)


def texts(dataset: Dataset, keyword: str) -> list[str]:
    return [str(one.value) for one in dataset.iterall() if one.keyword == keyword]


def test_what_ran_stands_in_every_object_in_the_event_log_and_in_the_trace(bench: Bench) -> None:
    bench.receive()
    bench.work(ran(bench))
    words = (
        "computed by TensorRT 11.4.0.106 FP16 plan 1a2b3c4d5e6f on NVIDIA L4; "
        "verification c0ffeec0ffeec0ff"
    )
    segments = texts(frozen(bench, "seg.dcm"), "AlgorithmParameters")
    said = [one for one in texts(frozen(bench, "sr.dcm"), "TextValue") if "package" in one]
    assert segments
    assert said
    for parameters in (*segments, *said):
        assert words in parameters
        assert "package sha256" in parameters
    (row,) = bench.jobs()
    assert row.trace["computation"] == words
    with bench.ledger.read() as books:
        events = books.events.of_study(row.job.study_uid)
    assert [words in event.words for event in events if event.kind == "inferred"] == [True]


@pytest.mark.peer
def test_objects_that_name_what_ran_at_length_are_still_legal(bench: Bench) -> None:
    long = Computation("; ".join(f"runtime number {n} on NVIDIA L4" for n in range(400)), "ab" * 32)
    bench.receive()
    bench.work(replace(bench.setup, computed=lambda: long))
    for path in (bench.spool.root / "results").rglob("*.dcm"):
        done = subprocess.run([tool("dciodvfy"), "-new", path], capture_output=True, text=True)
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
    (parameters, *_) = texts(frozen(bench, "seg.dcm"), "AlgorithmParameters")
    assert len(parameters) <= 10240
    assert "package sha256" in parameters


def test_a_result_of_nothing_found_says_what_ran_too(bench: Bench) -> None:
    from tests.acceptance.hospital import small_study

    dark = small_study()
    for one in dark:
        one.PixelData = bytes(len(one.PixelData))
    bench.receive(datasets=dark)
    bench.work(ran(bench))
    assert any(str(RAN) in words for words in texts(frozen(bench, "sr.dcm"), "TextValue"))


def test_an_engine_that_nothing_computes_has_its_studies_wait_uncounted(bench: Bench) -> None:
    bench.receive()
    setup = failing(bench, *[NoRung("nothing can compute the engine tiny")] * 5)
    for _ in range(5):
        assert bench.work(setup)
        (row,) = bench.jobs()
        assert (row.job.state, row.job.attempts) == (JobState.QUEUED, 0)
        assert not bench.work(setup), "it is not tried again at once"
        bench.clock.advance(900.0)
    assert bench.work(setup)
    (row,) = bench.jobs()
    assert row.job.state is JobState.DONE


def test_a_lost_device_puts_the_job_back_and_ends_the_worker(bench: Bench) -> None:
    bench.receive()
    setup = failing(bench, DeviceLost("CUDA error 700"))
    worker = bench.worker(setup)
    with pytest.raises(DeviceLost):
        worker.step(bench.clock)
    worker.close()
    (row,) = bench.jobs()
    assert (row.job.state, row.job.attempts, row.reason) == (JobState.QUEUED, 1, "CUDA error 700")
    bench.clock.advance(30.0)
    assert bench.work(setup)
    (row,) = bench.jobs()
    assert (row.job.state, row.job.attempts) == (JobState.DONE, 2)


def test_a_study_that_loses_the_device_each_time_is_given_up(bench: Bench) -> None:
    bench.receive()
    setup = failing(bench, *[DeviceLost("CUDA error 700")] * 3)
    for _ in range(3):
        worker = bench.worker(setup)
        with pytest.raises(DeviceLost):
            worker.step(bench.clock)
        worker.close()
        bench.clock.advance(1000.0)
    (row,) = bench.jobs()
    assert row.job.state is JobState.FAILED


def test_a_study_that_an_engine_cannot_assess_is_refused_and_not_tried_again(bench: Bench) -> None:
    bench.receive()
    bench.work(failing(bench, NotAssessable("the first engine found nothing")))
    (row,) = bench.jobs()
    assert (row.job.state, row.reason) == (JobState.REFUSED, "the first engine found nothing")
    assert bench.frozen() == {}


def test_results_that_were_made_in_shadow_stay_there_though_the_worker_died_before_it_said_so(
    bench: Bench,
) -> None:
    bench.receive()
    bench.work(replace(bench.setup, shadow=True))
    with bench.ledger.write() as books:
        (row,) = bench.jobs()
        _as_if_running(books.jobs, row.job.id)
    bench.work(bench.setup)
    with bench.ledger.read() as books:
        assert books.deliveries.of_job(row.job.id) == ()
    (row,) = bench.jobs()
    assert row.job.state is JobState.DONE


def test_a_refusal_that_was_made_in_shadow_stays_there_though_the_worker_died_before_it_said_so(
    bench: Bench,
) -> None:
    bench.receive()
    refusing = failing(bench, *[NotAssessable("the first engine found nothing")] * 2)
    refusing = replace(refusing, report_refusals=True)
    bench.work(replace(refusing, shadow=True))
    (row,) = bench.jobs()
    assert bench.frozen() != {}
    with bench.ledger.write() as books:
        _as_if_running(books.jobs, row.job.id)
    bench.work(refusing)
    with bench.ledger.read() as books:
        assert books.deliveries.of_job(row.job.id) == ()
    (row,) = bench.jobs()
    assert row.job.state is JobState.REFUSED


def _as_if_running(jobs: object, job: str) -> None:
    """The ledger as it was before the job's end was recorded."""
    from sqlalchemy import delete

    from node.ledger.tables import results

    connection = jobs._connection  # type: ignore[attr-defined]
    connection.execute(delete(results).where(results.c.job_id == job))
    jobs._change(job, {"state": JobState.QUEUED, "finished_at": None})  # type: ignore[attr-defined]
