"""``engine verify``: against the reference network, and against masks that somebody drew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.engine.places import (
    EngineArgument,
    RuntimeOption,
    configured,
    own_folder,
    read,
    runtime,
)
from node.cli.engine.places import section_of as section_in
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import emit, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from node.agreement import Agreement, Compared
    from node.bundle import Bundle
    from node.config import Config
    from node.runtimes import Runtime
    from node.verdicts import Verdict


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="verify")(verify)


def verify(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of masks: DICOM SEG, or .npy by study.", exists=True),
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option(help="Folder of the masks' studies. Default: that of the masks.", exists=True),
    ] = None,
    kind: RuntimeOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an engine what it must know: golden inputs, noise, and masks if there are any.

    Without masks the verdict is kept for `engine enable`. The exit code is 1 when it fails.
    """
    settings = configured(config)
    bundle = read(engine, settings)
    chosen = kind or _configured_kind(bundle, settings)
    if against is not None:
        _against(bundle, runtime(chosen, bundle, settings), (against, studies or against), as_json)
        return
    verdict = _verdict(bundle, chosen, settings)
    emit(asdict(verdict) | {"passed": verdict.passed}, as_json, gates_table(verdict))
    if not as_json:
        _tell(verdict, settings)
    if not verdict.passed:
        raise typer.Exit(1)


def _configured_kind(bundle: Bundle, config: Config | None) -> str:
    section = section_in(bundle.folder, config)
    return section.runtime.kind if section else "onnx"


def _verdict(bundle: Bundle, kind: str, config: Config | None) -> Verdict:
    """The verdict on an engine as a runtime computes it; kept where there is a state folder."""
    from node.engine import Engine
    from node.ladder import candidate_of
    from node.verdicts import FOLDER, Records
    from node.verification import Reference
    from node.verification import verify as ask

    reference = None if kind == "onnx" else Reference()
    try:
        with Engine.load(bundle, runtime(kind, bundle, config)) as engine:
            candidate = candidate_of(engine)
            verdict = ask(candidate, reference)
            if config is not None:
                records = Records(own_folder(config.node.state / FOLDER))
                records.keep(candidate.key, verdict)
    finally:
        if reference is not None:
            reference.close()
    return verdict


def gates_table(verdict: Verdict) -> Table:
    """What a verdict found, gate by gate."""
    from rich.table import Table

    table = Table("gate", "value", "limit", "", title=verdict.runtime)
    for gate in verdict.gates:
        sign = "at most" if gate.at_most else "at least"
        passed = "passed" if gate.passed else "FAILED"
        table.add_row(gate.name, f"{gate.value:.6g}", f"{sign} {gate.limit:.6g}", passed)
    for one in verdict.deviations:
        table.add_row(f"{one.output}: largest, mean", f"{one.largest:.3g}, {one.mean:.3g}", "", "")
    return table


def _tell(verdict: Verdict, config: Config | None) -> None:
    for note in verdict.notes:
        say(f"note: {note}")
    say(f"{verdict.engine}: {'passed' if verdict.passed else 'FAILED'} in {verdict.seconds:.1f} s")
    if config is None:
        say("the verdict is not kept: there is no configuration with a state folder (--config)")


def _against(bundle: Bundle, chosen: Runtime, places: tuple[Path, Path], as_json: bool) -> None:
    from node.agreement import agreements, compare
    from node.cli.serve import configure_logging
    from node.config import LoggingSection
    from node.engine import Engine
    from node.trial import gather

    configure_logging(LoggingSection(level="warning"))
    masks, studies = places
    drawn = gather(masks)
    images = drawn if studies == masks else gather(studies)
    with Engine.load(bundle, chosen) as engine:
        compared = compare(bundle, engine, images, (masks, drawn))
    findings = agreements(compared)
    document = {"studies": compared, "findings": [_row(one) for one in findings]}
    emit(document, as_json, _dice_table(compared, findings))
    if not any(one.dice for one in compared):
        raise typer.Exit(1)


def _row(one: Agreement) -> dict[str, object]:
    return asdict(one) | {"mean": one.mean if one.values else None, "studies": len(one.values)}


def _dice_table(compared: Sequence[Compared], findings: Sequence[Agreement]) -> Table:
    from rich.table import Table

    table = Table("study", *(one.finding for one in findings), title="Dice")
    for study in compared:
        if study.left_out:
            table.add_row(study.study_uid, f"left out: {study.left_out}")
        else:
            table.add_row(study.study_uid, *(_shown(study.dice.get(f.finding)) for f in findings))
    table.add_section()
    table.add_row("mean", *(f"{one.mean:.3f}" if one.values else "" for one in findings))
    table.add_row("95 % interval", *(_interval(one) for one in findings))
    table.add_row("studies, neither has it", *(f"{len(f.values)}, {f.absent}" for f in findings))
    return table


def _shown(dice: float | None) -> str:
    return "neither" if dice is None else f"{dice:.3f}"


def _interval(one: Agreement) -> str:
    if one.interval is None:
        return "too few studies"
    return f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
