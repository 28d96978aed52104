"""Claims jobs, runs the pipeline, and records what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from node.domain.errors import InferenceError, NodeError
from node.domain.job import BackOff, Job, JobEvent
from node.domain.stage import Stage
from node.ledger import Books, Ledger
from node.ledger.deliveries import ResultRow
from node.pipeline import Outcome, Setup, Tools, run
from node.queues import Queue
from node.room import EngineIdentity
from node.triggers.push import enter_job

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a job is tried, and how long to wait in between."""

    attempts: int = 3
    back_off: BackOff = BackOff(first=30.0)


class Worker:
    """Runs one job at a time."""

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        setups: Mapping[str, Setup],
        tools: Tools,
        patience: Patience,
    ) -> None:
        """``setups`` are the configured engines by name, loaded."""
        self._ledger = ledger
        self._queue = queue
        self._setups = setups
        self._tools = tools
        self._patience = patience
        self._bench = ThreadPoolExecutor(1, thread_name_prefix="bench")

    def step(self, clock: Callable[[], float]) -> bool:
        """Run one due job to its end. False when none was due."""
        job = self._queue.claim(clock())
        if job is None:
            return False
        self._tools.reached(Stage.JOB_CLAIMED, job.id)
        setup = self._setups.get(job.engine)
        if setup is None or _identity(job.engine, setup).digest != job.engine_digest:
            self._replace(job, setup, clock())
        elif job.attempts > self._patience.attempts:
            # The attempts before this one ended with the process, or they would be on record.
            self._give_up(job, "the node died while running it", clock())
        else:
            self._attempt(job, setup, clock)
        return True

    def next_due(self) -> float | None:
        """When the next job is due (seconds since the epoch)."""
        return self._queue.next_due()

    def close(self) -> None:
        """Wait for the job that runs."""
        self._bench.shutdown()

    def _attempt(self, job: Job, setup: Setup, clock: Callable[[], float]) -> None:
        with self._ledger.read() as books:
            study = books.arrivals.study(job.study_uid)
        # In a future, so that whatever an engine or a header raises is a value here: one study
        # must not end the node.
        future = self._bench.submit(partial(run, job, study, setup, self._tools))
        error = future.exception()
        if error is None:
            self._record(job, setup, future.result(), clock())
        elif isinstance(error, NodeError):
            self._failed(job, str(error), retryable=_worth_retrying(error), now=clock())
        else:
            # Its text may hold a header's value, so only its type is kept.
            _log.error("job failed", job=job.id, error=type(error).__name__, exc_info=error)
            self._failed(job, f"{type(error).__name__} in the node", retryable=True, now=clock())

    def _record(self, job: Job, setup: Setup, outcome: Outcome, now: float) -> None:
        """Results, their deliveries and the job's end, in one transaction."""
        happened = JobEvent.REFUSE if outcome.refusal else JobEvent.FINISH
        with self._ledger.write() as books:
            books.jobs.keep_trace(job.id, outcome.trace)
            for frozen in outcome.results:
                result = ResultRow(
                    frozen.sop_instance_uid,
                    job.id,
                    frozen.sop_class_uid,
                    frozen.kind,
                    frozen.path,
                    frozen.sha256,
                )
                books.deliveries.add(result, setup.destinations, now)
            state = books.jobs.advance(job.id, happened, now, outcome.refusal)
            _note(books, job, now, str(state), outcome.refusal or _summary(outcome))
        _log.info("job ended", job=job.id, engine=job.engine, state=str(state))
        self._tools.reached(Stage.JOB_FINISHED, job.id)

    def _failed(self, job: Job, reason: str, *, retryable: bool, now: float) -> None:
        if not retryable or job.attempts >= self._patience.attempts:
            self._give_up(job, reason, now)
            return
        due_at = now + self._patience.back_off.delay(job.attempts)
        with self._ledger.write() as books:
            books.jobs.advance(job.id, JobEvent.RETRY, now, reason, due_at)
            _note(books, job, now, "postponed", f"attempt {job.attempts} failed: {reason}")
        _log.warning("job postponed", job=job.id, engine=job.engine, attempt=job.attempts)

    def _give_up(self, job: Job, reason: str, now: float) -> None:
        with self._ledger.write() as books:
            books.jobs.advance(job.id, JobEvent.GIVE_UP, now, reason)
            _note(books, job, now, "failed", f"given up at attempt {job.attempts}: {reason}")
        _log.error("job failed", job=job.id, engine=job.engine, attempt=job.attempts)
        self._tools.reached(Stage.JOB_FINISHED, job.id)

    def _replace(self, job: Job, setup: Setup | None, now: float) -> None:
        """The job's engine is gone or is another package now; that one gets a job of its own."""
        reason = f"engine {job.engine} is no longer configured"
        with self._ledger.write() as books:
            if setup is not None:
                identity = _identity(job.engine, setup)
                fresh = enter_job(books, identity, job.study_uid, job.revision, now)
                reason = f"the engine package has changed since; job {fresh} takes its place"
            books.jobs.advance(job.id, JobEvent.GIVE_UP, now, reason)
            _note(books, job, now, "failed", reason)


def _identity(name: str, setup: Setup) -> EngineIdentity:
    return EngineIdentity(name, setup.bundle.digest, setup.config_digest)


def _note(books: Books, job: Job, now: float, kind: str, words: str) -> None:
    books.events.note(now, kind, f"{job.engine}: {words}", study_uid=job.study_uid, job=job.id)


def _summary(outcome: Outcome) -> str:
    count = len(outcome.trace["findings"])
    found = f"{count} finding{'s' if count != 1 else ''}" if count else "assessed, nothing found"
    return f"{found}; {len(outcome.results)} objects frozen"


def _worth_retrying(error: NodeError) -> bool:
    """A runtime may fail for want of memory; a header stays as it is."""
    return error.retryable or isinstance(error, InferenceError)
