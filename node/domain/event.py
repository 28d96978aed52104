"""What is written into the event log, and the chain that shows when it was changed.

Each event carries a digest over the event before it and over itself, so that whoever changes,
removes or inserts one has to change every one after it, and the last digest, which is kept in a
second place, tells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What sort of thing happened."""

    STARTED = "started"
    """A part of the node began to serve; the words name the part and the version."""
    STOPPED = "stopped"
    CONFIGURED = "configured"
    """The configuration is another one; the words name the keys, never a secret's value."""
    REJECTED = "rejected"
    """An association was refused; the actor is the caller."""
    RECEIVED = "received"
    """What a study held when it was complete; the actor is the peer that sent it."""
    PULLED = "pulled"
    QUERIED = "queried"
    """A peer was asked by C-FIND; the actor is the peer."""
    COMPLETE = "complete"
    KNOWN = "known"
    """The same content was assessed before, so nothing is made again."""
    SELECTED = "selected"
    """The series that an engine gets."""
    INFERRED = "inferred"
    """What computed the findings: engine, digest, runtime."""
    ENGINE = "engine"
    """An engine was verified, or is computed by something else than before."""
    SHADOW = "shadow"
    """Results were made to be kept and not to be sent."""
    DONE = "done"
    REFUSED = "refused"
    POSTPONED = "postponed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    HELD = "held"
    """A job was entered that a person has to release."""
    REOPENED = "reopened"
    """A job is queued again, for the worker that ran it is gone."""
    RECONCILED = "reconciled"
    """What was missing between the acknowledgement and the result was made good."""
    REBUILT = "rebuilt"
    """The ledger, or a part of it, was made anew from the spool."""
    REMOVED = "removed"
    """Retention has removed the bytes of a study that was finished."""
    SENDING = "sending"
    """The first try to deliver a result; the actor is the destination."""
    SENT = "sent"
    """A destination accepted a result; the actor is the destination."""
    DELIVERY = "delivery"
    """A delivery stands where it is neither sent nor proven."""
    DESTINATION = "destination"
    """A destination is down, or answers again; the actor is the destination."""
    PROVEN = "proven"
    """The destination has shown that it keeps the result."""
    QUARANTINED = "quarantined"
    OPERATOR = "operator"
    """A person did something; the actor is who, the words are what and why."""
    ALARM = "alarm"
    """A person is needed."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``at`` is seconds since the epoch. ``words`` say it in one line without a patient's name or
    number. ``actor`` is who took part besides this node: the operator, the calling or called peer.
    ``chain`` is the digest over the event before and this one; "" on events from before the chain.
    """

    at: float
    kind: str
    study_uid: str
    job_id: str
    words: str
    actor: str = ""
    chain: str = ""
    id: int = 0

    def link(self, previous: str) -> str:
        """The chain that this event must carry after one with the chain ``previous``.

        sha256 over a JSON array, in hexadecimal; the form of each value is thereby fixed.
        """
        parts = (
            previous,
            float(self.at),
            self.kind,
            self.study_uid,
            self.job_id,
            self.words,
            self.actor,
        )
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The last event of a log: its number, time (seconds since the epoch) and chain."""

    id: int = 0
    at: float = 0.0
    chain: str = ""


@dataclass(frozen=True, slots=True)
class ChainProof:
    """What a walk along the chain came to.

    ``fault`` is "" when every link holds and the log reaches the anchored head; otherwise it says
    what is wrong at ``broken``, the first row that does not fit (None: the log is too short).
    ``before`` counts events from before there was a chain.
    """

    events: int
    before: int
    head: Head
    fault: str = ""
    broken: Event | None = None

    @property
    def sound(self) -> bool:
        """Whether the log is as it was written."""
        return not self.fault


_NOTHING = Head()


def prove(
    events: Iterable[Event], anchor: Head | None = None, start: Head = _NOTHING
) -> ChainProof:
    """Walk along the events, oldest first, one at a time, and stop at the first broken link.

    ``anchor`` is a head that was kept in a second place: the log must still hold it. ``start`` is
    the event before the first one, where the walk does not begin at the beginning.
    """
    count = before = 0
    head, found = start, anchor is None or anchor.id <= start.id
    for event in events:
        count += 1
        if not event.chain and not head.chain:
            before += 1
        elif event.chain != event.link(head.chain):
            words = "its link does not follow from the event before it and its own words"
            return ChainProof(count, before, head, words, event)
        head = Head(event.id, event.at, event.chain)
        if anchor and anchor.id == event.id:
            found = True
            if anchor.chain != event.chain:
                words = "the whole chain was written anew: the anchor holds another digest here"
                return ChainProof(count, before, head, words, event)
    if found:
        return ChainProof(count, before, head)
    return ChainProof(count, before, head, "events are missing up to the one that the anchor names")


def one_line(words: str) -> str:
    """Text without line breaks and control characters: what is shown ends on terminals."""
    return "".join(one if one.isprintable() else " " for one in words)
