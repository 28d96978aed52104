"""What happened, in words: the lines of ``ai-node why``, and the log that ``ai-node audit`` proves.

Events are only ever appended: triggers of the database refuse anything else, and each event is
chained to the one before it (``node.domain.event``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, or_, select, text

from node.domain.event import Event, EventKind, Head, one_line
from node.ledger.tables import events

__all__ = ["Event", "EventKind", "Events", "Head"]

_ACTOR_LENGTH = 64
_PAGE = 1000


class Events:
    """The book of events; it is only ever appended to."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection
        self._last: str | None = None

    def note(
        self,
        at: float,
        kind: str,
        words: str,
        *,
        study_uid: str = "",
        job: str = "",
        actor: str = "",
    ) -> None:
        """Append an event; ``kind`` is one of ``EventKind``.

        Only inside ``Ledger.write()``, which lets one writer in at a time: the chain has no forks.
        ``words`` carry no patient's name or number; ``actor`` is cut to 64 characters.
        """
        event = Event(
            float(at), kind, study_uid, job, one_line(words), one_line(actor)[:_ACTOR_LENGTH]
        )
        chain = event.link(self._previous())
        row = {name: value for name, value in asdict(event).items() if name != "id"}
        self._connection.execute(insert(events).values(row | {"chain": chain}))
        self._last = chain

    def of_study(self, study_uid: str, jobs: tuple[str, ...] = ()) -> tuple[Event, ...]:
        """Every event of a study and of its jobs, in order."""
        rows = self._connection.execute(
            select(events)
            .where(or_(events.c.study_uid == study_uid, events.c.job_id.in_(jobs)))
            .order_by(events.c.id)
        )
        return tuple(_event(row) for row in rows)

    def head(self) -> Head:
        """The last event; ``Head()`` when there is none."""
        return self._head(_heads())

    def at(self, number: int) -> Head:
        """The last event up to a number; ``Head()`` when there is none."""
        return self._head(_heads().where(events.c.id <= number))

    def latest(self, kind: str) -> Event | None:
        """The last event of a kind."""
        row = self._connection.execute(
            select(events).where(events.c.kind == kind).order_by(events.c.id.desc()).limit(1)
        ).one_or_none()
        return _event(row) if row is not None else None

    def after(self, number: int, limit: int) -> tuple[Event, ...]:
        """Up to so many events after the one with this number, in order."""
        rows = self._connection.execute(_ordered().where(events.c.id > number).limit(limit))
        return tuple(_event(row) for row in rows)

    def walk(self, number: int = 0) -> Iterator[Event]:
        """Every event after a number, a page at a time: a log of years does not fill the memory."""
        while page := self.after(number, _PAGE):
            yield from page
            number = page[-1].id

    def _head(self, wanted: Select[Any]) -> Head:
        row = self._connection.execute(wanted).one_or_none()
        return Head(row.id, row.at, row.chain) if row is not None else Head()

    def _previous(self) -> str:
        """The chain of the event before; asked of the database once in a transaction."""
        if self._last is None:
            if self._connection.dialect.name == "postgresql":
                # SQLite's BEGIN IMMEDIATE has let in one writer; here the table must be taken.
                self._connection.execute(text("LOCK TABLE events IN EXCLUSIVE MODE"))
            self._last = self.head().chain
        return self._last


def _heads() -> Select[Any]:
    wanted = select(events.c.id, events.c.at, events.c.chain)
    return wanted.order_by(events.c.id.desc()).limit(1)


def _ordered() -> Select[Any]:
    return select(events).order_by(events.c.id)


def _event(row: Row[Any]) -> Event:
    return Event(
        at=row.at,
        kind=row.kind,
        study_uid=row.study_uid,
        job_id=row.job_id,
        words=row.words,
        actor=row.actor,
        chain=row.chain,
        id=row.id,
    )
