"""Job and delivery life cycles, identities and back-off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from node.domain.job import (
    DELIVERY_TRANSITIONS,
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
)
from node.domain.study import revision

TEXT = st.text(min_size=1, max_size=20)


@given(st.lists(st.sampled_from(JobEvent), max_size=30))
def test_no_history_leaves_a_job_that_ended(events: list[JobEvent]) -> None:
    state = JobState.QUEUED
    for event in events:
        if (state, event) not in JOB_TRANSITIONS:
            with pytest.raises(TransitionError):
                advance_job(state, event)
            continue
        assert state not in (JobState.DONE, JobState.REFUSED, JobState.FAILED)
        state = advance_job(state, event)


@given(st.lists(st.sampled_from(DeliveryEvent), max_size=30))
def test_what_was_sent_is_never_sent_again(events: list[DeliveryEvent]) -> None:
    state, sent = DeliveryState.WAITING, 0
    for event in events:
        if (state, event) in DELIVERY_TRANSITIONS:
            state = advance_delivery(state, event)
            sent += event is DeliveryEvent.ACCEPT
    assert sent <= 1


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
