"""Studies found at a peer by a query, and whether they were retrieved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, and_, insert, select, update

from node.ledger.tables import pulls, watermarks


class PullState(StrEnum):
    """Where the retrieval of a study stands."""

    DUE = "due"
    PULLED = "pulled"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Pull:
    """A study to retrieve; ``attempts`` failed so far."""

    study_uid: str
    attempts: int


class Pulls:
    """The book of pulls."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def watermark(self, name: str) -> float | None:
        """How far a query has come (seconds since the epoch); None before the first."""
        return self._connection.execute(
            select(watermarks.c.at).where(watermarks.c.name == name)
        ).scalar_one_or_none()

    def advance(self, name: str, at: float) -> None:
        """Move a query's high-water mark; it never moves back."""
        before = self.watermark(name)
        if before is None:
            self._connection.execute(insert(watermarks).values(name=name, at=at))
        elif at > before:
            self._connection.execute(
                update(watermarks).where(watermarks.c.name == name).values(at=at)
            )

    def note(
        self, peer: str, study_uid: str, accession: str, instances: int | None, now: float
    ) -> None:
        """A query found a study: due when it is new, or when it has grown since its pull."""
        place = and_(pulls.c.peer == peer, pulls.c.study_uid == study_uid)
        known = self._connection.execute(select(pulls).where(place)).one_or_none()
        if known is None:
            row = {
                "peer": peer,
                "study_uid": study_uid,
                "accession": accession,
                "instances": instances,
                "state": PullState.DUE,
                "attempts": 0,
                "due_at": now,
                "found_at": now,
                "reason": "",
            }
            self._connection.execute(insert(pulls).values(row))
        elif instances is not None and instances > (known.instances or 0):
            fresh: dict[str, object] = {"instances": instances}
            if known.state != PullState.DUE:
                fresh |= {"state": PullState.DUE, "attempts": 0, "due_at": now}
            self._connection.execute(update(pulls).where(place).values(fresh))

    def due(self, peer: str, now: float) -> tuple[Pull, ...]:
        """What to retrieve from a peer now, oldest first."""
        rows = self._connection.execute(
            select(pulls)
            .where(pulls.c.peer == peer, pulls.c.state == PullState.DUE, pulls.c.due_at <= now)
            .order_by(pulls.c.found_at, pulls.c.study_uid)
        )
        return tuple(Pull(row.study_uid, row.attempts) for row in rows)

    def pulled(self, peer: str, study_uid: str, now: float, instances: int | None) -> None:
        """A study was retrieved with so many instances."""
        fresh: dict[str, object] = {"state": PullState.PULLED, "pulled_at": now, "reason": ""}
        if instances is not None:
            fresh["instances"] = instances
        self._change(peer, study_uid, fresh)

    def postpone(self, peer: str, study_uid: str, until: float, reason: str) -> None:
        """A retrieval failed; try again at ``until``."""
        self._change(
            peer,
            study_uid,
            {"due_at": until, "reason": reason, "attempts": pulls.c.attempts + 1},
        )

    def give_up(self, peer: str, study_uid: str, reason: str) -> None:
        """A retrieval failed for the last time."""
        self._change(peer, study_uid, {"state": PullState.GIVEN_UP, "reason": reason})

    def _change(self, peer: str, study_uid: str, values: dict[str, object]) -> None:
        place = and_(pulls.c.peer == peer, pulls.c.study_uid == study_uid)
        self._connection.execute(update(pulls).where(place).values(values))
