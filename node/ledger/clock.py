"""What the ledger holds for later, when the machine's clock was set back.

A clock that was a year ahead and is put right leaves every wait in the ledger a year long. What
has happened cannot lie in the future, so the last event tells by how much the clock went back, and
everything that is due comes that much nearer.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, case, func, select, update

from node.domain.job import DeliveryState, JobState
from node.ledger.tables import breakers, deliveries, events, jobs, pulls, studies, watermarks

_TOLERATED_S = 5.0
"""Processes ask the clock at slightly different times, and small corrections are usual."""
_DUES = (
    (jobs.c.due_at, jobs.c.state == JobState.QUEUED),
    (deliveries.c.due_at, deliveries.c.state == DeliveryState.WAITING),
    (deliveries.c.proof_due_at, deliveries.c.proof_due_at.is_not(None)),
    (breakers.c.probe_at, breakers.c.probe_at.is_not(None)),
    (pulls.c.due_at, pulls.c.pulled_at.is_(None)),
)
_OPEN = studies.c.opened_at.is_not(None)


def set_back(connection: Connection, now: float) -> float:
    """By how many seconds the clock was set back since something last happened; 0 if it was not."""
    last_event = select(events.c.at).order_by(events.c.id.desc()).limit(1)
    last_arrival = select(func.max(studies.c.last_at)).where(_OPEN)
    times = (connection.execute(query).scalar_one_or_none() for query in (last_event, last_arrival))
    ahead = max((at for at in times if at is not None), default=now) - now
    return ahead if ahead > _TOLERATED_S else 0.0


def bring_forward(connection: Connection, now: float, seconds: float) -> None:
    """Make due so much earlier whatever would be due later than it was meant to be.

    An event has to be noted in the same transaction: it is what the next look compares with.
    """
    for column, waits in _DUES:
        _change(connection, column, column - seconds, waits)
    _change(connection, watermarks.c.at, watermarks.c.at - seconds, watermarks.c.at > now)
    for column in (studies.c.opened_at, studies.c.last_at):
        _change(connection, column, case((column > now, now), else_=column), _OPEN)


def _change(
    connection: Connection,
    column: ColumnElement[float],
    value: ColumnElement[float],
    where: ColumnElement[bool],
) -> None:
    connection.execute(update(column.table).where(where).values({column: value}))
