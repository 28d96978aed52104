"""The frame of the configuration: one TOML file says everything that a node does.

The frame knows the node, its peers and its budgets. What belongs to a family (triggers, outputs,
destinations, runtimes) it keeps as entries, tables as they were read; ``construct`` turns one into
its member where the family is known. So no import runs upwards and no kind is listed here.
``config/node.toml`` shows every key with its unit and default; a test sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from node.document import Document, Table, Where, parse, read
from node.domain.peer import CREDENTIAL, Network, Peer
from node.rules import rows, rule_faults
from node.sections import (
    STRICT,
    AuditSection,
    DeliverySection,
    InferenceSection,
    JobsSection,
    LoggingSection,
    NetworkSection,
    NodeSection,
    RetentionSection,
    ScpSection,
    TlsSection,
)
from node.tables import build, construct, gather

__all__ = [
    "AuditSection",
    "Config",
    "DeliverySection",
    "Document",
    "EngineSection",
    "Entry",
    "InferenceSection",
    "JobsSection",
    "LoggingSection",
    "NetworkSection",
    "NodeSection",
    "Registries",
    "RetentionSection",
    "ScpSection",
    "Table",
    "TlsSection",
    "Where",
    "build",
    "check",
    "construct",
    "find",
    "frame",
    "gather",
    "load",
    "located_package",
    "parse",
    "read",
]

T = TypeVar("T")

Registries = Mapping[str, Mapping[str, type[object]]]
"""Family ("trigger", "output", "destination", "runtime") -> kind -> member."""

ENVIRONMENT = "AI_NODE_CONFIG"
"""The one environment variable that steers the node: the path of the configuration."""

SYSTEM_PLACE = Path("/etc/ai-node/node.toml")


@dataclass(frozen=True, slots=True)
class Entry:
    """One table of a family, as it was read.

    ``kind`` is a key of the family's registry, ``name`` is how the rest of the file calls the
    entry (its kind where it has no name), and ``table`` has the other keys.
    """

    kind: str
    name: str = ""
    table: Table = field(default_factory=dict)
    where: Where = field(default=Where(), repr=False, compare=False)

    def construct(self, registry: Mapping[str, type[T]]) -> T:
        """The member of the family. Raises ConfigError with every wrong key."""
        return construct(registry, {**self.table, "kind": self.kind}, self.where)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validated as a table of which the frame reads two keys; the member reads the others."""
        return core_schema.no_info_after_validator_function(_entry, handler(_EntryTable))


class _EntryTable(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    kind: str
    name: NotRequired[Annotated[str, Field(min_length=1)]]


def _entry(table: Mapping[str, Any]) -> Entry:
    rest = {key: value for key, value in table.items() if key not in ("kind", "name")}
    return Entry(table["kind"], table.get("name", table["kind"]), rest)


@dataclass(frozen=True, slots=True)
class EngineSection:
    """One engine at work: what it makes, where that goes, what computes it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    package: Annotated[str, Field(min_length=1)]
    """The name of a shipped engine, or the path of an engine folder (it has a slash)."""
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the outputs to make, in this order."""
    destinations: tuple[str, ...] = ()
    """Names of the destinations; none: results stay in the state folder."""
    runtime: Entry = Entry("onnx", "onnx")
    """What computes the network."""
    fallback: tuple[Entry, ...] = ()
    """What computes it where ``runtime`` cannot, or is not verified; in this order."""
    mode: Literal["live", "shadow"] = "live"
    """live: results go to the destinations. shadow: they are made and kept, and none is sent."""
    report_refusals: bool = False
    """Whether a study that the engine cannot assess gets a report that says why."""
    enabled: bool = True
    """Whether the engine runs."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """The higher runs first; a study that was ordered as STAT comes before every other."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. Arrays of tables have singular names in TOML: ``[[peer]]``."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    node: NodeSection = NodeSection()
    scp: ScpSection = ScpSection()
    network: NetworkSection = NetworkSection()
    jobs: JobsSection = JobsSection()
    inference: InferenceSection = InferenceSection()
    delivery: DeliverySection = DeliverySection()
    retention: RetentionSection = RetentionSection()
    logging: LoggingSection = LoggingSection()
    audit: AuditSection = AuditSection()
    peers: Annotated[tuple[Peer, ...], Field(alias="peer")] = ()
    triggers: Annotated[tuple[Entry, ...], Field(alias="trigger")] = (Entry("push", "push"),)
    outputs: Annotated[tuple[Entry, ...], Field(alias="output")] = ()
    destinations: Annotated[tuple[Entry, ...], Field(alias="destination")] = ()
    engines: Annotated[tuple[EngineSection, ...], Field(alias="engine")] = ()

    @property
    def known_network(self) -> Network:
        """Ourselves and the peers by name, for whoever calls one."""
        return Network(
            self.node.ae_title,
            {peer.name: peer for peer in self.peers},
            self.network.connect_timeout_s,
            self.network.answer_timeout_s,
            self.scp.tls.identity if self.scp.tls is not None else None,
        )


def find(given: Path | None, environment: Mapping[str, str]) -> Path:
    """The configuration to read: as given, else ``AI_NODE_CONFIG``, else the system's, else
    ``node.toml`` in the working directory."""
    if given is not None:
        return given
    if environment.get(ENVIRONMENT):
        return Path(environment[ENVIRONMENT])
    return SYSTEM_PLACE if SYSTEM_PLACE.exists() else Path("node.toml")


def load(path: Path) -> Config:
    """Read a configuration. Raises ConfigError with every wrong key of the frame."""
    return frame(read(path))


def frame(document: Document) -> Config:
    """The frame of a document; relative paths in it start at the file's folder.

    Raises ConfigError with every wrong key of the frame.
    """
    attempt = partial(build, Config, document.table, document.where)
    (config,) = gather([attempt], rule_faults(document))
    return _placed(config, document.where)


def check(document: Document, registries: Registries) -> Config:
    """The frame, once every entry of every family has been built as well.

    Raises ConfigError with every wrong key of the whole file.
    """
    members = [
        partial(construct, registries[family], table, where)
        for family, table, where in _entries(document)
    ]
    attempts: list[Callable[[], object]] = [*members, partial(frame, document)]
    gather(attempts)
    return frame(document)


def _entries(document: Document) -> Iterator[tuple[str, Table, Where]]:
    """Every table of a family that is shaped like one, with its family and place."""
    for family in ("trigger", "output", "destination"):
        for table, where in rows(document, family):
            yield family, {key: value for key, value in table.items() if key != "name"}, where
    for engine, where in rows(document, "engine"):
        runtime = engine.get("runtime")
        if isinstance(runtime, dict):
            yield "runtime", runtime, where.at("runtime")
        fallback = engine.get("fallback")
        for index, table in enumerate(fallback if isinstance(fallback, list) else ()):
            if isinstance(table, dict):
                yield "runtime", table, where.at("fallback").item(index)


def _placed(config: Config, where: Where) -> Config:
    """The entries with their places in the file, and paths that no longer depend on ours."""
    state = Path(where.file).absolute().parent / config.node.state
    return replace(
        config,
        node=replace(config.node, state=state),
        scp=_scp_at(config.scp, Path(where.file).absolute().parent),
        audit=_audit_at(config.audit, Path(where.file).absolute().parent),
        triggers=_entries_at(config.triggers, where.at("trigger")),
        outputs=_entries_at(config.outputs, where.at("output")),
        destinations=_entries_at(config.destinations, where.at("destination")),
        engines=tuple(
            _engine_at(engine, where.at("engine").item(index))
            for index, engine in enumerate(config.engines)
        ),
    )


def _scp_at(section: ScpSection, folder: Path) -> ScpSection:
    if section.tls is None:
        return section
    placed = replace(
        section.tls,
        certificate=_file_at(section.tls.certificate, folder),
        key=_file_at(section.tls.key, folder),
        ca=_file_at(section.tls.ca, folder),
    )
    return replace(section, tls=placed)


def _file_at(path: str, folder: Path) -> str:
    return path if path.startswith(CREDENTIAL) else str(folder / path)


def _audit_at(section: AuditSection, folder: Path) -> AuditSection:
    places = {name: getattr(section, name) for name in ("ca", "cert", "key")}
    return replace(section, **{name: folder / path for name, path in places.items() if path})


def _entries_at(entries: tuple[Entry, ...], where: Where) -> tuple[Entry, ...]:
    return tuple(replace(entry, where=where.item(index)) for index, entry in enumerate(entries))


def _engine_at(engine: EngineSection, where: Where) -> EngineSection:
    return replace(
        engine,
        package=located_package(engine.package, where),
        runtime=replace(engine.runtime, where=where.at("runtime")),
        fallback=_entries_at(engine.fallback, where.at("fallback")),
    )


def located_package(package: str, where: Where) -> str:
    """An engine's name as it is; the path of one (it has a slash) from the file's folder."""
    return str(Path(where.file).absolute().parent / package) if "/" in package else package
