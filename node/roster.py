"""The engines of a configuration: their identities, and the loaded networks.

Whoever makes jobs needs to know which package would run; only a worker loads it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from node import bundle as bundles
from node.bundle import CARD, Bundle
from node.compiling import Bounds
from node.config import Config, EngineSection, Entry
from node.domain.errors import ConfigError, Fault
from node.domain.event import EventKind
from node.domain.volume import Volume
from node.findings import Found
from node.gpu.probing import probe
from node.ladder import Footing, Ladder, Losses, NoRung, Notice, Rung
from node.outputs import OUTPUTS
from node.pipeline import Setup
from node.planning import Circumstances, Planned, Planner
from node.plans import Plans
from node.progress import Progress
from node.residency import Need, Residency, Resident
from node.room import EngineIdentity
from node.runtimes import RUNTIMES
from node.runtimes.tensorrt import TensorRt
from node.verdicts import FOLDER, Records

SHELF = "engines"
"""Folder of the engines that the hospital added, in the state folder."""

PLANS = "plans"
"""Folder of the networks that were compiled for a device, in the state folder."""

_HOUR_S = 3600.0
_SHARE = 0.9
"""Of a device's memory: what is left is for the driver, and for what others take for a moment."""
GB = 1_000_000_000


def unnoticed(kind: EventKind, words: str) -> None:
    """The Notice of a node without an event log."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker's engines are given: whom they tell, the clock (seconds since the epoch), the
    worker's name, for each has its own device, and the plans (None: each load builds its own).
    """

    notice: Notice = unnoticed
    clock: Callable[[], float] = time.time
    worker: str = "worker"
    planner: Planner | None = None


def identities(config: Config) -> tuple[EngineIdentity, ...]:
    """What makes jobs of the enabled engines these jobs and no others. Raises ConfigError."""
    return tuple(
        EngineIdentity(
            bundle.manifest.engine.name,
            bundle.digest,
            config_digest(section, config),
            section.priority,
        )
        for section, bundle in _enabled(config)
    )


def setups(config: Config, around: Surroundings | None = None) -> dict[str, Setup]:
    """Every enabled engine of a configuration by name, loaded and verified.

    An engine that nothing computes is told and tried again later, for the others have studies to
    assess. Raises ConfigError; NoRung where nothing computes any of them; DeviceLost.
    """
    around = around or Surroundings()
    residency = Residency[Ladder](_capacity(config))
    footing = _footing(config, around, residency)
    ladders = {
        bundle.manifest.engine.name: (
            section,
            Ladder(bundle, _rungs(section, bundle, around.planner), footing),
        )
        for section, bundle in _enabled(config)
    }
    for name, (_, ladder) in ladders.items():
        residency.admit(resident(name, ladder))
    absent = [error for name in ladders if (error := _absence(name, residency)) is not None]
    if absent and len(absent) == len(ladders):
        raise NoRung("; ".join(str(error) for error in absent))
    return {
        name: replace(_setup(section, ladder, config), engine=Tenant(name, residency))
        for name, (section, ladder) in ladders.items()
    }


@dataclass(frozen=True, slots=True)
class Tenant:
    """An engine that is on the device while it is used, and afterwards for as long as it may."""

    name: str
    residency: Residency[Ladder]

    def examine(
        self, volumes: Mapping[str, Volume], job_id: str, progress: Progress | None = None
    ) -> Found:
        """The findings. Raises what ``Ladder.examine`` raises."""
        with self.residency.hold(self.name) as ladder:
            return ladder.examine(volumes, job_id, progress)

    def close(self) -> None:
        """Give back what it holds."""
        self.residency.unload(self.name)


def planner(config: Config, notice: Notice, clock: Callable[[], float]) -> Planner | None:
    """The plans of a worker, if any of its engines is compiled for a device.

    Raises InferenceError when the folder of plans cannot be used.
    """
    if not on_device(config):
        return None
    inference = config.inference
    plans = Plans(config.node.state / PLANS, int(inference.plan_cache_gb * GB), clock)
    bounds = Bounds(timeout_s=min(Bounds().timeout_s, config.jobs.timeout_s))
    return Planner(plans, Circumstances(inference.quiet_hours, notice, clock, bounds))


def on_device(config: Config) -> bool:
    """Whether a network of any engine may be computed on a GPU."""
    sections = [section for section in config.engines if section.enabled]
    kinds = {entry.kind for one in sections for entry in _runtimes(one)}
    return any(RUNTIMES.get(kind) is TensorRt for kind in kinds)


def found(package: str, config: Config) -> Bundle:
    """A package by its name, among those added and those shipped, or by its path.

    Raises ConfigError.
    """
    return bundles.read(bundles.find(package, [config.node.state / SHELF]))


def refuse_unready(bundle: Bundle) -> None:
    """Raise ConfigError where an engine may not be live: nobody can see what it was made for."""
    if bundle.card is None:
        name = bundle.manifest.engine.name
        message = (
            f"{name} cannot be live: {bundle.folder} has no {CARD}, and nobody can see what it was "
            f"trained on and how well it does. Write one, or let it run without sending anything: "
            f"`ai-node engine enable {name} --shadow`, which sets mode = 'shadow'"
        )
        raise ConfigError((Fault("engine", message),))


def config_digest(section: EngineSection, config: Config) -> str:
    """Whatever changes a result's content changes this; where it goes does not."""
    options = {
        "outputs": [
            [entry.name, entry.kind, dict(entry.table)] for entry in _outputs(section, config)
        ],
        "runtime": [section.runtime.kind, dict(section.runtime.table)],
        "report_refusals": section.report_refusals,
    }
    if section.fallback:
        options["fallback"] = [[rung.kind, dict(rung.table)] for rung in section.fallback]
    return _digest(options)


def _enabled(config: Config) -> Iterator[tuple[EngineSection, Bundle]]:
    for section in config.engines:
        if section.enabled:
            bundle = found(section.package, config)
            if section.mode == "live":
                refuse_unready(bundle)
            yield section, bundle


def _capacity(config: Config) -> int:
    """Bytes that engines may take of the worker's device; where there is none, there is no end."""
    entries = (entry for one in config.engines if one.enabled for entry in _runtimes(one))
    made = (entry.construct(RUNTIMES) for entry in entries)
    devices = {runtime.device for runtime in made if isinstance(runtime, TensorRt)}
    if not devices:
        return sys.maxsize
    if config.inference.device_memory_gb:
        return int(config.inference.device_memory_gb * GB)
    memory = [card.memory for card in probe(min(devices)).devices]
    return int(_SHARE * memory[min(devices)]) if min(devices) < len(memory) else sys.maxsize


def _footing(config: Config, around: Surroundings, residency: Residency[Ladder]) -> Footing:
    folder = config.node.state / FOLDER
    return Footing(
        Records(folder),
        Losses(folder / f"losses.{around.worker}"),
        around.notice,
        config.inference.verify_every_h * _HOUR_S,
        around.clock,
        residency.relieve,
    )


def _runtimes(section: EngineSection) -> tuple[Entry, ...]:
    """The tables of an engine's rungs, the first choice first."""
    return (section.runtime, *section.fallback)


def _rungs(section: EngineSection, bundle: Bundle, planner: Planner | None) -> list[Rung]:
    """What may compute an engine, the first choice first."""
    entries, rungs = _runtimes(section), []
    for number, entry in enumerate(entries, 1):
        runtime = entry.construct(RUNTIMES)
        if isinstance(runtime, TensorRt) and planner is not None:
            runtime = Planned(runtime, bundle, planner, alone=number == len(entries))
        rungs.append(Rung(entry.kind, runtime))
    return rungs


def resident(name: str, ladder: Ladder) -> Resident[Ladder]:
    """An engine as the device's ledger knows it; what it needs shows when it is loaded."""

    def load() -> Ladder:
        ladder.stand()
        return ladder

    return Resident(name, Need(), load, lambda loaded: loaded.need)


def _absence(name: str, residency: Residency[Ladder]) -> NoRung | None:
    """Why an engine does not stand; None: it does."""
    try:
        with residency.hold(name):
            return None
    except NoRung as error:
        return error


def _setup(section: EngineSection, ladder: Ladder, config: Config) -> Setup:
    return Setup(
        bundle=ladder.bundle,
        engine=ladder,
        outputs={entry.name: entry.construct(OUTPUTS) for entry in _outputs(section, config)},
        destinations=section.destinations,
        config_digest=config_digest(section, config),
        report_refusals=section.report_refusals,
        priority=section.priority,
        runtime=section.runtime.kind,
        shadow=section.mode == "shadow",
        computed=lambda: ladder.computation,
    )


def _outputs(section: EngineSection, config: Config) -> list[Entry]:
    by_name = {entry.name: entry for entry in config.outputs}
    return [by_name[name] for name in section.outputs]


def _digest(options: Mapping[str, object]) -> str:
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
