"""Options that several commands share, and the configuration that they lead to."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.domain.errors import NodeError

if TYPE_CHECKING:
    from node.config import Config
    from node.ledger import Ledger


class NoLedger(NodeError):
    """The node of a configuration has not run yet."""


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Configuration file. Default: AI_NODE_CONFIG, /etc/ai-node/node.toml, ./node.toml.",
        show_default=False,
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def configuration_path(given: Path | None) -> Path:
    """The configuration file that a command reads."""
    from node.config import find

    return find(given, os.environ)


def configuration(given: Path | None) -> Config:
    """The frame of the configuration that a command reads. Raises ConfigError."""
    from node.config import load

    return load(configuration_path(given))


def operator() -> str:
    """Who runs the command, for the event log: behind sudo, the user who called it."""
    if os.geteuid() == 0 and os.environ.get("SUDO_USER"):
        return os.environ["SUDO_USER"]
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


@contextmanager
def existing_ledger(given: Path | None) -> Iterator[Ledger]:
    """The ledger of a configuration's node. Raises NoLedger where there is none yet."""
    from node.ledger import Ledger

    path = configuration(given).node.state / "ledger.sqlite"
    if not path.exists():
        raise NoLedger(f"{path} is not there: the node of this configuration has not run yet")
    ledger = Ledger.open(path)
    try:
        yield ledger
    finally:
        ledger.close()
