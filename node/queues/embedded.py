"""One machine: the ledger's own rows are the queue."""

from __future__ import annotations

from dataclasses import dataclass

from node.domain.job import Job
from node.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Embedded:
    """Claims rows of the ledger."""

    ledger: Ledger

    def claim(self, now: float, worker: str) -> Job | None:
        """The most urgent due job."""
        with self.ledger.read() as books:
            due = books.jobs.next_due()
        if due is None or due > now:
            return None  # looking takes no lock; a worker looks far more often than it finds
        with self.ledger.write() as books:
            return books.jobs.claim(now, worker)

    def next_due(self) -> float | None:
        """When the next job is due."""
        with self.ledger.read() as books:
            return books.jobs.next_due()
