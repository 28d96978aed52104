"""One machine: the ledger's own rows are the queue."""

from __future__ import annotations

from dataclasses import dataclass

from node.domain.job import Job
from node.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Embedded:
    """Claims rows of the ledger."""

    ledger: Ledger

    def claim(self, now: float) -> Job | None:
        """The oldest due job."""
        with self.ledger.write() as books:
            return books.jobs.claim(now)

    def next_due(self) -> float | None:
        """When the next job is due."""
        with self.ledger.read() as books:
            return books.jobs.next_due()
