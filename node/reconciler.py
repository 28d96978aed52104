"""Closes every gap between "acknowledged" and "done" that a crash or a lost file can leave.

Each pass asks the ledger and the spool what should be under way and is not, and makes it good; a
pass over a sound node changes nothing. What is in the spool's ``incoming`` folder is the
indexer's, and what is entered as a delivery the courier's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from node import record as records
from node.domain.event import EventKind
from node.ledger import Books
from node.record import Record
from node.room import EngineIdentity, Room
from node.spool import Spool
from node.triggers.push import enter_job

_log = structlog.get_logger()

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Compares what is with what should be. One at a time may run on a ledger.

    ``present`` says which workers live. Studies that were complete longer than ``reach_s``
    seconds ago are left as they are, and so are those from before an engine was there.
    """

    room: Room
    spool: Spool
    present: Callable[[], Collection[str]]
    reach_s: float = DAY_S

    def step(self, now: float) -> int:
        """One pass. Returns how many gaps it closed. Raises LedgerError."""
        closed = self._restore(now) + self._reopen(now) + self._enter_missing(now)
        self._clear(now)
        if closed:
            _log.warning("gaps closed", count=closed)
            self.room.wake_worker()
        return closed

    def _restore(self, now: float) -> int:
        """Results whose job the ledger does not know: it was lost, and made anew since."""
        restored = 0
        noted = self.spool.noted_jobs()
        with self.room.ledger.read() as books:
            unknown = [job for job in noted if books.jobs.row(job) is None]
        for job in unknown:
            record = records.find(self.spool, job)
            if record is not None:
                with self.room.ledger.write() as books:
                    restored += _restored(books, record, now)
        return restored

    def _reopen(self, now: float) -> int:
        """Jobs whose worker is gone, and those that nobody began in time."""
        with self.room.ledger.write() as books:
            return books.jobs.reopen_orphans(self.present(), now) + books.jobs.end_overdue(now)

    def _enter_missing(self, now: float) -> int:
        """Complete studies that an engine never got a job on."""
        return sum(self._enter_missing_of(engine, now) for engine in self.room.engines)

    def _enter_missing_of(self, engine: EngineIdentity, now: float) -> int:
        with self.room.ledger.write() as books:
            there_since = books.pulls.watermark(f"engine {engine.name}")
            if there_since is None:
                books.pulls.advance(f"engine {engine.name}", now)
                return 0
            since = max(now - self.reach_s, there_since)
            return sum(
                self._entered(books, engine, study, content, now)
                for study, content in books.upkeep.unanswered(engine.name, since)
            )

    def _entered(
        self, books: Books, engine: EngineIdentity, study: str, content: str, now: float
    ) -> bool:
        terms = self.room.terms
        if terms.late_instances == "ignore" and books.jobs.has_earlier(study, engine.name, content):
            return False
        job = enter_job(books, engine, study, content, now, terms)
        words = f"{engine.name} had no job on a complete study; it has one now"
        books.events.note(now, EventKind.RECONCILED, words, study_uid=study, job=job)
        return True

    def _clear(self, now: float) -> None:
        """Objects of jobs that ended without a result; nothing refers to them."""
        with self.room.ledger.read() as books:
            emptied = books.upkeep.emptied(now - self.reach_s)
        for job in emptied:
            if self.spool.drop(job):
                _log.info("unused objects removed", job=job)


def _restored(books: Books, record: Record, now: float) -> bool:
    """Whether the job could be entered: its study must be known, and its objects nobody else's."""
    if books.arrivals.row(record.job.study_uid) is None:
        return False
    if any(books.deliveries.find(one.sop_instance_uid) for one in record.results):
        return False
    books.jobs.add(record.job)
    records.enter(books, record, record.destinations, now)
    words = (
        f"{record.job.engine}: {len(record.results)} results found on disk; they are delivered "
        "again, as the same objects"
    )
    books.events.note(
        now, EventKind.REBUILT, words, study_uid=record.job.study_uid, job=record.job.id
    )
    return True
