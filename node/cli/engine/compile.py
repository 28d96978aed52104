"""``engine compile``: a network becomes a plan for this machine's GPU, before the first study."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.engine.places import (
    EngineArgument,
    EngineInPlace,
    configured,
    options_of,
    planner_of,
    read,
)
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import complaints, emit, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from node.bundle import Bundle
    from node.config import Config
    from node.runtimes.tensorrt import TensorRt

_MB = 1_000_000

Progress = Callable[[float, str], None]


class PrecisionOption(StrEnum):
    """Which network of the package is compiled."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="compile")(compile_engine)


def compile_engine(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    precision: Annotated[
        PrecisionOption | None,
        typer.Option(help="Which network of the package. Default: as configured, else fp32."),
    ] = None,
    device: Annotated[
        int | None, typer.Option(min=0, help="The GPU, as nvidia-smi counts.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The largest batch.")] = None,
    capability: Annotated[
        str, typer.Option(help="Compute capability to build for with --dry-run, e.g. 8.9.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile without a GPU, and keep nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile an engine's networks for the GPU, into the cache of plans that workers read.

    With the options of the engine's tensorrt runtime in the configuration, where it has one, for
    other options are another plan. --dry-run compiles on the CPU, with TensorRT-RTX (the extra
    rtx), and says what a GPU would have to hold.
    """
    settings = configured(config)
    bundle = read(engine, settings)
    given: dict[str, Any] = {
        "precision": precision and precision.value,
        "device": device,
        "batch": batch,
    }
    stated = {key: one for key, one in given.items() if one is not None}
    networks = list(_networks(bundle, replace(options_of(bundle, settings), **stated)))
    with _progress() as progress:
        if dry_run:
            told = [_dry(model, options, capability, progress) for model, options in networks]
        else:
            told = _kept(networks, settings, progress)
    shown = "\n".join("\n".join(f"{key:<22} {value}" for key, value in one.items()) for one in told)
    emit(told, as_json, shown)
    if not (as_json or dry_run):
        say(f"Next: ai-node engine verify {engine} --runtime tensorrt")


def _networks(bundle: Bundle, options: TensorRt) -> Iterator[tuple[Path, TensorRt]]:
    """Every network of an engine, and of those that look before it, with lengths for free axes."""
    from node.planning import tailored

    if bundle.first is not None:
        yield from _networks(bundle.first, options)
    own = tailored(options, bundle)
    yield from ((model, own) for model in bundle.models)


def _kept(
    networks: list[tuple[Path, TensorRt]], config: Config | None, progress: Progress
) -> list[dict[str, Any]]:
    """Build the plans into the cache. Raises RuntimeUnavailable without a GPU."""
    recipes = [options.recipe(model) for model, options in networks]
    if config is None:
        raise EngineInPlace(
            "there is no configuration whose state folder could keep the plan: name one with "
            "--config, or say --dry-run"
        )
    planner = planner_of(config, progress)
    told = []
    for recipe in recipes:
        begun = time.monotonic()
        plan = planner.build(recipe)
        told.append(
            {
                "network": recipe.model.name,
                "precision": recipe.precision,
                "library": f"{recipe.flavour} {recipe.version}",
                "built for": f"{recipe.device}, {recipe.capability}",
                "plan": f"{len(plan) / _MB:.1f} MB",
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    return told


def _dry(model: Path, options: TensorRt, capability: str, progress: Progress) -> dict[str, Any]:
    """What compiling without a GPU tells of a network. Raises InferenceError."""
    from node.compiling import BuildOrder
    from node.compiling import compile as build
    from node.gpu.recipe import Profile, Recipe, Settings, variant

    recipe = Recipe(
        model=variant(model, options.precision),
        weights="",
        flavour="tensorrt_rtx",
        version="",
        precision=options.precision,
        profiles=tuple(Profile(name, *rows) for name, rows in sorted(options.profiles.items())),
        settings=Settings(batch=options.batch, capability=capability),
    )
    with TemporaryDirectory(prefix="ai-node-compile-") as place:
        told = build(BuildOrder(recipe, Path(place) / "plan"), on_progress=progress).told
    return {
        "network": recipe.model.name,
        "precision": recipe.precision,
        "library": f"TensorRT-RTX {told['version']}",
        "built for": capability or "every card that it knows",
        "layers": told["layers"],
        "weights on the GPU": f"{told['weights'] / _MB:.1f} MB",
        "scratch on the GPU": f"{told['activation'] / _MB:.1f} MB",
        "plan": f"{told['size'] / _MB:.1f} MB",
        "seconds": told["seconds"],
        "warnings": "; ".join(told["warnings"]) or "none",
        "kept": "no: this was a dry run",
    }


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal."""
    from rich.progress import Progress as Bar

    with Bar(console=complaints(), transient=True, disable=not complaints().is_terminal) as bar:
        task = bar.add_task("compiling", total=1.0)
        yield lambda done, phase: bar.update(task, completed=done, description=phase)
