"""``engine``: from a trained network to one that serves, in the order in which one does it.

Each module here registers its commands below ``ai-node engine``; a new one joins the tuple.
"""

from __future__ import annotations

import typer

from node.cli.engine import add, bench, compile, export, shelf, switch, trial, variants, verify

_COMMANDS = (add, shelf, trial, verify, compile, bench, switch, export, variants)


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    commands = typer.Typer(help="Engines: what finds something.", no_args_is_help=True)
    commands.callback()(lambda: None)
    for module in _COMMANDS:
        module.register(commands)
    app.add_typer(commands, name="engine")
