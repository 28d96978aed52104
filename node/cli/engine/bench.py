"""``engine bench``: how long an engine takes, and how long beside something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.engine.places import EngineArgument, RuntimeOption, configured, read, runtime
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import complaints, emit, say
from node.domain.errors import ConfigError, Fault, InferenceError

if TYPE_CHECKING:
    from rich.table import Table

    from node.bundle import Bundle
    from node.domain.volume import Volume
    from node.timing import Side, Timed

TORCH = "torch"


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="bench")(bench)


def bench(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    kind: RuntimeOption = "onnx",
    versus: Annotated[
        str, typer.Option("--vs", help="Beside this: torch, or another runtime.")
    ] = "",
    torch_module: Annotated[
        Path | None,
        typer.Option(help="The network for --vs torch: .pt2 of torch.export, or TorchScript .pt."),
    ] = None,
    half: Annotated[bool, typer.Option(help="torch in automatic mixed precision.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Runs that are counted.")] = 10,
    study: Annotated[
        Path | None, typer.Option(help="A study's folder. Default: a generated head.", exists=True)
    ] = None,
    shape: Annotated[
        tuple[int, int, int], typer.Option(help="Slices, rows, columns of the generated one.")
    ] = (24, 240, 240),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time an engine stage by stage: median and quartiles after a warm-up, both sides in turn."""
    from rich.progress import Progress

    from node.timing import Side, phantom_volumes
    from node.timing import bench as time_them

    settings = configured(config)
    bundle = read(engine, settings)
    sides = [Side(kind, runtime(kind, bundle, settings))]
    if versus == TORCH:
        sides.append(_torch(torch_module, half))
    elif versus:
        sides.append(Side(versus, runtime(versus, bundle, settings)))
    volumes = _volumes(bundle, study) if study else phantom_volumes(bundle, shape)
    with Progress(
        console=complaints(), transient=True, disable=not complaints().is_terminal
    ) as bar:
        task = bar.add_task("runs", total=None)
        times = time_them(
            bundle,
            sides,
            volumes,
            runs,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    emit(_document(times), as_json, _table(times))
    if not as_json:
        _tell(times, volumes)


def _torch(module: Path | None, half: bool) -> Side:
    from node.timing import Side, Torch

    if module is None:
        message = (
            "torch needs the network as its own file, for the ONNX file is not one: save it with "
            "torch.export.save(torch.export.export(network, (example,)), 'network.pt2'), and name "
            "it with --torch-module"
        )
        raise ConfigError((Fault("--vs torch", message),))
    if not module.is_file():
        raise ConfigError((Fault("--torch-module", f"there is no file {module}"),))
    return Side(TORCH, Torch(module, half))


def _volumes(bundle: Bundle, folder: Path) -> dict[str, Volume]:
    from node.dicom import pixels
    from node.selection import select
    from node.trial import gather

    selection = select(gather(folder).study(), bundle.wanted)
    if selection.refusal:
        raise InferenceError(selection.refusal)
    return {role: pixels.load(choice.geometry) for role, choice in selection.chosen.items()}


def _document(times: tuple[Timed, ...]) -> dict[str, object]:
    from node.timing import NETWORK, TOTAL, ratio

    document: dict[str, object] = {"sides": times}
    if len(times) == 2:
        document["ratio"] = {
            stage: dict(zip(("median", "least", "most"), ratio(*times, stage), strict=True))
            for stage in (NETWORK, TOTAL)
        }
    return document


def _table(times: tuple[Timed, ...]) -> Table:
    from rich.table import Table

    from node.timing import STAGES

    table = Table("stage", *(f"{one.words}, ms" for one in times))
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("load, once", *(f"{one.loading * 1000:.0f}" for one in times), end_section=True)
    for stage in STAGES:
        spreads = [one.stages[stage] for one in times]
        table.add_row(
            stage,
            *(f"{s.median * 1e3:.1f} ({s.low * 1e3:.1f} to {s.high * 1e3:.1f})" for s in spreads),
        )
    return table


def _tell(times: tuple[Timed, ...], volumes: Mapping[str, Volume]) -> None:
    from node.timing import NETWORK, TOTAL, WARM_UP, ratio

    runs = times[0].stages[TOTAL].runs
    shape = " x ".join(str(n) for n in next(iter(volumes.values())).grid.shape)
    say(f"median (quartiles) of {runs} runs over {shape} voxels; {WARM_UP} more were not counted")
    if len(times) == 2:
        for stage in (NETWORK, TOTAL):
            median, least, most = ratio(*times, stage)
            say(
                f"{stage}: {times[1].words} takes {median:.2f} times as long as {times[0].words} "
                f"({least:.2f} to {most:.2f} by the quartiles)"
            )
