"""Queues: what carries job ids to workers. The ledger stays the truth.

To add one: a class in a sibling file and one line in ``QUEUES``.
"""

from __future__ import annotations

from typing import Protocol

from node.domain.job import Job
from node.queues.embedded import Embedded


class Queue(Protocol):
    """Hands out jobs, each to one worker at a time."""

    def claim(self, now: float, worker: str) -> Job | None:
        """The next due job, marked as that worker's, its attempt counted; None when none is due.

        The most urgent comes first, the oldest among equals.
        """

    def next_due(self) -> float | None:
        """When the next job is due (seconds since the epoch); None when none is queued."""


QUEUES: dict[str, type[Queue]] = {
    "embedded": Embedded,
}
