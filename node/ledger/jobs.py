"""Jobs: one engine on one revision of one study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, literal, or_, select, update

from node.domain.job import Job, JobEvent, JobState, advance_job
from node.ledger.tables import jobs


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with what became of it; ``trace`` holds the selection's verdicts and stage times."""

    job: Job
    finished_at: float | None
    due_at: float
    reason: str
    trace: Mapping[str, Any] = field(default_factory=dict)


class Jobs:
    """The book of jobs."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def add(self, job: Job) -> bool:
        """Enter a job. False when the same job is there already: nothing changes."""
        if self.row(job.id) is not None:
            return False
        row = {
            "id": job.id,
            "study_uid": job.study_uid,
            "revision": job.revision,
            "engine": job.engine,
            "engine_digest": job.engine_digest,
            "config_digest": job.config_digest,
            "state": job.state,
            "attempts": job.attempts,
            "created_at": job.created_at,
            "due_at": job.created_at,
            "reason": "",
            "trace": "{}",
        }
        self._connection.execute(insert(jobs).values(row))
        return True

    def claim(self, now: float) -> Job | None:
        """Take the oldest due job; its attempt is counted before it runs.

        An attempt that kills the process is thereby counted too.
        """
        row = self._connection.execute(
            select(jobs)
            .where(jobs.c.state == JobState.QUEUED, jobs.c.due_at <= now)
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(1)
        ).one_or_none()
        if row is None:
            return None
        state = advance_job(JobState(row.state), JobEvent.CLAIM)
        self._change(row.id, {"state": state, "attempts": row.attempts + 1})
        return _job(row, state, row.attempts + 1)

    def reopen_running(self) -> int:
        """Put back what a process that died was running. Only at start, before any claim."""
        found = self._connection.execute(
            update(jobs).where(jobs.c.state == JobState.RUNNING).values(state=JobState.QUEUED)
        )
        return found.rowcount

    def advance(
        self, job: str, happened: JobEvent, now: float, reason: str = "", due_at: float = 0.0
    ) -> JobState:
        """Apply an event to a job. Raises TransitionError when its state does not allow it."""
        row = self.row(job)
        if row is None:
            raise LookupError(f"no job {job}")
        state = advance_job(row.job.state, happened)
        values: dict[str, object] = {"state": state, "reason": reason}
        if state is JobState.QUEUED:
            values["due_at"] = due_at
        else:
            values["finished_at"] = now
        self._change(job, values)
        return state

    def keep_trace(self, job: str, trace: Mapping[str, Any]) -> None:
        """Store how the job went."""
        self._change(job, {"trace": json.dumps(trace)})

    def row(self, job: str) -> JobRow | None:
        """One job, or None."""
        found = self._connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
        return _job_row(found) if found is not None else None

    def of_study(self, study_uid: str) -> tuple[JobRow, ...]:
        """Every job of a study, oldest first."""
        rows = self._connection.execute(
            select(jobs).where(jobs.c.study_uid == study_uid).order_by(jobs.c.created_at, jobs.c.id)
        )
        return tuple(_job_row(row) for row in rows)

    def recent(self, limit: int, state: str = "") -> tuple[JobRow, ...]:
        """The newest jobs first."""
        rows = self._connection.execute(
            select(jobs)
            .where(or_(jobs.c.state == state, literal(state) == ""))
            .order_by(jobs.c.created_at.desc(), jobs.c.id)
            .limit(limit)
        )
        return tuple(_job_row(row) for row in rows)

    def next_due(self) -> float | None:
        """When the next queued job is due; None when none is queued."""
        return self._connection.execute(
            select(jobs.c.due_at)
            .where(jobs.c.state == JobState.QUEUED)
            .order_by(jobs.c.due_at)
            .limit(1)
        ).scalar_one_or_none()

    def _change(self, job: str, values: Mapping[str, object]) -> None:
        self._connection.execute(update(jobs).where(jobs.c.id == job).values(values))


def _job(row: Row[Any], state: JobState, attempts: int) -> Job:
    return Job(
        id=row.id,
        study_uid=row.study_uid,
        revision=row.revision,
        engine=row.engine,
        engine_digest=row.engine_digest,
        config_digest=row.config_digest,
        state=state,
        attempts=attempts,
        created_at=row.created_at,
    )


def _job_row(row: Row[Any]) -> JobRow:
    return JobRow(
        job=_job(row, JobState(row.state), row.attempts),
        finished_at=row.finished_at,
        due_at=row.due_at,
        reason=row.reason,
        trace=json.loads(row.trace),
    )
