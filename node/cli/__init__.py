"""The command ``ai-node``: every module here registers its commands on one application.

To add a command: a function in the module of its subject, added to the application in that
module's ``register``; a new module joins the tuple below. Libraries that load slowly (pydicom,
pynetdicom, highdicom, onnxruntime, pydantic) are imported inside the command that needs them, so
that ``ai-node --help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from node import __version__
from node.cli import (
    audit,
    configuration,
    deliveries,
    demo,
    engine,
    ledger,
    network,
    quarantine,
    serve,
    service,
    study,
)
from node.cli.printing import complain, say
from node.domain.errors import ConfigError, NodeError

_COMMANDS = (
    demo,
    configuration,
    serve,
    network,
    study,
    ledger,
    engine,
    quarantine,
    audit,
    service,
    deliveries,
)


class _Commands(TyperGroup):
    """Turns the node's own errors into one clear message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """2 for a wrong configuration, 1 for everything else that the node raises."""
        try:
            return super().invoke(ctx)
        except NodeError as error:
            complain(error)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _say_version(asked: bool) -> None:
    if asked:
        say(f"ai-node {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Receives DICOM studies, runs a CNN engine, sends SEG and SR back."""


def _application() -> typer.Typer:
    app = typer.Typer(
        name="ai-node",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for module in _COMMANDS:
        module.register(app)
    return app


app = _application()


def main() -> None:
    """The console script ``ai-node``."""
    app()
