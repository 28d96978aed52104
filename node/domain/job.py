"""The life cycles of a job and of a delivery, as two tables.

Both machines are pure: (state, event) -> state. The ledger applies them inside a transaction, so
a transition that is not in the table never reaches the disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from node.domain.errors import NodeError


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    """Results are frozen on disk; their deliveries have begun."""
    REFUSED = "refused"
    """No series fits the engine; the reasons are in words. Not a failure."""
    FAILED = "failed"
    """Given up after the last attempt, or at once when trying again cannot help."""


class JobEvent(StrEnum):
    """What happens to a job."""

    CLAIM = "claim"
    FINISH = "finish"
    REFUSE = "refuse"
    RETRY = "retry"
    GIVE_UP = "give up"


JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
    # A worker that died leaves RUNNING behind; the next start claims it again.
    (JobState.RUNNING, JobEvent.CLAIM): JobState.RUNNING,
    (JobState.RUNNING, JobEvent.FINISH): JobState.DONE,
    (JobState.RUNNING, JobEvent.REFUSE): JobState.REFUSED,
    (JobState.RUNNING, JobEvent.RETRY): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.GIVE_UP): JobState.FAILED,
}


class DeliveryState(StrEnum):
    """Where one result stands at one destination."""

    WAITING = "waiting"
    SENT = "sent"
    """The peer answered success, a warning, or "duplicate SOP instance"."""
    HELD = "held"
    """The peer refused for a reason that another try does not change; a person decides."""
    DEAD = "dead"
    """Given up after the last attempt."""


class DeliveryEvent(StrEnum):
    """What happens to a delivery."""

    ACCEPT = "accept"
    POSTPONE = "postpone"
    HOLD = "hold"
    GIVE_UP = "give up"
    RELEASE = "release"


DELIVERY_TRANSITIONS: dict[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (DeliveryState.WAITING, DeliveryEvent.ACCEPT): DeliveryState.SENT,
    (DeliveryState.WAITING, DeliveryEvent.POSTPONE): DeliveryState.WAITING,
    (DeliveryState.WAITING, DeliveryEvent.HOLD): DeliveryState.HELD,
    (DeliveryState.WAITING, DeliveryEvent.GIVE_UP): DeliveryState.DEAD,
    (DeliveryState.HELD, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.DEAD, DeliveryEvent.RELEASE): DeliveryState.WAITING,
}


class TransitionError(NodeError):
    """An event arrived in a state that has no transition for it."""


def advance_job(state: JobState, event: JobEvent) -> JobState:
    """The next state of a job. Raises TransitionError when the table has none."""
    try:
        return JOB_TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(f"a job that is {state} cannot {event}") from None


def advance_delivery(state: DeliveryState, event: DeliveryEvent) -> DeliveryState:
    """The next state of a delivery. Raises TransitionError when the table has none."""
    try:
        return DELIVERY_TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(f"a delivery that is {state} cannot {event}") from None


@dataclass(frozen=True, slots=True)
class BackOff:
    """Exponential back-off: ``first * factor ** (attempt - 1)`` seconds, at most ``longest``."""

    first: float = 5.0
    factor: float = 2.0
    longest: float = 900.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1)."""
        # The exponent is capped so that a delivery that waits for weeks cannot overflow.
        return min(self.longest, self.first * self.factor ** min(attempt - 1, 32))


@dataclass(frozen=True, slots=True)
class Job:
    """One engine on one revision of one study. Times are seconds since the epoch."""

    id: str
    study_uid: str
    revision: str
    engine: str
    engine_digest: str
    config_digest: str
    state: JobState
    attempts: int
    created_at: float


def job_id(revision: str, engine: str, engine_digest: str, config_digest: str) -> str:
    """Identity of a job: the same content, engine and options are the same job (32 hex digits)."""
    text = "\n".join((revision, engine, engine_digest, config_digest))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def derived_uid(*parts: str) -> str:
    """A UID derived from text: ``2.25.`` and 128 bits of sha256 (PS3.5 B.2).

    The bits are given the shape of a version 8 UUID (RFC 9562), so that the UID is a legal
    UUID-derived UID and the same parts always give the same UID.
    """
    digest = bytearray(hashlib.sha256("\x1f".join(parts).encode()).digest()[:16])
    digest[6] = (digest[6] & 0x0F) | 0x80
    digest[8] = (digest[8] & 0x3F) | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"
