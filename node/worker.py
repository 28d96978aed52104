"""Claims jobs, runs the pipeline, and records what became of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydicom.uid import Comprehensive3DSRStorage

from node import record as records
from node.dicom.headers import read_source
from node.domain.errors import (
    DeviceLost,
    InferenceError,
    JobCancelled,
    LedgerBusy,
    NodeError,
    SpoolError,
    SpoolFull,
)
from node.domain.event import EventKind
from node.domain.finding import Predecessor
from node.domain.job import BackOff, Job, JobEvent, JobState
from node.domain.stage import Stage
from node.ladder import NoRung
from node.ledger import Books, Ledger
from node.ledger.deliveries import ResultRow
from node.pipeline import Outcome, Setup, Tools, run
from node.queues import Queue
from node.record import Record
from node.room import EngineIdentity
from node.triggers.push import enter_job

_log = structlog.get_logger()

_FRAMES = 6
_LOOK_S = 1.0
"""How often a running job looks whether it was cancelled, between two stages."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a job is tried, and how long to wait in between."""

    attempts: int = 3
    back_off: BackOff = BackOff(first=30.0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on a job. ``check`` raises JobCancelled once it is gone."""

    ledger: Ledger
    job: Job
    worker: str

    def check(self) -> None:
        """Whether to go on. A ledger that cannot be asked now is asked at the next stage."""
        try:
            with self.ledger.read() as books:
                standing = books.jobs.standing(self.job, self.worker)
        except LedgerBusy:
            return
        if standing is not JobState.RUNNING:
            raise JobCancelled(f"job {self.job.id} was cancelled, or given to another worker")


class Worker:
    """Runs one job at a time, in a thread that all of its computing is done in.

    A device belongs to the thread that has opened it, so engines are loaded and unloaded there
    too: ``equip`` and ``strip``.
    """

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        setups: Mapping[str, Setup],
        tools: Tools,
        patience: Patience,
        name: str = "worker",
    ) -> None:
        """``setups`` are the configured engines by name, loaded; ``name`` is this worker's."""
        self._ledger = ledger
        self._queue = queue
        self._setups = setups
        self._tools = tools
        self._patience = patience
        self._name = name
        self._bench = ThreadPoolExecutor(1, thread_name_prefix="bench")
        self._unrecorded = False
        self._lost: DeviceLost | None = None

    def step(self, clock: Callable[[], float]) -> bool:
        """Run one due job to its end. False when none was due.

        Raises LedgerBusy; the next step takes up the job whose end was not recorded. Raises
        DeviceLost, once the job is put back: this process can compute nothing more.
        """
        if self._unrecorded:
            with self._ledger.write() as books:
                books.jobs.reopen_running(clock(), self._name)
            self._unrecorded = False
        job = self._queue.claim(clock(), self._name)
        if job is None:
            return False
        self._tools.reached(Stage.JOB_CLAIMED, job.id)
        # Until this job's end is in the ledger.
        self._unrecorded = True
        self._run(job, clock)
        self._unrecorded = False
        if self._lost is not None:
            raise self._lost
        return True

    def next_due(self) -> float | None:
        """When the next job is due (seconds since the epoch)."""
        return self._queue.next_due()

    def equip(self, make: Callable[[], Mapping[str, Setup]]) -> Mapping[str, Setup]:
        """Have the engines made, and work with them. Raises what ``make`` raises."""
        self._setups = self._bench.submit(make).result()
        return self._setups

    def strip(self) -> None:
        """Give back what the engines hold, once the job that runs has ended."""
        for setup in self._setups.values():
            self._bench.submit(setup.engine.close).result()

    def close(self) -> None:
        """Wait for the job that runs."""
        self._bench.shutdown()

    def _run(self, job: Job, clock: Callable[[], float]) -> None:
        setup = self._setups.get(job.engine)
        if setup is None or _identity(job.engine, setup).digest != job.engine_digest:
            self._replace(job, setup, clock())
            return
        frozen = records.find(self._tools.spool, job.id)
        if frozen is not None:
            # The results were finished, but the ledger did not learn of it, or was lost since.
            # What was made in shadow stays there, whatever the engine is by now.
            made_to_be_kept = bool(frozen.trace.get("shadow"))
            outcome = Outcome(frozen.results, frozen.refusal, frozen.trace)
            self._record(job, replace(setup, shadow=made_to_be_kept), outcome, clock())
        elif job.attempts > self._patience.attempts:
            # The attempts before this one ended with the process, or they would be on record.
            self._give_up(job, "the node died while running it", clock())
        else:
            self._attempt(job, setup, clock)

    def _attempt(self, job: Job, setup: Setup, clock: Callable[[], float]) -> None:
        with self._ledger.read() as books:
            study = books.arrivals.study(job.study_uid)
            earlier = _delivered(books, job.supersedes) if setup.recipients else ()
        removed = sum(not instance.path.name for instance in study.instances)
        if removed:
            words = f"{removed} of {len(study.instances)} instances were removed by retention"
            self._give_up(job, f"{words}; send the study again, then `ai-node reprocess`", clock())
            return
        # In a future, so that whatever an engine or a header raises is a value here: one study
        # must not end the node.
        tools = self._watched(job)
        future = self._bench.submit(
            lambda: run(job, study, setup, tools, _predecessors(job, earlier))
        )
        error = future.exception()
        if error is None:
            self._record(job, setup, future.result(), clock())
        elif isinstance(error, JobCancelled):
            self._stop(job, clock())
        elif isinstance(error, NodeError):
            self._failed(job, error, clock())
            self._lost = error if isinstance(error, DeviceLost) else None
        else:
            # Its text may hold a header's value, so only its type and its place are kept.
            _log.error("job failed", job=job.id, error=type(error).__name__, place=_place(error))
            self._failed(job, InferenceError(f"{type(error).__name__} in the node"), clock())

    def _watched(self, job: Job) -> Tools:
        """The tools of one job: at each stage, and once a second in between, it may be stopped."""
        claim, tools = Claim(self._ledger, job, self._name), self._tools
        looked = [tools.stopwatch()]

        def reached(stage: Stage, subject: str) -> None:
            tools.reached(stage, subject)
            claim.check()

        def progress(done: int, total: int) -> None:
            tools.progress(done, total)
            if tools.stopwatch() - looked[0] >= _LOOK_S:
                looked[0] = tools.stopwatch()
                claim.check()

        return replace(tools, reached=reached, progress=progress)

    def _record(self, job: Job, setup: Setup, outcome: Outcome, now: float) -> None:
        """Results, their deliveries and the job's end, in one transaction."""
        record = Record(job, outcome.results, setup.recipients, outcome.refusal, outcome.trace)
        try:
            records.keep(self._tools.spool, record)
        except SpoolError as error:
            self._failed(job, error, now)
            return
        happened = JobEvent.REFUSE if outcome.refusal else JobEvent.FINISH
        with self._ledger.write() as books:
            standing = books.jobs.standing(job, self._name)
            if standing is JobState.RUNNING:
                records.enter(books, record, setup.recipients, now)
                state = books.jobs.advance(job.id, happened, now, outcome.refusal)
                _note_work(books, job, setup, outcome, now)
                _note(books, job, now, str(state), outcome.refusal or _summary(job, outcome))
        if standing is not JobState.RUNNING:
            self._stop(job, now)
            return
        _log.info("job ended", job=job.id, engine=job.engine, state=str(state))
        self._tools.reached(Stage.JOB_FINISHED, job.id)

    def _stop(self, job: Job, now: float) -> None:
        """The job was cancelled, or is another worker's by now: what was made is not used."""
        with self._ledger.write() as books:
            standing = books.jobs.standing(job, self._name)
            if standing is JobState.CANCELLING:
                self._tools.spool.drop(job.id)
                books.jobs.advance(job.id, JobEvent.STOP, now, "cancelled while it ran")
                _note(books, job, now, EventKind.CANCELLED, "stopped; nothing was delivered")
        _log.warning("job stopped", job=job.id, engine=job.engine, cancelled=standing is not None)
        self._tools.reached(Stage.JOB_FINISHED, job.id)

    def _failed(self, job: Job, error: NodeError, now: float) -> None:
        # A full disk, or an engine that nothing computes, says nothing about the study: such an
        # attempt is not counted.
        counted = not isinstance(error, SpoolFull | NoRung)
        if counted and (not _worth_retrying(error) or job.attempts >= self._patience.attempts):
            self._give_up(job, str(error), now)
            return
        back_off = self._patience.back_off
        absent = isinstance(error, NoRung)
        due_at = now + (back_off.longest if absent else back_off.delay(job.attempts))
        words = f"attempt {job.attempts} failed: {error}"
        if self._end(job, JobEvent.RETRY, (str(error), words), now, due_at):
            _log.warning("job postponed", job=job.id, engine=job.engine, attempt=job.attempts)
            if not counted:
                with self._ledger.write() as books:
                    books.jobs.uncount(job.id)

    def _give_up(self, job: Job, reason: str, now: float) -> None:
        words = f"given up at attempt {job.attempts}: {reason}"
        if self._end(job, JobEvent.GIVE_UP, (reason, words), now):
            _log.error("job failed", job=job.id, engine=job.engine, attempt=job.attempts)
            self._tools.reached(Stage.JOB_FINISHED, job.id)

    def _end(
        self, job: Job, happened: JobEvent, told: tuple[str, str], now: float, due_at: float = 0.0
    ) -> bool:
        """End an attempt, unless the job is no longer ours; ``told`` are the reason and the words
        of the event. Returns whether it counts."""
        with self._ledger.write() as books:
            ours = books.jobs.standing(job, self._name) is JobState.RUNNING
            if ours:
                state = books.jobs.advance(job.id, happened, now, told[0], due_at)
                kind = EventKind.FAILED if state is JobState.FAILED else EventKind.POSTPONED
                _note(books, job, now, kind, told[1])
        if not ours:
            self._stop(job, now)
        return ours

    def _replace(self, job: Job, setup: Setup | None, now: float) -> None:
        """The job's engine is gone or is another package now; that one gets a job of its own."""
        reason = f"engine {job.engine} is no longer configured"
        if setup is not None:
            identity = _identity(job.engine, setup)
            with self._ledger.write() as books:
                fresh = enter_job(books, identity, job.study_uid, job.revision, now)
            reason = f"the engine package has changed since; job {fresh} takes its place"
        self._end(job, JobEvent.GIVE_UP, (reason, reason), now)


def _identity(name: str, setup: Setup) -> EngineIdentity:
    return EngineIdentity(name, setup.bundle.digest, setup.config_digest, setup.priority)


def _note(books: Books, job: Job, now: float, kind: str, words: str) -> None:
    books.events.note(now, kind, f"{job.engine}: {words}", study_uid=job.study_uid, job=job.id)


def _note_work(books: Books, job: Job, setup: Setup, outcome: Outcome, now: float) -> None:
    """Which series were taken, and what computed the findings."""
    if outcome.refusal:
        return
    chosen = ", ".join(f"{role} {uid}" for role, uid in outcome.trace["chosen"].items())
    _note(books, job, now, EventKind.SELECTED, chosen)
    engine = setup.bundle.manifest.engine
    words = (
        f"version {engine.version}, package {job.engine_digest[:16]}, "
        f"configuration {job.config_digest[:16]}, "
        f"{outcome.trace.get('computation') or 'computed by nobody knows what'}"
    )
    _note(books, job, now, EventKind.INFERRED, words)
    if setup.shadow:
        words = f"in shadow: {len(outcome.results)} objects are kept, and none is sent"
        _note(books, job, now, EventKind.SHADOW, words)


def _place(error: BaseException) -> str:
    """Where an error was raised: the innermost calls, file and line."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames[::-1])


def _summary(job: Job, outcome: Outcome) -> str:
    count = len(outcome.trace["findings"])
    found = f"{count} finding{'s' if count != 1 else ''}" if count else "assessed, nothing found"
    replaced = f"; they replace those of job {job.supersedes}" if job.supersedes else ""
    return f"{found}; {len(outcome.results)} objects frozen{replaced}"


def _delivered(books: Books, job: str) -> tuple[ResultRow, ...]:
    """The results of a job that were on their way to somebody: only those can be replaced."""
    known = {row.result.sop_instance_uid for row in books.deliveries.of_job(job)}
    return tuple(one for one in books.deliveries.results_of(job) if one.sop_instance_uid in known)


def _predecessors(job: Job, results: Sequence[ResultRow]) -> tuple[Predecessor, ...]:
    """The reports that a job's report replaces. Raises HeaderError and SpoolError."""
    paths = [one.path for one in results if one.sop_class_uid == Comprehensive3DSRStorage]
    return tuple(
        Predecessor(
            job.study_uid,
            str(header.SeriesInstanceUID),
            str(header.SOPClassUID),
            str(header.SOPInstanceUID),
        )
        for header in read_source([path for path in paths if path.is_file()])
    )


def _worth_retrying(error: NodeError) -> bool:
    """A runtime may fail for want of memory; a header stays as it is."""
    return error.retryable or isinstance(error, InferenceError)
