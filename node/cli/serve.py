"""``run``: the node itself, in the foreground, as systemd starts it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING

import typer

from node.cli.options import ConfigOption, configuration

if TYPE_CHECKING:
    from node.config import LoggingSection
    from node.daemon import Node
    from node.notify import ServiceManager

_TURN_S = 5.0
"""How often the foreground looks at the parts when no watchdog asks for more."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(run)


def run(config: ConfigOption = None) -> None:
    """Receive, infer and deliver until SIGTERM or SIGINT."""
    from node.daemon import Node
    from node.notify import ServiceManager

    settings = configuration(config)
    configure_logging(settings.logging)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    manager = ServiceManager.of()
    with Node(settings) as node:
        manager.ready(f"listening as {settings.node.ae_title} on port {node.port}")
        _watch(node, manager, stopping)
        manager.stopping()


def configure_logging(section: LoggingSection) -> None:
    """Structured lines on standard error; JSON where nobody looks on."""
    import structlog

    # pydicom complains of odd values by quoting them, and a value may be a patient's.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", module="highdicom")
    level = getattr(logging, section.level.upper())
    text = section.format == "text" or (section.format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _watch(node: Node, manager: ServiceManager, stopping: threading.Event) -> None:
    """Feed the watchdog while the node proves progress, until told to stop or a part ends."""
    from node.loop import LONGEST_SLEEP_S
    from node.notify import watchdog_interval_s

    interval = watchdog_interval_s()
    turn = min(_TURN_S, interval / 2) if interval else _TURN_S
    while not stopping.wait(turn):
        node.wait(timeout_s=0)
        if node.alive(time.time(), longest_s=LONGEST_SLEEP_S + (interval or 0.0)):
            manager.alive()
