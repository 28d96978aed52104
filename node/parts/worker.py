"""The worker: runs jobs on one device. No network, no parsing of what nobody chose."""

from __future__ import annotations

from contextlib import suppress

import structlog

from node import __version__
from node.crew import Crew
from node.domain.errors import LedgerError
from node.domain.event import EventKind
from node.domain.stage import Stage
from node.ledger import Books
from node.loop import LONGEST_SLEEP_S, Loop
from node.pipeline import Tools
from node.queues.embedded import Embedded
from node.roster import setups
from node.site import Site
from node.worker import Patience, Worker

_log = structlog.get_logger()


class Bench:
    """A worker with its engines loaded."""

    def __init__(self, site: Site) -> None:
        """Load every enabled engine. Raises NodeError."""
        self._site = site
        self._ring = site.ring("gateway")
        self.setups = setups(site.config)
        watcher = site.watcher
        tools = Tools(site.spool, watcher.stopwatch, watcher.reached, watcher.progress)
        section = site.config.jobs
        self._worker = Worker(
            site.ledger,
            Embedded(site.ledger),
            self.setups,
            tools,
            Patience(section.attempts, section.back_off),
            site.worker,
        )
        self.crew = Crew(
            {"worker": Loop("worker", self._work, self._worker.next_due, watcher.clock)}
        )

    def start(self) -> None:
        """Take back what the last run was at, and go on."""
        self._site.appear(self._site.worker)
        with self._site.ledger.write() as books:
            reopened = books.jobs.reopen_running(self._site.watcher.clock(), self._site.worker)
            self._note(books, EventKind.STARTED)
        self._site.watcher.reached(Stage.STARTED, self._site.worker)
        self.crew.start()
        _log.info("worker started", reopened=reopened, engines=list(self.setups))

    def alive(self, now: float) -> bool:
        """Whether the loop turns, or is at a job that may still take its time."""
        return self.crew.turning(LONGEST_SLEEP_S + self._site.config.jobs.timeout_s)

    def stop(self) -> None:
        """Let the job that runs end, and unload the engines."""
        self.crew.stop()
        self._worker.close()
        for setup in self.setups.values():
            setup.engine.close()
        with suppress(LedgerError), self._site.ledger.write() as books:
            self._note(books, EventKind.STOPPED)

    def _note(self, books: Books, kind: EventKind) -> None:
        books.events.note(self._site.watcher.clock(), kind, f"{self._site.worker} {__version__}")

    def _work(self) -> bool:
        worked = self._worker.step(self._site.watcher.clock)
        if worked:
            self._ring()
        return worked
