"""Results, and where each stands at each destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from node.domain.job import DeliveryEvent, DeliveryState, advance_delivery
from node.ledger.tables import deliveries, jobs, results


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A frozen result object."""

    sop_instance_uid: str
    job_id: str
    sop_class_uid: str
    kind: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One result at one destination. Times are seconds since the epoch."""

    id: int
    result: ResultRow
    study_uid: str
    destination: str
    state: DeliveryState
    attempts: int
    due_at: float
    sent_at: float | None
    status: int
    reason: str


class Deliveries:
    """The book of results and deliveries."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def add(self, result: ResultRow, destinations: Sequence[str], now: float) -> None:
        """Enter a result and one waiting delivery per destination."""
        position = len(self.results_of(result.job_id))
        row = {
            "sop_instance_uid": result.sop_instance_uid,
            "job_id": result.job_id,
            "sop_class_uid": result.sop_class_uid,
            "kind": result.kind,
            "path": str(result.path),
            "sha256": result.sha256,
            "position": position,
        }
        self._connection.execute(insert(results).values(row))
        for destination in destinations:
            delivery = {
                "sop_instance_uid": result.sop_instance_uid,
                "destination": destination,
                "state": DeliveryState.WAITING,
                "attempts": 0,
                "due_at": now,
                "status": 0,
                "reason": "",
            }
            self._connection.execute(insert(deliveries).values(delivery))

    def due(self, destination: str, now: float, limit: int = 64) -> tuple[DeliveryRow, ...]:
        """What to send to a destination now, in the order in which it was made."""
        rows = self._connection.execute(
            _joined()
            .where(
                deliveries.c.destination == destination,
                deliveries.c.state == DeliveryState.WAITING,
                deliveries.c.due_at <= now,
            )
            .order_by(deliveries.c.id)
            .limit(limit)
        )
        return tuple(_delivery(row) for row in rows)

    def next_due(self, destination: str) -> float | None:
        """When the next waiting delivery is due; None when none waits."""
        return self._connection.execute(
            select(deliveries.c.due_at)
            .where(
                deliveries.c.destination == destination,
                deliveries.c.state == DeliveryState.WAITING,
            )
            .order_by(deliveries.c.due_at)
            .limit(1)
        ).scalar_one_or_none()

    def advance(self, row: DeliveryRow, happened: DeliveryEvent, **values: object) -> DeliveryState:
        """Apply an event to a delivery and store ``values`` with it.

        Raises TransitionError when its state does not allow it.
        """
        state = advance_delivery(row.state, happened)
        self._connection.execute(
            update(deliveries)
            .where(deliveries.c.id == row.id)
            .values({**values, "state": state, "attempts": row.attempts + 1})
        )
        return state

    def results_of(self, job: str) -> tuple[ResultRow, ...]:
        """The results of a job, in the order in which they were made."""
        rows = self._connection.execute(
            select(results).where(results.c.job_id == job).order_by(results.c.position)
        )
        return tuple(_result(row) for row in rows)

    def of_job(self, job: str) -> tuple[DeliveryRow, ...]:
        """Every delivery of a job's results."""
        rows = self._connection.execute(
            _joined().where(results.c.job_id == job).order_by(deliveries.c.id)
        )
        return tuple(_delivery(row) for row in rows)

    def find(self, sop_instance_uid: str) -> str:
        """The study of a result object; "" when it is none of ours."""
        found = self._connection.execute(
            select(jobs.c.study_uid)
            .join(results, results.c.job_id == jobs.c.id)
            .where(results.c.sop_instance_uid == sop_instance_uid)
        ).scalar_one_or_none()
        return found or ""


def _joined() -> Any:
    return (
        select(
            deliveries,
            results.c.job_id,
            results.c.sop_class_uid,
            results.c.kind,
            results.c.path,
            results.c.sha256,
            jobs.c.study_uid,
        )
        .join(results, results.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == results.c.job_id)
    )


def _result(row: Row[Any]) -> ResultRow:
    return ResultRow(
        row.sop_instance_uid, row.job_id, row.sop_class_uid, row.kind, Path(row.path), row.sha256
    )


def _delivery(row: Row[Any]) -> DeliveryRow:
    return DeliveryRow(
        id=row.id,
        result=_result(row),
        study_uid=row.study_uid,
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        due_at=row.due_at,
        sent_at=row.sent_at,
        status=row.status,
        reason=row.reason,
    )
