"""The gateway: arrivals become studies and jobs, results are delivered, queries are asked."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from node import __version__
from node.audit import ANCHOR_NAME, Anchor, Keeper, note_configuration
from node.courier import Courier, Persistence
from node.crew import Crew
from node.destinations import DESTINATIONS
from node.domain.errors import LedgerBusy, LedgerError
from node.domain.event import EventKind
from node.domain.stage import Stage
from node.indexer import Indexer
from node.ledger.clock import bring_forward, set_back
from node.loop import LONGEST_SLEEP_S, Loop
from node.reconciler import Reconciler
from node.repository import reporter
from node.retention import DAY_S, GB, Limits, Retention
from node.room import Room, Terms
from node.roster import identities
from node.site import Site
from node.triggers import TRIGGERS
from node.triggers.push import Push
from node.triggers.query import Query

_log = structlog.get_logger()

_INTAKE_NICENESS = 10
_GATHER_S = 0.1

_STUCK_S = 600.0
"""How long arrivals that cannot be read may hold up the completion of studies."""


class Gateway:
    """Everything between the spool and the worker, and between the results and their peers."""

    def __init__(self, site: Site) -> None:
        """Read the engine packages and make the couriers. Raises ConfigError."""
        self._site = site
        self._clock = site.watcher.clock
        self._triggers = [entry.construct(TRIGGERS) for entry in site.config.triggers]
        self._sandbox = site.watcher.reader()
        self._indexer = Indexer(
            site.spool, site.ledger, self._clock, site.watcher.reached, self._sandbox
        )
        self.room = Room(
            ledger=site.ledger,
            network=site.config.known_network,
            engines=identities(site.config),
            listening_since=self._clock(),
            wake_worker=site.ring("worker"),
            reached=site.watcher.reached,
            terms=Terms(site.config.jobs.deadline_s, site.config.jobs.late_instances),
        )
        reach_s = site.config.jobs.reconcile_days * DAY_S
        self._reconciler = Reconciler(self.room, site.spool, site.presence.names, reach_s)
        self._retention = self._retained()
        state = site.config.node.state
        self._keeper = Keeper(site.ledger, Anchor(state / ANCHOR_NAME))
        self._reporter = reporter(site.config, site.ledger)
        self.crew = Crew(self._loops())
        self._scheduler = BackgroundScheduler(daemon=True)

    def start(self) -> None:
        """Run the loops and the schedules."""
        self._site.appear("gateway")
        self.room = replace(self.room, listening_since=self._clock())
        self._note(EventKind.STARTED)
        note_configuration(self._site.ledger, self._site.config, self._clock())
        self._site.watcher.reached(Stage.STARTED, "gateway")
        self.crew.start()
        self._schedule_queries()
        _log.info("gateway started", engines=[engine.name for engine in self.room.engines])

    def alive(self, now: float) -> bool:
        """Whether the intake turns and the ledger takes a write."""
        if not self.crew.turning(2 * LONGEST_SLEEP_S):
            return False
        try:
            with self._site.ledger.write() as books:
                books.pulls.advance("gateway alive", now)
        except LedgerBusy:
            return False
        return True

    def stop(self) -> None:
        """End the schedules and the loops."""
        if self._scheduler.running:
            self._scheduler.shutdown()
        self.crew.stop()
        self._sandbox.close()
        with suppress(LedgerError):  # what cannot be written now shows as a start without an end
            if self.crew.running:
                self._note(EventKind.STOPPED)
            self._keeper.end()

    def _loops(self) -> dict[str, Loop]:
        loops = {
            # Senders wait for the receiver, and nobody for the index: it has what they leave.
            "intake": Loop(
                name="intake",
                step=self._take_in,
                next_due=self._intake_due,
                clock=self._clock,
                gather_s=_GATHER_S,
                niceness=_INTAKE_NICENESS,
            ),
            "upkeep": Loop("upkeep", self._upkeep, lambda: None, self._clock),
        }
        for name, courier in self._couriers().items():
            step = partial(courier.step, self._clock)
            loops[f"courier {name}"] = Loop(f"courier {name}", step, courier.next_due, self._clock)
        loops["audit"] = Loop("audit", self._audit, self._audit_due, self._clock)
        return loops

    def _audit(self) -> bool:
        self._keeper.step(self._clock())
        return self._reporter is not None and self._reporter.step(self._clock)

    def _audit_due(self) -> float | None:
        return self._reporter.next_due(self._clock()) if self._reporter is not None else None

    def _note(self, kind: EventKind) -> None:
        with self._site.ledger.write() as books:
            books.events.note(self._clock(), kind, f"gateway {__version__}")

    def _couriers(self) -> dict[str, Courier]:
        site = self._site
        section = site.config.delivery
        return {
            entry.name: Courier(
                name=entry.name,
                destination=entry.construct(DESTINATIONS),
                network=site.config.known_network,
                ledger=site.ledger,
                spool=site.spool,
                persistence=Persistence(section.attempts, section.back_off, section.trip_after),
                reached=site.watcher.reached,
            )
            for entry in site.config.destinations
        }

    def _upkeep(self) -> bool:
        """Close gaps and make room, twice a minute."""
        now = self._clock()
        self._reconciler.step(now)
        self._retention.step(now)
        return False

    def _retained(self) -> Retention:
        site, section = self._site, self._site.config.retention
        limits = Limits(
            section.days * DAY_S, int(section.free_gb * GB), int(section.maximum_gb * GB)
        )
        return Retention(
            site.ledger, site.spool, limits, lambda: shutil.disk_usage(site.spool.root).free
        )

    def _mind_clock(self) -> None:
        """Nothing may wait for years because the clock was years ahead."""
        now = self._clock()
        with self._site.ledger.read() as books:
            seconds = set_back(books.connection, now)
        if seconds:
            words = f"the clock was set back by {seconds:.0f} s: what waits is due so much earlier"
            with self._site.ledger.write() as books:
                bring_forward(books.connection, now, seconds)
                books.events.note(now, EventKind.RECONCILED, words)
            self.room = replace(self.room, listening_since=min(self.room.listening_since, now))
            _log.warning("clock was set back", seconds=round(seconds))

    def _take_in(self) -> bool:
        self._mind_clock()
        entered = self._indexer.step()
        for push in self._pushes:
            push.fire(self.room, self._known_until(stuck=not entered))
        return entered > 0

    def _known_until(self, *, stuck: bool) -> float:
        """Until when the ledger knows what has arrived; silence is judged no further.

        Arrivals that cannot be read for now do not hold up the other studies for ever.
        """
        now = self._clock()
        horizon = self._site.spool.horizon(now)
        return max(horizon, now - _STUCK_S) if stuck else horizon

    def _intake_due(self) -> float | None:
        with self._site.ledger.read() as books:
            rows = books.arrivals.open_rows()
        dues = [due for push in self._pushes if (due := push.next_due(rows, self.room))]
        if not dues:
            return None
        # What is due but waits for arrivals that cannot be read is looked at again in a while.
        waiting = self._clock() + 1.0 if self._known_until(stuck=True) < self._clock() else 0.0
        return max(min(dues), waiting)

    @property
    def _pushes(self) -> list[Push]:
        return [trigger for trigger in self._triggers if isinstance(trigger, Push)]

    def _schedule_queries(self) -> None:
        for number, trigger in enumerate(self._triggers):
            if isinstance(trigger, Query):
                self._scheduler.add_job(
                    lambda query=trigger: query.fire(self.room, self._clock()),
                    trigger.schedule(),
                    id=f"query {number}",
                    coalesce=True,  # ticks missed while the machine slept are one tick
                    max_instances=1,
                    misfire_grace_time=None,
                )
        if self._scheduler.get_jobs():
            self._scheduler.start()
