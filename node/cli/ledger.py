"""``ledger check`` and ``ledger rebuild``: the truth about the truth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration, operator
from node.cli.printing import emit, say
from node.domain.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

    from node.config import Config
    from node.spool import Spool


class LedgerFaulty(LedgerError):
    """The ledger does not say what is so."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="The database of the node.")
    group.command()(check)
    group.command()(rebuild)
    app.add_typer(group, name="ledger")


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare the ledger with itself and with the files of the spool."""
    from contextlib import closing

    from node.ledger import Ledger

    settings = configuration(config)
    path = _path(settings)
    if not path.exists():
        raise LedgerFaulty(f"{path} is not there; if this node has run, make it anew: {_REBUILD}")
    with closing(Ledger.open(path)) as ledger:
        faults = [*ledger.faults(thorough=True)]
        with ledger.read() as books:
            known = set(books.upkeep.kept_files())
    lying = set(_spool(settings).shelved())
    result = {
        "faults": faults,
        "missing files": sorted(str(one) for one in known - lying if not one.is_file()),
        "unknown files": sorted(str(one) for one in lying - known),
    }
    emit(result, as_json, "\n".join(f"{name}: {len(found)}" for name, found in result.items()))
    if any(result.values()):
        raise LedgerFaulty(f"the ledger and the spool disagree; --json lists what; {_REBUILD}")


def rebuild(
    config: ConfigOption = None,
    reason: Annotated[str, typer.Option(help="Why, for the event log.")] = "asked for",
) -> None:
    """Make the ledger anew from the spool; the old file is kept aside. The node must not run.

    Every study is completed and looked at again. Results that are there are not made again, but
    they are delivered again: the same objects, under the same UIDs.
    """
    from node import rebuild as rebuilding
    from node.presence import Presence

    settings = configuration(config)
    present = Presence(settings.node.state / "presence").names()
    if present:
        raise LedgerFaulty(f"the node runs ({', '.join(sorted(present))}): stop it first")
    made = rebuilding.rebuild(
        _path(settings), _spool(settings), time.time(), f"{reason} ({operator()})"
    )
    say(
        f"{made.instances} objects are to be entered again, {made.quarantined} are in quarantine; "
        "start the node, and it goes on from here"
    )
    if made.aside:
        say(f"the old ledger is {made.aside}")


_REBUILD = "ai-node ledger rebuild"


def _path(settings: Config) -> Path:
    return settings.node.state / "ledger.sqlite"


def _spool(settings: Config) -> Spool:
    from node.spool import Spool

    return Spool(settings.node.state / "spool", time.time)
