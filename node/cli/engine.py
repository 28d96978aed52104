"""``engine list``: which engines there are."""

from __future__ import annotations

import typer

from node.cli.options import JsonOption
from node.cli.printing import emit


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(help="Engines: what finds something.", no_args_is_help=True)
    commands.callback()(lambda: None)
    commands.command(name="list")(list_engines)
    app.add_typer(commands, name="engine")


def list_engines(as_json: JsonOption = False) -> None:
    """List the shipped engines."""
    from rich.table import Table

    from node import bundle

    found = [bundle.read(folder) for folder in bundle.list_shipped()]
    rows = [
        {
            "name": one.manifest.engine.name,
            "version": one.manifest.engine.version,
            "title": one.manifest.engine.title,
            "task": one.manifest.engine.task,
            "clinical_use": one.manifest.engine.clinical_use,
            "digest": one.digest,
            "folder": one.folder,
        }
        for one in found
    ]
    table = Table("name", "version", "task", "what it finds", "clinical use", "package")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["version"]),
            str(row["task"]),
            str(row["title"]),
            "yes" if row["clinical_use"] else "no",
            str(row["digest"])[:12],
        )
    emit(rows, as_json, table)
