"""Where engines, their records and their tables in the configuration are found."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import configuration_path
from node.domain.errors import ConfigError, Fault, NodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.bundle import Bundle
    from node.config import Config, EngineSection, Entry
    from node.domain.plan import Kept
    from node.planning import Planner
    from node.runtimes import Runtime
    from node.runtimes.tensorrt import TensorRt
    from node.verdicts import Verdict

EngineArgument = Annotated[
    str, typer.Argument(help="Name of an engine, or the path of its folder (it has a slash).")
]
RuntimeOption = Annotated[
    str, typer.Option("--runtime", help="What computes the network: onnx, openvino, tensorrt.")
]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class EngineInPlace(NodeError):
    """An engine cannot be written, replaced or removed where it is."""


def configured(given: Path | None) -> Config | None:
    """The configuration, or None where none was named and none can be read. Raises ConfigError."""
    from node.config import load

    path = configuration_path(given)
    return load(path) if given is not None or os.access(path, os.R_OK) else None


def shelf(config: Config | None) -> Path | None:
    """Where added engines lie."""
    from node.roster import SHELF

    return config.node.state / SHELF if config else None


def added(config: Config | None) -> tuple[Path, ...]:
    """The folders of the engines that were added, by name."""
    from node.bundle import MANIFEST

    place = shelf(config)
    return tuple(sorted(one.parent for one in place.glob(f"*/{MANIFEST}"))) if place else ()


def folder_of(engine: str, config: Config | None) -> Path:
    """The folder of an engine. Raises ConfigError that lists those there are."""
    from node import bundle

    place = shelf(config)
    return bundle.find(engine, [place] if place else [])


def read(engine: str, config: Config | None) -> Bundle:
    """The package of an engine. Raises ConfigError."""
    from node import bundle

    return bundle.read(folder_of(engine, config))


def section_of(folder: Path, config: Config | None) -> EngineSection | None:
    """The table of the configuration that means an engine's folder."""
    for section in config.engines if config else ():
        try:
            found = folder_of(section.package, config)
        except ConfigError:
            continue
        if found.resolve() == folder.resolve():
            return section
    return None


def runtime(kind: str, bundle: Bundle, config: Config | None) -> Runtime:
    """A runtime for an engine, as the configuration sets it, else as it is usual.

    One that compiles takes its plans from the node's cache, where there is one. Raises ConfigError
    that lists those there are.
    """
    from node.planning import Planned, tailored
    from node.runtimes import RUNTIMES
    from node.runtimes.tensorrt import TensorRt
    from node.tables import meant

    if kind not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        message = f"there is no runtime {kind!r}{meant(kind, RUNTIMES)} (known: {known})"
        raise ConfigError((Fault("--runtime", message),))
    found = _entries(bundle, config).get(kind)
    chosen = found.construct(RUNTIMES) if found else RUNTIMES[kind]()
    if not isinstance(chosen, TensorRt):
        return chosen
    if config is None:
        return tailored(chosen, bundle)
    return Planned(chosen, bundle, planner_of(config), alone=True)


def options_of(bundle: Bundle, config: Config | None) -> TensorRt:
    """The options of the runtime that compiles, as the configuration sets them for an engine."""
    from node.runtimes import RUNTIMES
    from node.runtimes.tensorrt import TensorRt

    for found in _entries(bundle, config).values():
        chosen = found.construct(RUNTIMES)
        if isinstance(chosen, TensorRt):
            return chosen
    return TensorRt()


def planner_of(config: Config, progress: Callable[[float, str], None] | None = None) -> Planner:
    """The node's cache of plans; what is missing is built at once. Raises InferenceError."""
    from node.compiling import Bounds, BuildOrder, Built, Cancelled, unreported
    from node.compiling import compile as build
    from node.planning import Circumstances, Planner
    from node.plans import Plans
    from node.roster import GB, PLANS, unnoticed

    def builder(order: BuildOrder, bounds: Bounds, cancelled: Cancelled) -> Built:
        return build(order, bounds, progress or unreported, cancelled)

    plans = Plans(config.node.state / PLANS, int(config.inference.plan_cache_gb * GB))
    return Planner(plans, Circumstances(None, unnoticed, builder=builder))


def _entries(bundle: Bundle, config: Config | None) -> dict[str, Entry]:
    """The rungs of an engine in the configuration by their kind."""
    section = section_of(bundle.folder, config)
    rungs = (section.runtime, *section.fallback) if section else ()
    return {entry.kind: entry for entry in reversed(rungs)}


def verdicts_of(bundle: Bundle, config: Config | None) -> tuple[Verdict, ...]:
    """The last verdict on a package by each runtime, of this version of the node; those that
    passed come first."""
    from node import __version__
    from node.verdicts import FOLDER, Records

    if config is None:
        return ()
    latest: dict[str, Verdict] = {}
    for verdict in Records(config.node.state / FOLDER).all():
        if (verdict.package, verdict.version) == (bundle.digest, __version__):
            latest.setdefault(verdict.runtime, verdict)
    return tuple(sorted(latest.values(), key=lambda one: not one.passed))


def plans_of(bundle: Bundle, config: Config | None) -> tuple[Kept, ...]:
    """The plans of an engine's networks, of any precision, in the node's cache."""
    from node.gpu.recipe import digest
    from node.plans import Plans
    from node.roster import GB, PLANS

    root = config.node.state / PLANS if config else None
    if config is None or root is None or not os.access(root, os.W_OK):
        return ()
    networks = [
        path for model in bundle.models for path in model.parent.glob(f"{model.stem}*.onnx")
    ]
    known = {digest(path) for path in networks}
    plans = Plans(root, int(config.inference.plan_cache_gb * GB))
    return tuple(one for one in plans.kept() if one.key.get("weights") in known)


def own_folder(folder: Path) -> Path:
    """A folder that is there from now on. What root makes belongs to the owner of the folder
    around it, whose service is to use it. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        for path in reversed(missing):
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
    return folder


def guessed(folder: Path) -> tuple[str, ...]:
    """The lines of a manifest that are still guesses, each with its number."""
    from node.bundle import MANIFEST
    from node.proposal import GUESSED

    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    return tuple(
        f"line {number}: {line.strip()}" for number, line in enumerate(lines, 1) if GUESSED in line
    )


def name_from(words: str) -> str:
    """A legal name made of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].strip("-") or "engine"


def checked_name(name: str) -> str:
    """The name itself. Raises ConfigError when manifests do not allow it."""
    if _NAME.fullmatch(name):
        return name
    message = f"{name!r} is no name for an engine: lower-case letters, digits, hyphens, at most 40"
    raise ConfigError((Fault("--name", message),))
