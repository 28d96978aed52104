"""Job and delivery life cycles, identities and back-off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from node.domain.job import (
    DELIVERED,
    DELIVERY_TRANSITIONS,
    ENDED_JOBS,
    JOB_TRANSITIONS,
    BackOff,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    TransitionError,
    advance_delivery,
    advance_job,
    derived_uid,
    job_id,
    urgency,
)
from node.domain.study import revision

TEXT = st.text(min_size=1, max_size=20)


@given(st.lists(st.sampled_from(JobEvent), max_size=30))
def test_only_a_person_takes_up_a_job_that_ended_and_none_one_that_has_its_result(
    events: list[JobEvent],
) -> None:
    state = JobState.QUEUED
    for event in events:
        if (state, event) not in JOB_TRANSITIONS:
            with pytest.raises(TransitionError):
                advance_job(state, event)
            continue
        assert state not in (JobState.DONE, JobState.REFUSED)
        if state in ENDED_JOBS | {JobState.FAILED, JobState.HELD}:
            assert event in (JobEvent.RELEASE, JobEvent.CANCEL)
        state = advance_job(state, event)


@pytest.mark.parametrize("event", JobEvent)
def test_a_job_that_was_cancelled_while_it_ran_can_only_stop(event: JobEvent) -> None:
    if event in (JobEvent.STOP, JobEvent.CANCEL):
        return
    with pytest.raises(TransitionError):
        advance_job(JobState.CANCELLING, event)


@pytest.mark.parametrize(
    ("stated", "less"),
    [(["STAT"], ["HIGH"]), (["high "], ["ROUTINE"]), (["ROUTINE", "stat"], ["HIGH"])],
)
def test_stat_comes_before_high_before_the_rest(stated: list[str], less: list[str]) -> None:
    assert urgency(stated) > urgency(less) >= urgency([])


@given(st.lists(st.sampled_from(DeliveryEvent), max_size=30))
def test_what_was_sent_is_sent_again_only_when_proof_or_a_person_wants_it(
    events: list[DeliveryEvent],
) -> None:
    again = {DeliveryEvent.RESEND, DeliveryEvent.RELEASE}
    state, may_send = DeliveryState.WAITING, True
    for event in events:
        if (state, event) not in DELIVERY_TRANSITIONS:
            with pytest.raises(TransitionError):
                advance_delivery(state, event)
            continue
        assert event is not DeliveryEvent.ACCEPT or may_send
        state = advance_delivery(state, event)
        may_send = (may_send and event is not DeliveryEvent.ACCEPT) or event in again


def test_only_a_delivery_that_is_still_to_be_made_can_be_discarded() -> None:
    discardable = {s for s, event in DELIVERY_TRANSITIONS if event is DeliveryEvent.DISCARD}
    assert discardable == {DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.DEAD}
    assert not discardable & DELIVERED


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_derived_uid_is_legal_and_stable(parts: list[str]) -> None:
    uid = derived_uid(*parts)
    assert UID(uid).is_valid
    assert len(uid) <= 44
    assert uid == derived_uid(*parts)


def test_derived_uid_keeps_its_parts_apart() -> None:
    assert derived_uid("ab", "c") != derived_uid("a", "bc")


@given(st.lists(TEXT, min_size=1, max_size=8, unique=True), st.randoms())
def test_revision_does_not_depend_on_order_or_repetition(
    keys: list[str], random: st.DataObject
) -> None:
    shuffled = [*keys, *keys]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert revision(keys) == revision(shuffled)


@pytest.mark.parametrize("part", range(4))
def test_each_part_of_a_jobs_identity_counts(part: int) -> None:
    parts = ["revision", "engine", "digest", "configuration"]
    changed = [text + "!" * (n == part) for n, text in enumerate(parts)]
    assert job_id(*parts) != job_id(*changed)


def test_back_off_doubles_up_to_its_longest() -> None:
    back_off = BackOff(first=5.0, factor=2.0, longest=60.0)
    assert [back_off.delay(n) for n in (1, 2, 3, 4, 5, 10_000)] == [5, 10, 20, 40, 60, 60]
