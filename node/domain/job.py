"""The life cycles of a job and of a delivery, as two tables.

Both machines are pure: (state, event) -> state. The ledger applies them inside a transaction, so
a transition that is not in the table never reaches the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from node.domain.errors import NodeError


class JobState(StrEnum):
    """Where a job stands."""

    HELD = "held"
    """Entered, but not run until a person says so."""
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """A person has cancelled it while it ran; its worker stops at the next stage."""
    DONE = "done"
    """Results are frozen on disk; their deliveries have begun."""
    REFUSED = "refused"
    """No series fits the engine; the reasons are in words. Not a failure."""
    FAILED = "failed"
    """Given up after the last attempt, or at once when trying again cannot help."""
    CANCELLED = "cancelled"
    """Ended by a person; nothing of it was delivered."""


class JobEvent(StrEnum):
    """What happens to a job."""

    CLAIM = "claim"
    FINISH = "finish"
    REFUSE = "refuse"
    RETRY = "retry"
    GIVE_UP = "give up"
    RELEASE = "release"
    """A person wants it run: held before, or failed, or cancelled."""
    CANCEL = "cancel"
    STOP = "stop"
    """The worker of a job that was cancelled has stopped, or died."""


JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
    # A worker that died leaves RUNNING behind; the next start claims it again.
    (JobState.RUNNING, JobEvent.CLAIM): JobState.RUNNING,
    (JobState.RUNNING, JobEvent.FINISH): JobState.DONE,
    (JobState.RUNNING, JobEvent.REFUSE): JobState.REFUSED,
    (JobState.RUNNING, JobEvent.RETRY): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.GIVE_UP): JobState.FAILED,
    # A job that nobody began by its deadline.
    (JobState.QUEUED, JobEvent.GIVE_UP): JobState.FAILED,
    (JobState.HELD, JobEvent.RELEASE): JobState.QUEUED,
    (JobState.FAILED, JobEvent.RELEASE): JobState.QUEUED,
    (JobState.CANCELLED, JobEvent.RELEASE): JobState.QUEUED,
    (JobState.HELD, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.FAILED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLING,
    (JobState.CANCELLING, JobEvent.CANCEL): JobState.CANCELLING,
    (JobState.CANCELLING, JobEvent.STOP): JobState.CANCELLED,
}
ENDED_JOBS = frozenset({JobState.DONE, JobState.REFUSED, JobState.CANCELLED})
"""Where nothing is left to do. A failed job is not among them: it waits for a person."""


class DeliveryState(StrEnum):
    """Where one result stands at one destination."""

    WAITING = "waiting"
    SENT = "sent"
    """The peer answered success, a warning, or "duplicate SOP instance"."""
    COMMITTED = "committed"
    """The peer has taken responsibility for it (Storage Commitment, PS3.4 Annex J)."""
    VERIFIED = "verified"
    """The peer has answered a C-FIND for its SOP Instance UID with it."""
    HELD = "held"
    """The peer refused for a reason that another try does not change; a person decides."""
    DEAD = "dead"
    """Given up after the last attempt."""
    DISCARDED = "discarded"
    """A person decided that it is not to be sent."""


DELIVERED = frozenset({DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.VERIFIED})
"""The states in which the destination has accepted the result."""


class DeliveryEvent(StrEnum):
    """What happens to a delivery."""

    ACCEPT = "accept"
    POSTPONE = "postpone"
    HOLD = "hold"
    GIVE_UP = "give up"
    COMMIT = "commit"
    VERIFY = "verify"
    RESEND = "send again"
    """The peer accepted it, and does not have it."""
    RELEASE = "release"
    """A person wants it sent, whatever was before."""
    DISCARD = "discard"


DELIVERY_TRANSITIONS: dict[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (DeliveryState.WAITING, DeliveryEvent.ACCEPT): DeliveryState.SENT,
    (DeliveryState.WAITING, DeliveryEvent.POSTPONE): DeliveryState.WAITING,
    (DeliveryState.WAITING, DeliveryEvent.HOLD): DeliveryState.HELD,
    (DeliveryState.WAITING, DeliveryEvent.GIVE_UP): DeliveryState.DEAD,
    (DeliveryState.SENT, DeliveryEvent.COMMIT): DeliveryState.COMMITTED,
    # A report that comes so late that the object was asked for meanwhile.
    (DeliveryState.VERIFIED, DeliveryEvent.COMMIT): DeliveryState.COMMITTED,
    (DeliveryState.SENT, DeliveryEvent.VERIFY): DeliveryState.VERIFIED,
    (DeliveryState.SENT, DeliveryEvent.RESEND): DeliveryState.WAITING,
    # Now, not when it is due.
    (DeliveryState.WAITING, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    # A PACS that was restored from an old copy has lost what it had accepted and even proven.
    (DeliveryState.SENT, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.COMMITTED, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.VERIFIED, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.HELD, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.DEAD, DeliveryEvent.RELEASE): DeliveryState.WAITING,
    (DeliveryState.WAITING, DeliveryEvent.DISCARD): DeliveryState.DISCARDED,
    (DeliveryState.HELD, DeliveryEvent.DISCARD): DeliveryState.DISCARDED,
    (DeliveryState.DEAD, DeliveryEvent.DISCARD): DeliveryState.DISCARDED,
    # It was on the wire when it was discarded. What the peer has accepted it has.
    (DeliveryState.DISCARDED, DeliveryEvent.ACCEPT): DeliveryState.SENT,
    (DeliveryState.DISCARDED, DeliveryEvent.POSTPONE): DeliveryState.DISCARDED,
    (DeliveryState.DISCARDED, DeliveryEvent.HOLD): DeliveryState.DISCARDED,
    (DeliveryState.DISCARDED, DeliveryEvent.GIVE_UP): DeliveryState.DISCARDED,
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


URGENCY = {"STAT": 1000, "HIGH": 500}
"""What the priority of an order (PS3.3 C.4.11, retired C.3.3) adds to that of an engine."""


def urgency(priorities: Iterable[str]) -> int:
    """What the most urgent of some priorities of orders adds; 0 for ROUTINE, LOW and the rest."""
    return max((URGENCY.get(one.strip().upper(), 0) for one in priorities), default=0)


@dataclass(frozen=True, slots=True)
class Job:
    """One engine on one revision of one study. Times are seconds since the epoch.

    The higher ``priority`` runs first. A job that is not begun by ``deadline_at`` is not begun at
    all. ``supersedes`` is the job whose results this one's replace.
    """

    id: str
    study_uid: str
    revision: str
    engine: str
    engine_digest: str
    config_digest: str
    state: JobState
    attempts: int
    created_at: float
    priority: int = 0
    deadline_at: float | None = None
    supersedes: str = ""


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
