"""``engine try``: one study from a folder, without a network; results, picture and times."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.engine.places import EngineArgument, RuntimeOption, configured, read, runtime
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import complaints, emit, say

if TYPE_CHECKING:
    from rich.table import Table

    from node.trial import Folder, Trial

_MB = 1_000_000


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="try")(try_engine)


def try_engine(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    study_dir: Annotated[
        Path, typer.Argument(help="Folder of a DICOM study.", exists=True, file_okay=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder that gets seg.dcm, sr.dcm and overlay.png.")
    ] = None,
    study: Annotated[str, typer.Option(help="Study Instance UID, where there are several.")] = "",
    kind: RuntimeOption = "onnx",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an engine on DICOM from the disk, as the node would; nothing is sent or recorded."""
    from rich.progress import Progress

    from node.cli.serve import configure_logging
    from node.config import LoggingSection
    from node.trial import attempt, gather

    configure_logging(LoggingSection(level="warning"))
    settings = configured(config)
    bundle = read(engine, settings)
    folder = gather(study_dir)
    chosen = folder.study(study)
    place = (out or Path(mkdtemp(prefix="ai-node-try-"))).resolve()
    with Progress(
        console=complaints(), transient=True, disable=not complaints().is_terminal
    ) as bar:
        task = bar.add_task("inference", total=None)
        trial = attempt(
            bundle,
            (kind, runtime(kind, bundle, settings)),
            chosen,
            place,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    emit(_document(trial, folder), as_json, _table(trial))
    if not as_json:
        _tell(trial, folder)
    if trial.outcome.refusal:
        if out is None:
            place.rmdir()
        raise typer.Exit(1)


def _document(trial: Trial, folder: Folder) -> dict[str, object]:
    trace = trial.outcome.trace
    return {
        "refusal": trial.outcome.refusal,
        "stages": trial.stages,
        "peak_memory": trial.peaks,
        "findings": trace["findings"],
        "notes": trace["notes"],
        "series": trace["series"],
        "files": trial.files,
        "overlay": trial.overlay,
        "unread": folder.unread,
        "not_dicom": folder.strangers,
    }


def _table(trial: Trial) -> Table:
    from rich.table import Table

    table = Table("stage", "seconds", "peak memory, MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, peak in trial.peaks.items():
        table.add_row(
            name, f"{trial.stages.get(name, 0.0):.2f}", f"{peak / _MB:.0f}" if peak else "?"
        )
    table.add_row("total", f"{sum(trial.stages.values()):.2f}", "")
    return table


def _tell(trial: Trial, folder: Folder) -> None:
    from node.trial import refusals

    trace = trial.outcome.trace
    if folder.strangers:
        say(f"files that are no DICOM: {folder.strangers}")
    for words in folder.unread:
        say(f"not read: {words}")
    for line in refusals(trial.outcome):
        say(line)
    if trial.outcome.refusal:
        say(f"could not assess: {trial.outcome.refusal}")
        return
    for finding in trace["findings"]:
        say(f"found {finding['tracking_id']}: {_measured(finding['measurements'])}")
    if not trace["findings"]:
        say("assessed, nothing found")
    for note in trace["notes"]:
        say(f"note: {note}")
    for kind, path in trial.files.items():
        say(f"{kind}: {path}")
    say(f"overlay: {trial.overlay}")


def _measured(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in numbers.items())
