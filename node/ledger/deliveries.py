"""Results, where each stands at each destination, and whether a destination answers at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    select,
    true,
    update,
)

from node.domain.breaker import Breaker
from node.domain.job import DeliveryEvent, DeliveryState, advance_delivery
from node.domain.proof import UNDER_WAY, Proof
from node.ledger.tables import breakers, deliveries, jobs, results

_TRIES = {
    DeliveryEvent.ACCEPT,
    DeliveryEvent.POSTPONE,
    DeliveryEvent.HOLD,
    DeliveryEvent.GIVE_UP,
}
_OFTEN = 4
"""So many tries are more than a peer that is down costs before the circuit breaker opens."""


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
    """One result at one destination. Times are seconds since the epoch.

    ``attempts`` counts the tries to send it since a person or the proof last wanted it sent;
    ``resends`` how often the proof did. ``transaction_uid`` is that of the storage commitment
    request, whose report or time-out is due at ``proof_due_at``.
    """

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
    proof: Proof = Proof.NONE
    proof_due_at: float | None = None
    transaction_uid: str = ""
    resends: int = 0


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
        """What to send to a destination now, in the order in which it was made.

        What has failed often comes last: an object at which the peer breaks off the association
        every time keeps nothing else back.
        """
        wanted = and_(_waits_for(destination), deliveries.c.due_at <= now)
        found = self._connection.execute(
            _joined()
            .where(wanted)
            .order_by(deliveries.c.attempts >= _OFTEN, deliveries.c.id)
            .limit(limit)
        )
        return tuple(_delivery(row) for row in found)

    def next_due(self, destination: str) -> float | None:
        """When the next waiting delivery is due; None when none waits."""
        return self._least(deliveries.c.due_at, _waits_for(destination))

    def proofs_due(
        self, destination: str, stage: Proof, now: float, limit: int = 64
    ) -> tuple[DeliveryRow, ...]:
        """What was accepted, and whose proof is due at a stage."""
        due = and_(deliveries.c.proof == stage, deliveries.c.proof_due_at <= now)
        return self._rows(and_(_unproven(destination), due), limit)

    def next_proof_due(self, destination: str) -> float | None:
        """When the next proof is due; None when none is under way."""
        return self._least(deliveries.c.proof_due_at, _unproven(destination))

    def row(self, number: int) -> DeliveryRow | None:
        """One delivery by its number, or None."""
        return next(iter(self._rows(deliveries.c.id == number)), None)

    def of_transaction(self, transaction_uid: str) -> tuple[DeliveryRow, ...]:
        """What was asked for in one storage commitment request."""
        return self._rows(deliveries.c.transaction_uid == transaction_uid)

    def listed(
        self, states: Sequence[str] = (), destination: str = "", limit: int | None = None
    ) -> tuple[DeliveryRow, ...]:
        """Deliveries in some states (none named: in any) at a destination ("": at any)."""
        wanted = and_(
            deliveries.c.state.in_(states) if states else true(),
            deliveries.c.destination == destination if destination else true(),
        )
        return self._rows(wanted, limit)

    def counts(self) -> Mapping[tuple[str, DeliveryState], int]:
        """How many deliveries stand where: (destination, state) -> number."""
        columns = (deliveries.c.destination, deliveries.c.state)
        rows = self._connection.execute(select(*columns, func.count()).group_by(*columns))
        return {(row[0], DeliveryState(row[1])): row[2] for row in rows}

    def advance(self, row: DeliveryRow, happened: DeliveryEvent, **values: object) -> DeliveryState:
        """Apply an event to a delivery and store ``values`` with it; a try to send is counted.

        What the ledger says by now counts, not what ``row`` said when it was read. Raises
        TransitionError when its state does not allow the event.
        """
        current = self._state(row.id)
        state = advance_delivery(current, happened)
        counted = {"attempts": deliveries.c.attempts + 1} if happened in _TRIES else {}
        self._change(row.id, {**counted, **values, "state": state})
        return state

    def note_proof(self, row: DeliveryRow, **values: object) -> None:
        """Store how far the proof has come."""
        self._change(row.id, values)

    def release(self, row: DeliveryRow, now: float) -> DeliveryState:
        """Have it sent at once, as if it were new. Raises TransitionError."""
        state = self.advance(
            row,
            DeliveryEvent.RELEASE,
            attempts=0,
            due_at=now,
            proof=Proof.NONE,
            proof_due_at=None,
            transaction_uid="",
            resends=0,
            reason="",
        )
        breaker = self.breaker(row.destination)
        if breaker.is_open:
            self.keep_breaker(row.destination, Breaker(breaker.failures, now))
        return state

    def results_of(self, job: str) -> tuple[ResultRow, ...]:
        """The results of a job, in the order in which they were made."""
        rows = self._connection.execute(
            select(results).where(results.c.job_id == job).order_by(results.c.position)
        )
        return tuple(_result(row) for row in rows)

    def of_job(self, job: str) -> tuple[DeliveryRow, ...]:
        """Every delivery of a job's results."""
        return self._rows(results.c.job_id == job)

    def accepted_of_study(self, study_uid: str) -> int:
        """How many results of a study some destination has taken."""
        return self._connection.execute(
            select(func.count(func.distinct(results.c.sop_instance_uid)))
            .join(jobs, jobs.c.id == results.c.job_id)
            .join(deliveries, deliveries.c.sop_instance_uid == results.c.sop_instance_uid)
            .where(jobs.c.study_uid == study_uid, deliveries.c.sent_at.is_not(None))
        ).scalar_one()

    def find(self, sop_instance_uid: str) -> str:
        """The study of a result object; "" when it is none of ours."""
        found = self._connection.execute(
            select(jobs.c.study_uid)
            .join(results, results.c.job_id == jobs.c.id)
            .where(results.c.sop_instance_uid == sop_instance_uid)
        ).scalar_one_or_none()
        return found or ""

    def breaker(self, destination: str) -> Breaker:
        """The circuit breaker of a destination."""
        row = self._connection.execute(
            select(breakers).where(breakers.c.destination == destination)
        ).one_or_none()
        return Breaker(row.failures, row.probe_at) if row is not None else Breaker()

    def keep_breaker(self, destination: str, breaker: Breaker) -> None:
        """Store the circuit breaker of a destination; one in its first state takes no row."""
        self._connection.execute(delete(breakers).where(breakers.c.destination == destination))
        if breaker != Breaker():
            row = {
                "destination": destination,
                "failures": breaker.failures,
                "probe_at": breaker.probe_at,
            }
            self._connection.execute(insert(breakers).values(row))

    def _rows(
        self, wanted: ColumnElement[bool], limit: int | None = None
    ) -> tuple[DeliveryRow, ...]:
        found = self._connection.execute(
            _joined().where(wanted).order_by(deliveries.c.id).limit(limit)
        )
        return tuple(_delivery(row) for row in found)

    def _least(self, column: Any, wanted: ColumnElement[bool]) -> float | None:
        found: float | None = self._connection.execute(
            select(func.min(column)).where(wanted)
        ).scalar_one()
        return found

    def _state(self, number: int) -> DeliveryState:
        found = self._connection.execute(
            select(deliveries.c.state).where(deliveries.c.id == number)
        ).scalar_one()
        return DeliveryState(found)

    def _change(self, number: int, values: Mapping[str, object]) -> None:
        self._connection.execute(
            update(deliveries).where(deliveries.c.id == number).values(dict(values))
        )


def _waits_for(destination: str) -> ColumnElement[bool]:
    return and_(
        deliveries.c.destination == destination, deliveries.c.state == DeliveryState.WAITING
    )


def _unproven(destination: str) -> ColumnElement[bool]:
    return and_(
        deliveries.c.destination == destination,
        deliveries.c.state == DeliveryState.SENT,
        deliveries.c.proof.in_(UNDER_WAY),
    )


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
        proof=Proof(row.proof),
        proof_due_at=row.proof_due_at,
        transaction_uid=row.transaction_uid,
        resends=row.resends,
    )
