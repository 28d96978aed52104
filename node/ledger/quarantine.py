"""What was acknowledged and must not be used: kept aside until a person decides.

The file lies in the spool's ``quarantine`` folder; here stands why, and what became of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from node.ledger.tables import quarantine


class Kind(StrEnum):
    """Why something is kept aside."""

    UNREADABLE = "unreadable"
    """Its header cannot be read, or not within the limits."""
    CONFLICT = "conflict"
    """Its SOP Instance UID is here with other bytes, or in another study."""
    PATIENT = "patient"
    """Its study or series is here with another patient."""


class State(StrEnum):
    """What became of it."""

    OPEN = "open"
    RELEASED = "released"
    """It went back to where arrivals wait, and was read again."""
    DISCARDED = "discarded"
    """Its bytes were removed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is kept aside. Times are seconds since the epoch.

    ``sop_instance_uid`` is what its C-STORE request said; ``study_uid`` is "" where the header
    could not be read; ``reason`` names no patient.
    """

    path: Path
    kind: Kind
    reason: str
    at: float
    sop_instance_uid: str = ""
    study_uid: str = ""
    state: State = State.OPEN
    closed_at: float | None = None
    actor: str = ""
    id: int = 0


class Quarantine:
    """The book of what is kept aside."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def add(self, entry: Entry) -> int | None:
        """Enter a file, before it is moved. None when it is entered already: nothing changes.

        So that a process which dies in between may do both again.
        """
        path = str(entry.path)
        known = select(quarantine.c.id).where(
            quarantine.c.state == State.OPEN, quarantine.c.path == path
        )
        if self._connection.execute(known).first() is not None:
            return None
        row = {
            "at": entry.at,
            "path": path,
            "sop_instance_uid": entry.sop_instance_uid[:64],
            "study_uid": entry.study_uid[:64],
            "kind": entry.kind,
            "reason": entry.reason,
            "state": State.OPEN,
            "actor": "",
        }
        made = self._connection.execute(insert(quarantine).values(row).returning(quarantine.c.id))
        return int(made.scalar_one())

    def close(self, number: int, state: State, actor: str, now: float) -> None:
        """A person has decided; ``actor`` is who."""
        self._connection.execute(
            update(quarantine)
            .where(quarantine.c.id == number)
            .values(state=state, closed_at=now, actor=actor[:64])
        )

    def row(self, number: int) -> Entry | None:
        """One entry, or None."""
        found = self._connection.execute(
            select(quarantine).where(quarantine.c.id == number)
        ).one_or_none()
        return _entry(found) if found is not None else None

    def rows(self, *, closed: bool = False) -> tuple[Entry, ...]:
        """What is kept aside now, or also what was, in the order in which it came."""
        chosen = select(quarantine).order_by(quarantine.c.id)
        if not closed:
            chosen = chosen.where(quarantine.c.state == State.OPEN)
        return tuple(_entry(row) for row in self._connection.execute(chosen))

    def find(self, uid: str) -> tuple[Entry, ...]:
        """Every entry, open or closed, of a SOP Instance or Study Instance UID."""
        rows = self._connection.execute(
            select(quarantine)
            .where(or_(quarantine.c.sop_instance_uid == uid, quarantine.c.study_uid == uid))
            .order_by(quarantine.c.id)
        )
        return tuple(_entry(row) for row in rows)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        path=Path(row.path),
        kind=Kind(row.kind),
        reason=row.reason,
        at=row.at,
        sop_instance_uid=row.sop_instance_uid,
        study_uid=row.study_uid,
        state=State(row.state),
        closed_at=row.closed_at,
        actor=row.actor,
        id=row.id,
    )
