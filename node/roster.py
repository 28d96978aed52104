"""The engines of a configuration: their identities, and the loaded networks.

Whoever makes jobs needs to know which package would run; only a worker loads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from node import bundle as bundles
from node.bundle import Bundle
from node.config import Config, EngineSection, Entry
from node.engine import Engine
from node.outputs import OUTPUTS
from node.pipeline import Setup
from node.room import EngineIdentity
from node.runtimes import RUNTIMES


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


def setups(config: Config) -> dict[str, Setup]:
    """Every enabled engine of a configuration, loaded, by name. Raises NodeError."""
    return {
        bundle.manifest.engine.name: _setup(section, bundle, config)
        for section, bundle in _enabled(config)
    }


def config_digest(section: EngineSection, config: Config) -> str:
    """Whatever changes a result's content changes this; where it goes does not."""
    options = {
        "outputs": [
            [entry.name, entry.kind, dict(entry.table)] for entry in _outputs(section, config)
        ],
        "runtime": [section.runtime.kind, dict(section.runtime.table)],
        "report_refusals": section.report_refusals,
    }
    return _digest(options)


def _enabled(config: Config) -> Iterator[tuple[EngineSection, Bundle]]:
    for section in config.engines:
        if section.enabled:
            yield section, bundles.read(bundles.find(section.package))


def _setup(section: EngineSection, bundle: Bundle, config: Config) -> Setup:
    return Setup(
        bundle=bundle,
        engine=Engine.load(bundle, section.runtime.construct(RUNTIMES)),
        outputs={entry.name: entry.construct(OUTPUTS) for entry in _outputs(section, config)},
        destinations=section.destinations,
        config_digest=config_digest(section, config),
        report_refusals=section.report_refusals,
        priority=section.priority,
        runtime=section.runtime.kind,
    )


def _outputs(section: EngineSection, config: Config) -> list[Entry]:
    by_name = {entry.name: entry for entry in config.outputs}
    return [by_name[name] for name in section.outputs]


def _digest(options: Mapping[str, object]) -> str:
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
