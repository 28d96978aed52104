"""Proofs: what follows from each answer, and that every history comes to an end."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.job import DeliveryEvent
from node.domain.proof import (
    LOOKING,
    UNDER_WAY,
    Accepted,
    Proof,
    ProofEvent,
    ProofPlan,
    ProofStep,
    advance_proof,
    begin,
    committed,
)

FIND = ProofPlan("find", 10.0, 600.0, 2)
AUTO = ProofPlan("auto", 10.0, 600.0, 2)
COMMITMENT = ProofPlan("commitment", 10.0, 600.0, 2)
ANSWERS = {
    Proof.ASK: [ProofEvent.REQUESTED, ProofEvent.REFUSED, ProofEvent.NO_ANSWER],
    Proof.ASKED: [ProofEvent.NO_REPORT, ProofEvent.NOT_COMMITTED],
    Proof.LOOK: [
        ProofEvent.FOUND,
        ProofEvent.MISSING,
        ProofEvent.REFUSED,
        ProofEvent.NO_ANSWER,
    ],
}
ANSWERS[Proof.LATE] = ANSWERS[Proof.LOOK]
KINDS: list[Literal["auto", "find", "commitment"]] = ["auto", "find", "commitment"]


def looking(sent_at: float = 0.0, resends: int = 0, stage: Proof = Proof.LOOK) -> Accepted:
    return Accepted(stage, sent_at, resends)


def test_where_no_proof_is_wanted_accepted_is_the_end() -> None:
    assert begin(None, 100.0) == ProofStep(Proof.NONE)


def test_the_first_look_waits_for_the_archive_to_index() -> None:
    assert begin(AUTO, 100.0) == ProofStep(Proof.LOOK, 110.0)


def test_commitment_is_requested_at_once_and_its_report_awaited() -> None:
    assert begin(COMMITMENT, 100.0) == ProofStep(Proof.ASK, 100.0)
    asked = advance_proof(looking(stage=Proof.ASK), ProofEvent.REQUESTED, COMMITMENT, 100.0)
    assert asked == ProofStep(Proof.ASKED, 700.0)
    assert committed() == ProofStep(Proof.NONE, happened=DeliveryEvent.COMMIT)


@pytest.mark.parametrize(
    ("stage", "happened"),
    [
        (Proof.ASK, ProofEvent.REFUSED),
        (Proof.ASKED, ProofEvent.NO_REPORT),
        (Proof.ASKED, ProofEvent.NOT_COMMITTED),
    ],
)
def test_without_commitment_the_object_is_looked_for(stage: Proof, happened: ProofEvent) -> None:
    step = advance_proof(looking(stage=stage), happened, COMMITMENT, 50.0)
    assert step == ProofStep(Proof.LOOK, 50.0)


def test_what_is_found_is_verified() -> None:
    step = advance_proof(looking(), ProofEvent.FOUND, FIND, 20.0)
    assert step == ProofStep(Proof.NONE, happened=DeliveryEvent.VERIFY)


def test_what_is_not_found_is_looked_for_again_until_time_is_out_and_then_sent_again() -> None:
    assert advance_proof(looking(), ProofEvent.MISSING, FIND, 10.0) == ProofStep(Proof.LOOK, 20.0)
    assert advance_proof(looking(), ProofEvent.MISSING, FIND, 400.0).due_at == 600.0
    step = advance_proof(looking(), ProofEvent.MISSING, FIND, 600.0)
    assert step == ProofStep(Proof.NONE, happened=DeliveryEvent.RESEND)


def test_what_is_never_found_raises_the_alarm_and_stays_sent() -> None:
    step = advance_proof(looking(resends=2), ProofEvent.MISSING, FIND, 600.0)
    assert step == ProofStep(Proof.UNPROVEN, alarm=True)


def test_a_peer_without_find_raises_the_alarm_only_where_find_was_wanted() -> None:
    assert advance_proof(looking(), ProofEvent.REFUSED, FIND, 10.0).alarm
    assert advance_proof(looking(), ProofEvent.REFUSED, AUTO, 10.0) == ProofStep(Proof.NOT_OFFERED)


def test_a_peer_that_cannot_be_reached_raises_one_alarm_and_is_asked_on() -> None:
    step = advance_proof(looking(), ProofEvent.NO_ANSWER, FIND, 599.0)
    assert (step.stage, step.alarm) == (Proof.LOOK, False)
    step = advance_proof(looking(), ProofEvent.NO_ANSWER, FIND, 600.0)
    assert (step.stage, step.alarm, step.due_at) == (Proof.LATE, True, 1200.0)
    step = advance_proof(looking(stage=Proof.LATE), ProofEvent.NO_ANSWER, FIND, 1200.0)
    assert (step.stage, step.alarm, step.due_at) == (Proof.LATE, False, 2400.0)


def test_an_answer_that_cannot_come_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot get"):
        advance_proof(looking(stage=Proof.UNPROVEN), ProofEvent.FOUND, FIND, 0.0)


@given(st.sampled_from(KINDS), st.data())
def test_every_history_ends_proven_or_with_an_alarm_and_each_step_is_later(
    kind: Literal["auto", "find", "commitment"], data: st.DataObject
) -> None:
    """As long as the peer answers within some days, no proof is under way for ever."""
    plan = ProofPlan(kind, 10.0, 600.0, 2)
    now, sent_at, resends, alarms = 0.0, 0.0, 0, 0
    step = begin(plan, now)
    for turn in range(100):
        assert step.due_at is not None
        assert step.due_at >= now
        now = step.due_at
        answers = [a for a in ANSWERS[step.stage] if turn < 40 or a is not ProofEvent.NO_ANSWER]
        happened = data.draw(st.sampled_from(answers))
        step = advance_proof(Accepted(step.stage, sent_at, resends), happened, plan, now)
        alarms += step.alarm
        if step.happened is DeliveryEvent.RESEND:
            resends, sent_at = resends + 1, now
            step = begin(plan, now)
        elif step.stage not in UNDER_WAY:
            break
    assert step.stage not in UNDER_WAY
    assert resends <= plan.resends
    assert step.happened or step.stage is Proof.NOT_OFFERED or alarms
    assert set(LOOKING) < set(UNDER_WAY)
