"""The worker: runs jobs on one device. No network, no parsing of what nobody chose."""

from __future__ import annotations

from contextlib import suppress

import structlog

from node import __version__
from node.crew import Crew
from node.domain.errors import DeviceLost, LedgerError
from node.domain.event import EventKind
from node.domain.stage import Stage
from node.ledger import Books
from node.loop import LONGEST_SLEEP_S, Loop
from node.pipeline import Tools
from node.queues.embedded import Embedded
from node.roster import Surroundings, planner, setups
from node.site import Site
from node.worker import Patience, Worker

_log = structlog.get_logger()


class Bench:
    """A worker with its engines loaded."""

    def __init__(self, site: Site) -> None:
        """Load and verify every enabled engine. Raises NodeError."""
        self._site = site
        self._ring = site.ring("gateway")
        self._lost = False
        watcher = site.watcher
        tools = Tools(site.spool, watcher.stopwatch, watcher.reached, watcher.progress)
        section = site.config.jobs
        self._worker = Worker(
            site.ledger,
            Embedded(site.ledger),
            {},
            tools,
            Patience(section.attempts, section.back_off),
            site.worker,
        )
        self._planner = planner(site.config, self._notice, watcher.clock)
        around = Surroundings(self._notice, watcher.clock, site.worker, self._planner)
        self.setups = self._worker.equip(lambda: setups(site.config, around))
        self.crew = Crew(self._loops())

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
        if self._planner is not None:
            self._planner.stop()
        self.crew.stop()
        # What was loaded on a device that is lost cannot be given back.
        if not self._lost:
            self._worker.strip()
        self._worker.close()
        with suppress(LedgerError), self._site.ledger.write() as books:
            self._note(books, EventKind.STOPPED)

    def _loops(self) -> dict[str, Loop]:
        clock = self._site.watcher.clock
        loops = {"worker": Loop("worker", self._work, self._worker.next_due, clock)}
        if self._planner is not None:
            # It looks at its own clock as often as a loop looks anyway.
            loops["builder"] = Loop("builder", self._planner.step, lambda: None, clock)
        return loops

    def _note(self, books: Books, kind: EventKind) -> None:
        books.events.note(self._site.watcher.clock(), kind, f"{self._site.worker} {__version__}")

    def _notice(self, kind: EventKind, words: str) -> None:
        """Tell the event log; what it cannot take now stands in the log all the same."""
        try:
            with self._site.ledger.write() as books:
                books.events.note(self._site.watcher.clock(), kind, words, actor=self._site.worker)
        except LedgerError as error:
            _log.error("event cannot be noted", kind=kind, words=words, error=str(error))

    def _work(self) -> bool:
        try:
            worked = self._worker.step(self._site.watcher.clock)
        except DeviceLost:
            self._lost = True
            raise
        if worked:
            self._ring()
        return worked
