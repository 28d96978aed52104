"""``demo``: everything once, from a modality to an archive, on this machine."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import JsonOption
from node.cli.printing import complaints, emit, say

if TYPE_CHECKING:
    from rich.table import Table

    from node.demo import Report


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(demo)


def demo(
    study: Annotated[
        Path | None,
        typer.Option(help="Folder of a DICOM study. Default: a generated phantom.", exists=True),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine to run.")] = "mr-brain-lesion",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the overlay.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep state, results and overlay in this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a study through the node to an archive, and check what arrives there."""
    from rich.progress import Progress

    from node.cli.serve import configure_logging
    from node.config import LoggingSection
    from node.demo import Options, run

    configure_logging(LoggingSection(level="warning"))
    directory = (keep or Path(mkdtemp(prefix="ai-node-demo-"))).resolve()
    with Progress(
        console=complaints(), transient=True, disable=not complaints().is_terminal
    ) as bar:
        task = bar.add_task("inference", total=None)
        report = run(
            Options(directory, study, engine),
            lambda words: bar.console.print(words) if not as_json else None,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    emit(_document(report), as_json, _stage_table(report))
    if not as_json:
        _tell(report, directory)
    if report.overlay and not (no_browser or as_json):
        webbrowser.open(report.overlay.as_uri())
    if not report.held:
        raise typer.Exit(1)


def _document(report: Report) -> dict[str, object]:
    """The report without what does not apply: ``dice`` is the phantom's alone."""
    document = asdict(report)
    if report.dice is None:
        del document["dice"]
    return document


def _stage_table(report: Report) -> Table:
    from rich.table import Table

    table = Table("stage", "seconds", title=f"{report.received} instances received")
    table.columns[1].justify = "right"
    for name, seconds in report.stages.items():
        table.add_row(name, f"{seconds:.2f}", end_section=name == "inspected")
    return table


def _tell(report: Report, directory: Path) -> None:
    for result in report.results:
        say(f"{result.sop_class}: {result.path}")
    for check in report.checks:
        say(f"  {'ok  ' if check.ok else 'FAIL'}  {check.name}" + f"  {check.detail}".rstrip())
    if report.overlay:
        say(f"overlay: {report.overlay}")
    say(f"everything is in {directory}. Next:")
    say("  ai-node init DIR        write a configuration")
    say("  ai-node echo PEER       test a peer")
    say("  ai-node run             receive studies")
