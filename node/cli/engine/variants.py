"""``engine variants``: a package's network in FP16 and INT8, and what each loses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.engine.places import EngineArgument, EngineInPlace, configured, read
from node.cli.engine.verify import gates_table
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import emit, say
from node.domain.errors import ConfigError, Fault

if TYPE_CHECKING:
    from node.variants import Made, Narrow

_MB = 1_000_000


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="variants")(variants)


def variants(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    fp16: Annotated[bool, typer.Option("--fp16", help="Make model.fp16.onnx.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Make model.int8.onnx.")] = False,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of studies for the ranges of INT8, and to ask both.", exists=True
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks that are taken of them.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Keep one that fails, too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the networks that a GPU computes faster, and say what they lose against FP32.

    They lie beside the package's model; `[engine.runtime] precision` chooses one. Without --fp16
    and --int8 FP16 alone is made. The exit code is 1 when one fails; that one is not kept.
    """
    from node.bundle import is_shipped
    from node.variants import make, sample

    if int8 and not calibrate:
        message = "INT8 takes its ranges from real studies: name their folder with --calibrate"
        raise ConfigError((Fault("--int8", message),))
    bundle = read(engine, configured(config))
    if is_shipped(bundle.folder):
        raise EngineInPlace(
            f"{engine} is shipped with the node and stays as it is: copy {bundle.folder} to the "
            f"engines/ of the node's state folder, and name the copy by its path"
        )
    known = sample(bundle, calibrate or [], blocks)
    wanted: list[Narrow] = ["fp16"] if fp16 or not int8 else []
    if int8:
        wanted.append("int8")
    made = []
    for precision in wanted:
        made.append(make(bundle, precision, known, force))
        if not as_json:
            _tell(made[-1], len(known.blocks))
    if as_json:
        emit([_document(one, known.notes) for one in made], as_json)
    else:
        for note in known.notes:
            say(f"note: {note}")
    if not all(one.verdict.passed for one in made):
        raise typer.Exit(1)


def _document(made: Made, notes: tuple[str, ...]) -> dict[str, Any]:
    verdict = asdict(made.verdict) | {"passed": made.verdict.passed}
    return {
        "precision": made.precision,
        "kept": made.kept,
        "files": [asdict(file) for file in made.files],
        "notes": (*made.notes, *notes),
        "verdict": verdict,
    }


def _tell(made: Made, blocks: int) -> None:
    emit(None, False, gates_table(made.verdict))
    for note in (*made.notes, *made.verdict.notes):
        say(f"note: {note}")
    if blocks:
        say(f"asked besides: {blocks} blocks of real studies")
    for file in made.files:
        sizes = f"{file.after / _MB:.2f} MB, where FP32 has {file.before / _MB:.2f} MB"
        say(f"{file.path if made.kept else file.path.name}: {sizes}")
    if not made.kept:
        say(f"{made.precision} FAILED and was not kept; FP32 serves, or keep it with --force")
