"""Questions that no single book answers: what is missing, and what is finished with."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, literal_column, or_, select, update

from node.domain.condition import ORDER
from node.domain.job import ENDED_JOBS, DeliveryState, JobState
from node.domain.proof import Proof
from node.ledger.tables import deliveries, instances, jobs, quarantine, results, studies

_PROVEN = frozenset({DeliveryState.COMMITTED, DeliveryState.VERIFIED, DeliveryState.DISCARDED})
_CONTENT = (Proof.NONE, Proof.NOT_OFFERED)
"""Proofs with which nothing more is expected of a peer that accepted a result."""

# Written out, not bound: else SQLite does not use the index of what is kept.
_KEPT = instances.c.path != literal_column("''")


@dataclass(frozen=True, slots=True)
class Delivered:
    """How far one result has come at one destination."""

    state: DeliveryState
    proof: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing more will be sent or awaited, and no person has to decide."""
        return self.state in _PROVEN or (
            self.state is DeliveryState.SENT and self.proof in _CONTENT
        )


@dataclass(frozen=True, slots=True)
class Holding:
    """A study whose bytes are still here. ``last_at``: when anything last happened to it.

    Seconds since the epoch. ``complete`` is False while it is being received.
    """

    study_uid: str
    last_at: float
    complete: bool
    quarantined: bool = False
    jobs: tuple[JobState, ...] = ()
    deliveries: tuple[Delivered, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether nobody needs the bytes any more: all is assessed, delivered and proven."""
        return (
            self.complete
            and not self.quarantined
            and all(state in ENDED_JOBS for state in self.jobs)
            and all(delivery.settled for delivery in self.deliveries)
        )


class Upkeep:
    """Reads over all books, for the reconciler and for retention."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def unanswered(self, engine: str, since: float) -> tuple[tuple[str, str], ...]:
        """(study, revision) of what was completed since then and has no job of an engine on it.

        A study whose bytes were removed is left out.
        """
        asked = exists().where(
            jobs.c.study_uid == studies.c.study_uid,
            jobs.c.revision == studies.c.revision,
            jobs.c.engine == engine,
        )
        removed = exists().where(
            instances.c.study_uid == studies.c.study_uid, instances.c.path == ""
        )
        rows = self._connection.execute(
            select(studies.c.study_uid, studies.c.revision)
            .where(studies.c.completed_at >= since, studies.c.opened_at.is_(None), ~asked, ~removed)
            .order_by(studies.c.completed_at)
        )
        return tuple((row.study_uid, row.revision) for row in rows)

    def priorities(self, study_uid: str) -> frozenset[str]:
        """The priorities of the orders behind a study, as its headers state them."""
        stated = or_(*(instances.c.facts.contains(f'"{name}"') for name in ORDER))
        rows = self._connection.execute(
            select(instances.c.facts).where(instances.c.study_uid == study_uid, stated)
        ).scalars()
        return frozenset(
            str(value) for row in rows for name in ORDER if (value := json.loads(row).get(name))
        )

    def emptied(self, since: float) -> tuple[str, ...]:
        """Jobs that ended since then and left no result."""
        kept = exists().where(results.c.job_id == jobs.c.id)
        without = (JobState.FAILED, JobState.CANCELLED, JobState.REFUSED)
        return tuple(
            self._connection.execute(
                select(jobs.c.id).where(
                    jobs.c.finished_at >= since, jobs.c.state.in_(without), ~kept
                )
            ).scalars()
        )

    def knows_instances(self) -> bool:
        """Whether anything was ever received."""
        return self._connection.execute(select(instances.c.study_uid).limit(1)).first() is not None

    def holdings(self, study_uid: str | None = None) -> tuple[Holding, ...]:
        """Every study of which bytes are here (or the one), what happened longest ago first."""
        held = select(instances.c.study_uid).where(_KEPT).distinct()
        if study_uid is not None:
            held = held.where(instances.c.study_uid == study_uid)
        rows = self._connection.execute(select(studies).where(studies.c.study_uid.in_(held))).all()
        worked = _by_study(self._connection, _jobs(held))
        sent = _by_study(self._connection, _deliveries(held))
        aside = _by_study(self._connection, _quarantined(held))
        found = [
            _holding(row, worked[row.study_uid], sent[row.study_uid], row.study_uid in aside)
            for row in rows
        ]
        return tuple(sorted(found, key=lambda one: (one.last_at, one.study_uid)))

    def files(self, study_uid: str) -> tuple[Path, ...]:
        """The files of a study's instances and results that are here."""
        made = (
            select(results.c.path)
            .join(jobs, jobs.c.id == results.c.job_id)
            .where(jobs.c.study_uid == study_uid, results.c.path != "")
        )
        received = select(instances.c.path).where(instances.c.study_uid == study_uid, _KEPT)
        return tuple(
            Path(path)
            for query in (received, made)
            for path in self._connection.execute(query).scalars()
        )

    def kept_files(self) -> tuple[Path, ...]:
        """The file of every instance that is here."""
        rows = self._connection.execute(select(instances.c.path).where(_KEPT)).scalars()
        return tuple(Path(path) for path in rows)

    def forget_files(self, study_uid: str) -> None:
        """Enter that the files of a study are gone; everything else about it stays."""
        ours = select(jobs.c.id).where(jobs.c.study_uid == study_uid)
        self._connection.execute(
            update(instances).where(instances.c.study_uid == study_uid).values(path="")
        )
        self._connection.execute(update(results).where(results.c.job_id.in_(ours)).values(path=""))


def _by_study(connection: Connection, query: Select[Any]) -> defaultdict[str, list[Row[Any]]]:
    grouped: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        grouped[row.study_uid].append(row)
    return grouped


def _jobs(held: Select[Any]) -> Select[Any]:
    return select(jobs.c.study_uid, jobs.c.state, jobs.c.finished_at).where(
        jobs.c.study_uid.in_(held)
    )


def _deliveries(held: Select[Any]) -> Select[Any]:
    return (
        select(jobs.c.study_uid, deliveries.c.state, deliveries.c.proof, deliveries.c.sent_at)
        .join(results, results.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == results.c.job_id)
        .where(jobs.c.study_uid.in_(held))
    )


def _quarantined(held: Select[Any]) -> Select[Any]:
    return select(quarantine.c.study_uid).where(
        quarantine.c.closed_at.is_(None), quarantine.c.study_uid.in_(held)
    )


def _holding(
    row: Row[Any], worked: list[Row[Any]], sent: list[Row[Any]], quarantined: bool
) -> Holding:
    times = [row.last_at, row.completed_at]
    times += [job.finished_at for job in worked]
    times += [delivery.sent_at for delivery in sent]
    return Holding(
        study_uid=row.study_uid,
        last_at=max(time for time in times if time is not None),
        complete=row.completed_at is not None and row.opened_at is None,
        quarantined=quarantined,
        jobs=tuple(JobState(job.state) for job in worked),
        deliveries=tuple(Delivered(DeliveryState(one.state), one.proof) for one in sent),
    )
