"""Wires the parts of one node together, starts them, and stops them in order.

::

    Scp -> Spool.keep -> [intake: Indexer, Push] -> [worker] -> [courier per destination]
                              ^ queries (APScheduler) bring studies to the Scp

Each pair of brackets is a thread with a loop; what ends a loop ends the node, and the service
manager starts it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from node import bundle as bundles
from node.config import Config, EngineSection
from node.courier import Courier, Persistence
from node.destinations import DESTINATIONS
from node.dicom.scp import Received, Scp, ScpOptions
from node.domain.errors import ListenError
from node.domain.stage import Reached, unobserved
from node.engine import Engine
from node.indexer import Indexer
from node.ledger import Ledger
from node.loop import Loop
from node.outputs import OUTPUTS
from node.pipeline import Setup, Tools
from node.queues.embedded import Embedded
from node.room import EngineIdentity, Room
from node.runtimes import RUNTIMES
from node.spool import Spool
from node.triggers import TRIGGERS
from node.triggers.push import Push
from node.triggers.query import Query
from node.worker import Patience, Worker

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watcher:
    """How the outside looks at a node; tests and the demo put in their own."""

    clock: Callable[[], float] = time.time
    stopwatch: Callable[[], float] = time.perf_counter
    reached: Reached = unobserved
    progress: Callable[[int, int], None] = lambda done, total: None


class Node:
    """A node on one machine. ``with Node(config) as node: node.wait()``."""

    def __init__(self, config: Config, watcher: Watcher | None = None) -> None:
        """Load every engine and open the spool and the ledger. Raises NodeError."""
        watcher = watcher or Watcher()
        self._config = config
        self._clock = watcher.clock
        self.ledger = Ledger.open(config.node.state / "ledger.sqlite")
        self.spool = Spool(config.node.state / "spool", watcher.clock, watcher.reached)
        self.setups = setups(config)
        self._triggers = [entry.construct(TRIGGERS) for entry in config.triggers]
        self._scp = self._receiver()
        tools = Tools(self.spool, watcher.stopwatch, watcher.reached, watcher.progress)
        patience = Patience(config.jobs.attempts, config.jobs.back_off)
        self._worker = Worker(self.ledger, Embedded(self.ledger), self.setups, tools, patience)
        self._indexer = Indexer(self.spool, self.ledger, watcher.clock, watcher.reached)
        self._couriers = self._make_couriers(watcher.reached)
        self._loops = self._make_loops()
        self.room = Room(
            ledger=self.ledger,
            network=config.known_network,
            engines=tuple(
                EngineIdentity(name, setup.bundle.digest, setup.config_digest)
                for name, setup in self.setups.items()
            ),
            listening_since=watcher.clock(),
            wake_worker=self._loops["worker"].wake,
            reached=watcher.reached,
        )
        self._scheduler = BackgroundScheduler(daemon=True)
        self._threads = ThreadPoolExecutor(len(self._loops), thread_name_prefix="node")
        self._running: dict[str, Future[None]] = {}

    @property
    def port(self) -> int:
        """The port on which we listen (of interest where the configuration says 0)."""
        return self._scp.port

    def start(self) -> None:
        """Recover what the last run left, then open the door."""
        swept = self.spool.sweep()
        with self.ledger.write() as books:
            reopened = books.jobs.reopen_running()
        _log.info("starting", swept=swept, reopened=reopened, engines=list(self.setups))
        self.room = replace(self.room, listening_since=self._clock())
        for name, loop in self._loops.items():
            self._running[name] = self._threads.submit(loop.run)
        self._open_door()
        self._schedule_queries()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a part has ended. True if one has; raises what ended it."""
        ended, _ = wait(self._running.values(), timeout_s, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
        return bool(ended)

    def alive(self, now: float, longest_s: float) -> bool:
        """Whether the intake has made a turn within ``longest_s`` and every loop still runs."""
        running = all(not future.done() for future in self._running.values())
        return running and now - self._loops["intake"].beat < longest_s

    def stop(self) -> None:
        """Close the door, let each part finish its step, and close the books."""
        self._scp.stop()
        if self._scheduler.running:
            self._scheduler.shutdown()
        for loop in self._loops.values():
            loop.stop()
        self._threads.shutdown()
        self._worker.close()
        for setup in self.setups.values():
            setup.engine.close()
        self.ledger.close()
        _log.info("stopped")

    def __enter__(self) -> Node:
        """Start the node; one that cannot start leaves nothing running."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the node."""
        self.stop()

    def _open_door(self) -> None:
        section = self._config.scp
        try:
            self._scp.start()
        except OSError as error:
            raise ListenError(
                f"cannot listen on {section.bind} port {section.port}: {error.strerror}; stop what "
                "listens there, or change [scp] port or bind (ports below 1024 are root's)"
            ) from error

    def _receiver(self) -> Scp:
        section = self._config.scp
        options = ScpOptions(
            ae_title=self._config.node.ae_title,
            bind=section.bind,
            port=section.port,
            maximum_associations=section.maximum_associations,
            maximum_pdu=section.maximum_pdu,
            acse_timeout_s=section.acse_timeout_s,
            dimse_timeout_s=section.dimse_timeout_s,
            network_timeout_s=section.network_timeout_s,
            accept_unknown=section.accept_unknown,
        )
        return Scp(options, self._config.peers, self._keep)

    def _keep(self, received: Received) -> None:
        self.spool.keep(received)
        self._loops["intake"].wake()

    def _make_couriers(self, reached: Reached) -> dict[str, Courier]:
        section = self._config.delivery
        return {
            entry.name: Courier(
                name=entry.name,
                destination=entry.construct(DESTINATIONS),
                network=self._config.known_network,
                ledger=self.ledger,
                spool=self.spool,
                persistence=Persistence(section.attempts, section.back_off),
                reached=reached,
            )
            for entry in self._config.destinations
        }

    def _make_loops(self) -> dict[str, Loop]:
        loops = {
            "intake": Loop("intake", self._take_in, self._intake_due, self._clock),
            "worker": Loop("worker", self._work, self._worker.next_due, self._clock),
        }
        for name, courier in self._couriers.items():
            step = partial(courier.step, self._clock)
            loops[f"courier {name}"] = Loop(f"courier {name}", step, courier.next_due, self._clock)
        return loops

    def _take_in(self) -> bool:
        entered = self._indexer.step()
        for push in self._pushes:
            push.fire(self.room, self._clock())
        return entered > 0

    def _intake_due(self) -> float | None:
        with self.ledger.read() as books:
            rows = books.arrivals.open_rows()
        dues = [due for push in self._pushes if (due := push.next_due(rows, self.room))]
        return min(dues, default=None)

    def _work(self) -> bool:
        worked = self._worker.step(self._clock)
        if worked:
            for name in self._couriers:
                self._loops[f"courier {name}"].wake()
        return worked

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


def setups(config: Config) -> dict[str, Setup]:
    """Every enabled engine of a configuration, loaded, by name. Raises NodeError."""
    made: dict[str, Setup] = {}
    for section in config.engines:
        if section.enabled:
            setup = _setup(section, config)
            made[setup.bundle.manifest.engine.name] = setup
    return made


def _setup(section: EngineSection, config: Config) -> Setup:
    bundle = bundles.read(bundles.find(section.package))
    outputs = {entry.name: entry for entry in config.outputs}
    chosen = [outputs[name] for name in section.outputs]
    return Setup(
        bundle=bundle,
        engine=Engine.load(bundle, section.runtime.construct(RUNTIMES)),
        outputs={entry.name: entry.construct(OUTPUTS) for entry in chosen},
        destinations=section.destinations,
        config_digest=_digest(
            {
                "outputs": [[entry.name, entry.kind, dict(entry.table)] for entry in chosen],
                "runtime": [section.runtime.kind, dict(section.runtime.table)],
                "report_refusals": section.report_refusals,
            }
        ),
        report_refusals=section.report_refusals,
    )


def _digest(options: Mapping[str, object]) -> str:
    """Whatever changes a result's content changes this; where it goes does not."""
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
