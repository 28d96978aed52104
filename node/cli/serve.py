"""``run``: the node in the foreground, as systemd starts it; all of it, or one part."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, configuration, configuration_path
from node.cli.printing import complain
from node.domain.errors import ConfigError, DeviceLost, Fault

if TYPE_CHECKING:
    from node.config import Config, LoggingSection
    from node.notify import ServiceManager
    from node.parts import Maker, Part
    from node.site import Site

DEVICE_LOST_EXIT = 75
"""Exit status of a worker whose device is beyond repair in its process (EX_TEMPFAIL of sysexits.h):
whoever started it starts it again."""

_LOADING_S = 1800.0
"""For so long a part that is being made is taken to make progress."""
_TURN_S = 5.0
"""How often a part is looked at when no watchdog asks for more."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(run)


def run(
    config: ConfigOption = None,
    only: Annotated[
        str, typer.Option("--only", help="One part: receiver, gateway or worker.")
    ] = "",
    worker: Annotated[str, typer.Option(help="Name of this worker, where several run.")] = "worker",
) -> None:
    """Receive, infer and deliver until SIGTERM or SIGINT; read the configuration anew on SIGHUP."""
    from node.logs import guard
    from node.notify import ServiceManager

    settings = configuration(config)
    configure_logging(settings.logging)
    guard()
    signals = Signals()
    manager = ServiceManager.of()
    path = configuration_path(config)
    if only:
        _serve_alone(PartOf(only, worker), Current(settings, path), manager, signals)
    else:
        _supervise(settings, path, manager, signals)


@dataclass(slots=True)
class Signals:
    """What the process was told: to stop, or to read its configuration again."""

    stopping: threading.Event = field(default_factory=threading.Event)
    reloading: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Listen to SIGTERM, SIGINT and SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        signal.signal(signal.SIGHUP, lambda *_: self.reloading.set())


@dataclass(frozen=True, slots=True)
class PartOf:
    """Which part this process is; ``worker`` tells several workers apart."""

    name: str
    worker: str = "worker"


@dataclass(slots=True)
class Current:
    """The configuration in force."""

    settings: Config
    path: Path

    def reload(self) -> bool:
        """Read the file again; a wrong one changes nothing. True when something is different."""
        import structlog

        from node.cli.configuration import checked
        from node.reload import difference

        log = structlog.get_logger()
        try:
            new = checked(self.path)
        except ConfigError as error:
            log.error("configuration is wrong, the old one stays", faults=str(error))
            return False
        changes = difference(self.settings, new)
        log.info("configuration read", changes=[change.words for change in changes])
        self.settings = new
        return bool(changes)


def configure_logging(section: LoggingSection) -> None:
    """Structured lines on standard error; JSON where nobody looks on."""
    from node import logs

    logs.configure(section)


def _serve_alone(this: PartOf, current: Current, manager: ServiceManager, signals: Signals) -> None:
    """Run one part. A lost device ends the process at once, with a status of its own."""
    try:
        serve_part(this, current, manager, signals)
    except DeviceLost as error:
        complain(error)
        sys.stderr.flush()
        # Libraries that unload from a lost device may hang or abort: nothing of them runs any more.
        os._exit(DEVICE_LOST_EXIT)


def serve_part(this: PartOf, current: Current, manager: ServiceManager, signals: Signals) -> None:
    """Run one part; made anew whenever its configuration has changed."""
    from node.parts import PARTS

    if this.name not in PARTS:
        known = ", ".join(PARTS)
        raise ConfigError((Fault("--only", f"there is no part {this.name!r} (known: {known})"),))
    while not signals.stopping.is_set():
        _serve(this, current, manager, signals)


def _serve(this: PartOf, current: Current, manager: ServiceManager, signals: Signals) -> None:
    """One life of the part: until it is told to stop or its configuration has changed."""
    from node.parts import PARTS
    from node.site import Site

    configure_logging(current.settings.logging)
    if this.name == "worker":
        _limit_memory(current.settings)
    site = Site(current.settings, worker=this.worker)
    ear = site.bell(this.name).listen()
    part = _made(PARTS[this.name], site, manager)
    hearing = threading.Thread(target=ear.run, args=(part.crew.wake,), name="bell", daemon=True)
    try:
        part.start()
        hearing.start()
        manager.ready(f"{this.name} serves {current.settings.node.ae_title}")
        _watch(part, current, manager, signals)
    finally:
        _stop(part, manager)
        ear.close()
        site.close()


def _made(maker: Maker, site: Site, manager: ServiceManager) -> Part:
    """Make the part. Networks may have to be compiled and verified, which takes its time."""
    turn = _turn()
    with ThreadPoolExecutor(1) as bench:
        made = bench.submit(maker, site)
        for _ in range(int(_LOADING_S / turn)):
            if wait((made,), timeout=turn).done:
                break
            manager.alive()
        return made.result()


def _turn() -> float:
    """Seconds between two looks: often enough for the watchdog, if there is one."""
    from node.notify import watchdog_interval_s

    interval = watchdog_interval_s()
    return min(_TURN_S, interval / 3) if interval else _TURN_S


def _stop(part: Part, manager: ServiceManager) -> None:
    """Let the part finish what it is at; that is progress too, and may take its time."""
    with ThreadPoolExecutor(1) as bench:
        stopped = bench.submit(part.stop)
        while not wait((stopped,), timeout=_TURN_S).done:
            manager.alive()
        stopped.result()


def _limit_memory(settings: Config) -> None:
    """Bound what this process may take: a study that asks for more fails, and fails alone.

    CUDA maps the address space of every device and of the whole memory, so a worker with a GPU is
    bounded only where a person has said by how much.
    """
    from node.roster import on_device

    gigabytes = settings.jobs.memory_gb
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if not gigabytes and on_device(settings):
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = int(gigabytes * 1e9) or whole * 3 // 4
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _watch(part: Part, current: Current, manager: ServiceManager, signals: Signals) -> None:
    """Feed the watchdog while the part proves progress. Raises what ended one of its loops."""
    from node.crew import wait_for_end
    from node.notify import watchdog_interval_s

    interval = watchdog_interval_s()
    turn = _turn()
    while not signals.stopping.wait(turn):
        if part.crew.running:
            wait_for_end((part.crew,), timeout_s=0)
        if signals.reloading.is_set():
            signals.reloading.clear()
            manager.reloading()
            if current.reload():
                return
            manager.ready()
        if interval and part.alive(time.time()):
            manager.alive()
    manager.stopping()


def _supervise(settings: Config, path: Path, manager: ServiceManager, signals: Signals) -> None:
    from node.parts import PARTS
    from node.supervisor import Supervisor

    def command(part: str) -> list[str]:
        return [sys.executable, "-m", "node", "run", "--config", str(path), "--only", part]

    supervisor = Supervisor(
        {part: command(part) for part in PARTS},
        ready=lambda: manager.ready(
            f"{settings.node.ae_title} listens on port {settings.scp.port}"
        ),
        alive=manager.alive,
    )

    def stopping(turn_s: float) -> bool:
        if signals.reloading.is_set():
            # Each part reads the configuration for itself, and keeps the old one when it is wrong.
            signals.reloading.clear()
            supervisor.reload()
        return signals.stopping.wait(turn_s)

    supervisor.run(stopping)
    manager.stopping()
