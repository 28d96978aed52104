"""What happened, in words: the lines that ``ai-node why`` prints."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, or_, select

from node.ledger.tables import events


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; ``kind`` is a short name, ``words`` says it."""

    at: float
    kind: str
    study_uid: str
    job_id: str
    words: str


class Events:
    """The book of events; it is only ever appended to."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def note(self, at: float, kind: str, words: str, *, study_uid: str = "", job: str = "") -> None:
        """Append an event. ``words`` carry no patient's name or number."""
        row = {"at": at, "kind": kind, "study_uid": study_uid, "job_id": job, "words": words}
        self._connection.execute(insert(events).values(row))

    def of_study(self, study_uid: str, jobs: tuple[str, ...] = ()) -> tuple[Event, ...]:
        """Every event of a study and of its jobs, in order."""
        rows = self._connection.execute(
            select(events)
            .where(or_(events.c.study_uid == study_uid, events.c.job_id.in_(jobs)))
            .order_by(events.c.id)
        )
        return tuple(Event(r.at, r.kind, r.study_uid, r.job_id, r.words) for r in rows)
