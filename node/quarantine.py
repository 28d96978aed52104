"""What a person decides on what is kept aside: back among the arrivals, or gone for good.

Each decision is one transaction that also moves the file: while it lasts, the indexer can enter
nothing, so a file that is released and refused again gets a new entry, and one that a dying process
left half way is still open.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.domain.errors import NodeError
from node.domain.event import EventKind
from node.ledger import Books, Ledger
from node.ledger.quarantine import Entry, Kind, State
from node.spool import Spool


class NotInQuarantine(NodeError):
    """Nothing open has this number."""


class StaysInQuarantine(NodeError):
    """What kept it aside is still so; releasing it would change nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decides, why, and when (seconds since the epoch)."""

    actor: str
    reason: str
    now: float


def release(ledger: Ledger, spool: Spool, number: int, decision: Decision) -> Entry:
    """Put an entry's file back among the arrivals, where it is judged again like a new one.

    Raises NotInQuarantine, StaysInQuarantine, SpoolError.
    """
    with ledger.write() as books:
        entry = _open(books, number)
        _refuse_conflict(books, entry)
        _close(books, entry, State.RELEASED, decision)
        # Without its file it was released before, by a process that did not live to say so.
        if entry.path.exists():
            spool.release(entry.path)
    return entry


def discard(ledger: Ledger, spool: Spool, number: int, decision: Decision) -> Entry:
    """Remove an entry's file for good. Raises NotInQuarantine."""
    with ledger.write() as books:
        entry = _open(books, number)
        _close(books, entry, State.DISCARDED, decision)
        spool.discard(entry.path)
    return entry


def _open(books: Books, number: int) -> Entry:
    entry = books.quarantine.row(number)
    if entry is None:
        raise NotInQuarantine(f"nothing has the number {number}: see ai-node quarantine list")
    if entry.state is not State.OPEN:
        raise NotInQuarantine(f"number {number} was {entry.state} already, by {entry.actor}")
    return entry


def _refuse_conflict(books: Books, entry: Entry) -> None:
    if entry.kind is Kind.CONFLICT and books.arrivals.find(entry.sop_instance_uid):
        raise StaysInQuarantine(
            f"number {entry.id} stays: the object with its SOP Instance UID that came first is "
            "still here. Find out which one is right; discard this one, or have the peer send it "
            "under a UID of its own"
        )


def _close(books: Books, entry: Entry, state: State, decision: Decision) -> None:
    books.quarantine.close(entry.id, state, decision.actor, decision.now)
    books.events.note(
        decision.now,
        EventKind.OPERATOR,
        f"{state} number {entry.id} of the quarantine: {decision.reason}",
        study_uid=entry.study_uid,
        actor=decision.actor,
    )
