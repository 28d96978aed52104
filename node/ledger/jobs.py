"""Jobs: one engine on one revision of one study."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)

from node.domain.event import EventKind
from node.domain.job import ENDED_JOBS, Job, JobEvent, JobState, advance_job
from node.ledger.events import Events
from node.ledger.tables import jobs

_BEGUN = (JobState.RUNNING, JobState.CANCELLING)


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

    def __init__(self, connection: Connection, events: Events) -> None:
        """Bind the book to a transaction, and to the book of events in it."""
        self._connection = connection
        self._events = events

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
            "finished_at": job.created_at if job.state in ENDED_JOBS else None,
            "priority": job.priority,
            "deadline_at": job.deadline_at,
            "supersedes": job.supersedes,
            "worker": "",
        }
        self._connection.execute(insert(jobs).values(row))
        return True

    def claim(self, now: float, worker: str = "worker") -> Job | None:
        """Take the most urgent due job, the oldest among equals; its attempt is counted first.

        An attempt that kills the process is thereby counted too. What nobody began by its
        deadline ends here.
        """
        self.end_overdue(now)
        row = self._connection.execute(
            select(jobs)
            .where(jobs.c.state == JobState.QUEUED, jobs.c.due_at <= now)
            .order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
            .limit(1)
        ).one_or_none()
        if row is None:
            return None
        state = advance_job(JobState(row.state), JobEvent.CLAIM)
        self._change(row.id, {"state": state, "attempts": row.attempts + 1, "worker": worker})
        return _job(row, state, row.attempts + 1)

    def standing(self, job: Job, worker: str) -> JobState | None:
        """RUNNING or CANCELLING while a claim holds; None once the job is no longer that claim's.

        A worker that was stopped for long may wake up when another has taken its job over.
        """
        found = self._connection.execute(
            select(jobs.c.state).where(
                jobs.c.id == job.id,
                jobs.c.worker == worker,
                jobs.c.attempts == job.attempts,
                jobs.c.state.in_(_BEGUN),
            )
        ).scalar_one_or_none()
        return JobState(found) if found is not None else None

    def reopen_running(self, now: float, worker: str | None = None) -> int:
        """Put back what a worker that died was running (None: every worker).

        Only before that worker claims anything. Returns how many jobs are queued again.
        """
        mine = jobs.c.worker == worker if worker is not None else true()
        return self._reopen(now, mine)

    def reopen_orphans(self, alive: Collection[str], now: float) -> int:
        """Put back what was running on workers that are no longer there."""
        return self._reopen(now, jobs.c.worker.not_in(list(alive)))

    def end_overdue(self, now: float) -> int:
        """End the queued jobs that nobody began by their deadline, each with an alarm."""
        overdue = and_(
            jobs.c.state == JobState.QUEUED, jobs.c.attempts == 0, jobs.c.deadline_at <= now
        )
        rows = self._connection.execute(select(jobs).where(overdue)).all()
        for row in rows:
            words = f"not begun within {row.deadline_at - row.created_at:.0f} s, its deadline"
            self.advance(row.id, JobEvent.GIVE_UP, now, words)
            self._note(row, now, EventKind.ALARM, words)
        return len(rows)

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
        elif state is not JobState.CANCELLING:
            values["finished_at"] = now
        if happened is JobEvent.RELEASE:
            values |= {"attempts": 0, "finished_at": None, "deadline_at": None}
        self._change(job, values)
        return state

    def uncount(self, job: str) -> None:
        """Take back an attempt that failed for no reason of the job's own."""
        self._change(job, {"attempts": jobs.c.attempts - 1})

    def has_earlier(self, study_uid: str, engine: str, content: str) -> bool:
        """Whether an engine has a job on another content of a study."""
        found = self._connection.execute(
            select(jobs.c.id)
            .where(
                jobs.c.study_uid == study_uid,
                jobs.c.engine == engine,
                jobs.c.revision != content,
            )
            .limit(1)
        )
        return found.first() is not None

    def superseded(self, study_uid: str, engine: str, content: str) -> str:
        """The job whose results a job on this content replaces: the last one done; or ""."""
        found = self._connection.execute(
            select(jobs.c.id)
            .where(
                jobs.c.study_uid == study_uid,
                jobs.c.engine == engine,
                jobs.c.revision != content,
                jobs.c.state == JobState.DONE,
            )
            .order_by(jobs.c.finished_at.desc(), jobs.c.created_at.desc())
            .limit(1)
        ).scalar_one_or_none()
        return found or ""

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

    def _reopen(self, now: float, which: ColumnElement[bool]) -> int:
        rows = self._connection.execute(select(jobs).where(jobs.c.state.in_(_BEGUN), which)).all()
        for row in rows:
            if row.state == JobState.CANCELLING:
                self.advance(row.id, JobEvent.STOP, now, row.reason)
                self._note(row, now, EventKind.CANCELLED, "its worker is gone")
            else:
                # No transition of its own: its next claim goes on counting the attempts.
                self._change(row.id, {"state": JobState.QUEUED, "worker": ""})
                self._note(row, now, EventKind.REOPENED, "its worker ended while it ran")
        return sum(row.state == JobState.RUNNING for row in rows)

    def _note(self, row: Row[Any], now: float, kind: str, words: str) -> None:
        self._events.note(now, kind, f"{row.engine}: {words}", study_uid=row.study_uid, job=row.id)

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
        priority=row.priority,
        deadline_at=row.deadline_at,
        supersedes=row.supersedes,
    )


def _job_row(row: Row[Any]) -> JobRow:
    return JobRow(
        job=_job(row, JobState(row.state), row.attempts),
        finished_at=row.finished_at,
        due_at=row.due_at,
        reason=row.reason,
        trace=json.loads(row.trace),
    )
