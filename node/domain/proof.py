"""How it is shown that a destination keeps what it accepted: the plan, and the next step.

``sent`` says that a peer answered success; whether it still has the object a minute later is
another question, and a radiologist's. The answer comes by Storage Commitment (PS3.4 Annex J) or by
asking for the object (C-FIND at IMAGE level). Pure: what happened and when, in; what to do, out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from node.domain.job import DeliveryEvent

LONGEST_WAIT_S = 86_400.0
"""Longest wait between two looks at a peer that did not answer the earlier ones, in seconds."""


class Proof(StrEnum):
    """How far the proof of an accepted result has come."""

    NONE = ""
    """None is wanted, or the proof is there: the delivery's state says which."""
    ASK = "ask"
    """Storage commitment is to be requested (N-ACTION)."""
    ASKED = "asked"
    """It is requested; the peer's report (N-EVENT-REPORT) is awaited."""
    LOOK = "look"
    """The peer is to be asked for the object (C-FIND)."""
    LATE = "late"
    """As ``look``, and the alarm has been raised because it takes so long."""
    NOT_OFFERED = "not offered"
    """The peer can prove nothing, and the configuration is content with that."""
    UNPROVEN = "unproven"
    """No proof came; the alarm has been raised."""


LOOKING = (Proof.LOOK, Proof.LATE)
UNDER_WAY = (Proof.ASK, Proof.ASKED, *LOOKING)
"""The stages in which something is still to happen, at ``proof_due_at``."""


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """What a destination wants to be shown. Times in seconds.

    ``kind``: ``commitment`` asks for storage commitment and falls back to C-FIND; ``find`` asks by
    C-FIND; ``auto`` too, but a peer that has no C-FIND raises no alarm. The first look is
    ``delay_s`` after the result was accepted; what is not found ``timeout_s`` after that is sent
    again, ``resends`` times.
    """

    kind: Literal["auto", "find", "commitment"] = "auto"
    delay_s: float = 10.0
    timeout_s: float = 600.0
    resends: int = 2


@dataclass(frozen=True, slots=True)
class Accepted:
    """A result that a destination accepted at ``sent_at``, after so many times sent again."""

    stage: Proof
    sent_at: float
    resends: int = 0


class ProofEvent(StrEnum):
    """What happens on the way to a proof."""

    REQUESTED = "requested"
    """The peer took the request for storage commitment."""
    FOUND = "found"
    MISSING = "missing"
    """The peer answered, and does not have it."""
    REFUSED = "refused"
    """The peer does not offer this proof."""
    NO_ANSWER = "no answer"
    NO_REPORT = "no report"
    """The peer took the request for storage commitment, and has not reported in time."""
    NOT_COMMITTED = "not committed"
    """The peer reported that it does not commit to the object."""


@dataclass(frozen=True, slots=True)
class ProofStep:
    """What follows: an event for the delivery or none, the next stage with its time, an alarm."""

    stage: Proof
    due_at: float | None = None
    happened: DeliveryEvent | None = None
    alarm: bool = False


def begin(plan: ProofPlan | None, now: float) -> ProofStep:
    """The first step, when the destination has just accepted a result."""
    if plan is None:
        return ProofStep(Proof.NONE)
    if plan.kind == "commitment":
        return ProofStep(Proof.ASK, now)
    return ProofStep(Proof.LOOK, now + plan.delay_s)


def advance_proof(
    accepted: Accepted, happened: ProofEvent, plan: ProofPlan, now: float
) -> ProofStep:
    """The step that follows an event. Raises ValueError for one that cannot happen at this stage.

    A peer that cannot be reached is no proof against the object: the alarm is raised in time, and
    the looking goes on, with doubling waits, until the peer has answered.
    """
    if accepted.stage is Proof.ASK:
        return _after_asking(accepted, happened, plan, now)
    if accepted.stage is Proof.ASKED:
        # Whatever was or was not reported: the peer may have the object all the same.
        return ProofStep(Proof.LOOK, now)
    if accepted.stage in LOOKING:
        return _after_looking(accepted, happened, plan, now)
    raise ValueError(f"a proof at stage {accepted.stage!r} cannot get {happened!r}")


def committed() -> ProofStep:
    """The step that follows a peer's word that it keeps the object, at whatever stage it comes."""
    return ProofStep(Proof.NONE, happened=DeliveryEvent.COMMIT)


def _after_asking(
    accepted: Accepted, happened: ProofEvent, plan: ProofPlan, now: float
) -> ProofStep:
    if happened is ProofEvent.REQUESTED:
        return ProofStep(Proof.ASKED, now + plan.timeout_s)
    if happened is ProofEvent.NO_ANSWER and now < accepted.sent_at + plan.timeout_s:
        return ProofStep(Proof.ASK, _later(accepted, plan, now))
    return ProofStep(Proof.LOOK, now)


def _after_looking(
    accepted: Accepted, happened: ProofEvent, plan: ProofPlan, now: float
) -> ProofStep:
    late = now >= accepted.sent_at + plan.timeout_s
    later = _later(accepted, plan, now)
    match happened:
        case ProofEvent.FOUND:
            return ProofStep(Proof.NONE, happened=DeliveryEvent.VERIFY)
        case ProofEvent.REFUSED if plan.kind == "auto":
            return ProofStep(Proof.NOT_OFFERED)
        case ProofEvent.REFUSED:
            return ProofStep(Proof.UNPROVEN, alarm=True)
        case ProofEvent.NO_ANSWER:
            stage = Proof.LATE if late else accepted.stage
            return ProofStep(stage, later, alarm=stage is not accepted.stage)
        case _ if not late:
            return ProofStep(accepted.stage, min(later, accepted.sent_at + plan.timeout_s))
        case _ if accepted.resends < plan.resends:
            return ProofStep(Proof.NONE, happened=DeliveryEvent.RESEND)
        case _:
            return ProofStep(Proof.UNPROVEN, alarm=True)


def _later(accepted: Accepted, plan: ProofPlan, now: float) -> float:
    """Waits that double, from the first look on, without a count to keep."""
    waited = max(now - accepted.sent_at, plan.delay_s, 1.0)
    return now + min(waited, LONGEST_WAIT_S)


@dataclass(frozen=True, slots=True)
class FailedInstance:
    """An object that the peer does not commit to; ``reason`` is a Failure Reason (PS3.3 C.14)."""

    sop_instance_uid: str
    reason: int


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a peer reports on a storage commitment request (PS3.4 Annex J.3.3).

    ``committed`` are SOP Instance UIDs; ``calling_ae`` is whom the report came from.
    """

    transaction_uid: str
    committed: tuple[str, ...] = ()
    failed: tuple[FailedInstance, ...] = ()
    calling_ae: str = ""
