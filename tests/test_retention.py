"""Retention removes what is finished with, the oldest first, and nothing else, ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.domain.job import ENDED_JOBS, DeliveryEvent, DeliveryState, Job, JobEvent, JobState
from node.domain.proof import Proof
from node.domain.study import Instance
from node.indexer import Indexer
from node.ledger import Ledger
from node.ledger.deliveries import ResultRow
from node.ledger.quarantine import Entry, Kind
from node.ledger.upkeep import Delivered, Holding
from node.retention import DAY_S, EVERY_S, Limits, Retention, Sized, choose
from node.spool import Spool
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.ward import Bench, at_work, received

SENT = Delivered(DeliveryState.SENT)
DONE = Holding("1.2", 0.0, complete=True, jobs=(JobState.DONE,), deliveries=(SENT,))
AGED = Limits(age_s=7 * DAY_S, free=0)
FULL = Limits(age_s=0.0, free=100)


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    with at_work(tmp_path, clock) as bench:
        yield bench


def removed(*holdings: Holding, limits: Limits = AGED, free: int = 0, now: float = 1e9) -> set[str]:
    choice = choose([Sized(one, 10) for one in holdings], limits, now, free)
    return {*choice.aged, *choice.for_space}


@pytest.mark.parametrize(
    "changes",
    [
        {"complete": False},
        {"quarantined": True},
        *({"jobs": (JobState.DONE, state)} for state in JobState if state not in ENDED_JOBS),
        *(
            {"deliveries": (SENT, Delivered(state))}
            for state in (DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.DEAD)
        ),
        *(
            {"deliveries": (SENT, Delivered(DeliveryState.SENT, proof))}
            for proof in Proof
            if proof not in (Proof.NONE, Proof.NOT_OFFERED)
        ),
    ],
    ids=str,
)
def test_what_is_unfinished_stays_however_old_it_is_and_however_full_the_disk(
    changes: dict[str, object],
) -> None:
    kept = replace(DONE, **changes)  # type: ignore[arg-type]
    assert removed(kept) == removed(kept, limits=FULL) == set()
    assert removed(DONE) == removed(DONE, limits=FULL) == {"1.2"}


def test_a_study_goes_after_its_days_and_not_before() -> None:
    assert removed(DONE, now=7 * DAY_S - 1) == set()
    assert removed(DONE, now=7 * DAY_S) == {"1.2"}
    assert removed(DONE, limits=Limits(age_s=0.0, free=0)) == set()


def test_for_space_the_oldest_go_until_there_is_enough() -> None:
    holdings = [replace(DONE, study_uid=str(n), last_at=float(n)) for n in (3, 1, 2)]
    assert removed(*holdings, limits=FULL, free=100) == set()
    assert removed(*holdings, limits=FULL, free=85) == {"1", "2"}
    maximum = Limits(age_s=0.0, free=0, maximum=20)
    assert removed(*holdings, limits=maximum, free=10**9) == {"1"}


def test_what_is_wanting_in_the_end_is_told() -> None:
    choice = choose([Sized(DONE, 10)], FULL, 0.0, free=50)
    assert (choice.for_space, choice.wanting) == (("1.2",), 40)


DELIVERED = st.builds(Delivered, st.sampled_from(DeliveryState), st.sampled_from(Proof))
HOLDINGS = st.lists(
    st.builds(
        Holding,
        study_uid=st.uuids().map(str),
        last_at=st.floats(0, 1e6),
        complete=st.booleans(),
        quarantined=st.booleans(),
        jobs=st.lists(st.sampled_from(JobState), max_size=3).map(tuple),
        deliveries=st.lists(DELIVERED, max_size=4).map(tuple),
    ),
    max_size=12,
)
LIMITS = st.builds(Limits, st.floats(0, 1e6), st.integers(0, 200), st.integers(0, 200))


@given(HOLDINGS, LIMITS, st.floats(0, 2e6), st.integers(0, 300))
def test_no_choice_ever_holds_what_is_undelivered_or_unfinished(
    holdings: list[Holding], limits: Limits, now: float, free: int
) -> None:
    choice = choose([Sized(one, 10) for one in holdings], limits, now, free)
    chosen = {*choice.aged, *choice.for_space}
    undelivered = (DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.DEAD)
    for one in holdings:
        if one.study_uid in chosen:
            assert one.complete
            assert not one.quarantined
            assert set(one.jobs) <= ENDED_JOBS
            assert all(delivery.state not in undelivered for delivery in one.deliveries)
    # Nothing younger goes for want of space while something older that may go stays.
    ages = sorted((one.last_at, one.study_uid in chosen) for one in holdings if one.finished)
    assert (
        not choice.for_space
        or [gone for _, gone in ages] == sorted((gone for _, gone in ages), reverse=True)
        or len({age for age, _ in ages}) < len(ages)
    )
    assert choice.wanting == 0 or chosen == {one.study_uid for one in holdings if one.finished}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(JobEvent), max_size=4),
    st.lists(st.sampled_from(DeliveryEvent), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_no_history_of_a_ledger_loses_what_is_undelivered(
    tmp_path_factory: pytest.TempPathFactory,
    job_events: list[JobEvent],
    delivery_events: list[DeliveryEvent],
    complete: bool,
    quarantined: bool,
) -> None:
    """Random events on a real ledger and real files: the files stay unless all is over."""
    place = tmp_path_factory.mktemp("retention")
    spool, ledger = Spool(place / "spool", Clock()), Ledger.open(place / "ledger.sqlite")
    file, result = place / "a.dcm", place / "seg.dcm"
    file.touch()
    result.touch()
    job = Job("j", "1.2", "r", "engine", "d", "c", JobState.QUEUED, 0, 10.0)
    with ledger.write() as books:
        instance = Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "scanner", 1.0, file, "1.1")
        books.arrivals.record(instance)
        if complete:
            books.arrivals.complete("1.2", "quiet period", 5.0)
        if quarantined:
            books.quarantine.add(Entry(place / "q", Kind.CONFLICT, "", 1.0, study_uid="1.2"))
        books.jobs.add(job)
        books.deliveries.add(ResultRow("2.25.1", "j", "1.4", "seg", result, "s"), ["pacs"], 10.0)
    states = applied(ledger, job_events, delivery_events)
    retention = Retention(ledger, spool, Limits(1.0, 10**18), lambda: 0)
    gone = retention.step(1e9)
    over = states[0] in ENDED_JOBS and Delivered(states[1]).settled
    assert bool(gone) == (complete and not quarantined and over)
    assert file.exists() == result.exists() == (not gone)
    ledger.close()


def applied(
    ledger: Ledger, job_events: list[JobEvent], delivery_events: list[DeliveryEvent]
) -> tuple[JobState, DeliveryState]:
    """Whatever of these events the states allow, and where they lead."""
    from node.domain.job import TransitionError

    for event in [JobEvent.CLAIM, *job_events]:
        try:
            with ledger.write() as books:
                books.jobs.advance("j", event, 20.0, due_at=20.0)
        except TransitionError:
            continue
    for happened in delivery_events:
        try:
            with ledger.write() as books:
                (row,) = books.deliveries.of_job("j")
                books.deliveries.advance(row, happened, reason="")
        except TransitionError:
            continue
    with ledger.read() as books:
        row_ = books.jobs.row("j")
        (delivery,) = books.deliveries.of_job("j")
    assert row_ is not None
    return row_.job.state, delivery.state


def deliver(bench: Bench) -> None:
    with bench.ledger.write() as books:
        for row in books.deliveries.due("pacs", bench.clock.now):
            books.deliveries.advance(row, DeliveryEvent.ACCEPT, reason="", sent_at=bench.clock.now)


def retention(bench: Bench, free: int = 10**12) -> Retention:
    return Retention(bench.ledger, bench.spool, Limits(), lambda: free)


def files(bench: Bench) -> list[Path]:
    return [path for path in bench.spool.root.rglob("*") if path.is_file()]


def test_a_delivered_study_is_removed_and_its_story_stays(bench: Bench) -> None:
    bench.receive()
    bench.work()
    deliver(bench)
    assert retention(bench).step(bench.clock.advance(6 * DAY_S)) == 0
    assert retention(bench).step(bench.clock.advance(2 * DAY_S)) == 1
    assert files(bench) == []
    assert bench.kinds()[-1] == "removed"
    with bench.ledger.read() as books:
        assert len(books.arrivals.study(SPEC.study_uid).instances) == 6
        assert len(books.deliveries.of_job(bench.jobs()[0].job.id)) == 2
    assert retention(bench).step(bench.clock.advance(2 * DAY_S)) == 0


def test_an_undelivered_study_stays_and_a_full_disk_raises_the_alarm_once(bench: Bench) -> None:
    bench.receive()
    bench.work()
    before = files(bench)
    keeper = retention(bench, free=0)
    for _ in range(3):
        assert keeper.step(bench.clock.advance(30 * DAY_S)) == 0
    assert files(bench) == before
    with bench.ledger.read() as books:
        alarms = [event for event in books.events.walk() if event.kind == "alarm"]
    assert len(alarms) == 1
    assert "10.0 GB" in alarms[0].words


def test_it_looks_once_a_minute(bench: Bench) -> None:
    bench.receive()
    bench.work()
    keeper = retention(bench)
    keeper.step(bench.clock.now)
    deliver(bench)
    keeper.limits = Limits(age_s=1.0)
    assert keeper.step(bench.clock.advance(EVERY_S - 1)) == 0
    assert keeper.step(bench.clock.advance(1.0)) == 1


def test_a_study_that_grows_while_it_is_looked_at_stays(bench: Bench) -> None:
    *most, last = small_study()
    bench.receive(datasets=most)
    bench.work()
    deliver(bench)
    now = bench.clock.advance(30 * DAY_S)

    def late() -> int:
        bench.spool.keep(received(last))
        Indexer(bench.spool, bench.ledger, bench.clock).step()
        return 10**12

    assert Retention(bench.ledger, bench.spool, Limits(), late).step(now) == 0
    assert len(list(bench.spool.shelved())) == 6
