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

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from node.document import Document, Table, Where, parse, read
from node.domain.job import BackOff
from node.domain.peer import Network, Peer
from node.rules import ae_title_reason, rows, rule_faults
from node.tables import build, construct, gather

__all__ = [
    "Config",
    "DeliverySection",
    "Document",
    "EngineSection",
    "Entry",
    "JobsSection",
    "LoggingSection",
    "NetworkSection",
    "NodeSection",
    "Registries",
    "ScpSection",
    "Table",
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

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _legal_ae_title(title: str) -> str:
    reason = ae_title_reason(title)
    if reason:
        raise ValueError(reason)
    return title


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
class NodeSection:
    """Who this node is, and where it keeps what it must not lose."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    ae_title: Annotated[str, AfterValidator(_legal_ae_title)] = "AINODE"
    """The AE title that we answer to and call with; 1 to 16 characters."""
    state: Path = Path("/var/lib/ai-node")
    """Folder of the spool, the ledger and the results; relative to the configuration file."""


@dataclass(frozen=True, slots=True)
class ScpSection:
    """The receiver: what accepts associations."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    bind: str = "0.0.0.0"  # noqa: S104 - a receiver is there to be reached; callers are checked
    """Address to listen on; 0.0.0.0 is every IPv4 address of the machine."""
    port: Port = 11112
    """TCP port; 0 lets the system choose one."""
    maximum_associations: Annotated[int, Field(ge=1)] = 20
    """Associations at the same time; one more is rejected as transient (PS3.8 9.3.4)."""
    maximum_pdu: Annotated[int, Field(ge=4096, le=1 << 24)] = 131072
    """Longest P-DATA-TF PDU that we take, in bytes (PS3.8 D.1)."""
    acse_timeout_s: Seconds = 30.0
    """Longest wait for an association request or release, in seconds."""
    dimse_timeout_s: Seconds = 60.0
    """Longest wait for the next DIMSE message, in seconds."""
    network_timeout_s: Seconds = 60.0
    """Longest silence on an open association, in seconds."""
    accept_unknown: bool = False
    """Whether callers that are no peers may store too. For a trial on a closed network only."""


@dataclass(frozen=True, slots=True)
class NetworkSection:
    """The node as a caller."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    connect_timeout_s: Seconds = 10.0
    """Longest wait for a peer to accept a connection, in seconds."""
    answer_timeout_s: Seconds = 60.0
    """Longest wait for a peer's answer to a request, in seconds."""


@dataclass(frozen=True, slots=True)
class JobsSection:
    """How often an engine may fail on one study."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    attempts: Annotated[int, Field(ge=1)] = 3
    """Runs of one job before it is given up."""
    first_retry_s: Seconds = 30.0
    """Wait after the first failed run, in seconds; it doubles with each."""
    longest_retry_s: Seconds = 900.0
    """Longest wait between two runs, in seconds."""

    @property
    def back_off(self) -> BackOff:
        """The waits between runs."""
        return BackOff(self.first_retry_s, 2.0, self.longest_retry_s)


@dataclass(frozen=True, slots=True)
class DeliverySection:
    """How long a result waits for a destination that does not answer."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    attempts: Annotated[int, Field(ge=0)] = 0
    """Tries before a delivery is given up; 0 never gives up."""
    first_retry_s: Seconds = 5.0
    """Wait after the first failed try, in seconds."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """By what each further wait is longer."""
    longest_retry_s: Seconds = 900.0
    """Longest wait between two tries, in seconds."""

    @property
    def back_off(self) -> BackOff:
        """The waits between tries."""
        return BackOff(self.first_retry_s, self.factor, self.longest_retry_s)


@dataclass(frozen=True, slots=True)
class LoggingSection:
    """What the node writes to standard error."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, JSON lines elsewhere."""


@dataclass(frozen=True, slots=True)
class EngineSection:
    """One engine at work: what it makes, where that goes, what computes it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    package: Annotated[str, Field(min_length=1)]
    """The name of a shipped engine, or the path of an engine folder (it has a slash)."""
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the outputs to make, in this order."""
    destinations: tuple[str, ...] = ()
    """Names of the destinations; none: results stay in the state folder."""
    runtime: Entry = Entry("onnx", "onnx")
    """What computes the network."""
    report_refusals: bool = False
    """Whether a study that the engine cannot assess gets a report that says why."""
    enabled: bool = True
    """Whether the engine runs."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. Arrays of tables have singular names in TOML: ``[[peer]]``."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    node: NodeSection = NodeSection()
    scp: ScpSection = ScpSection()
    network: NetworkSection = NetworkSection()
    jobs: JobsSection = JobsSection()
    delivery: DeliverySection = DeliverySection()
    logging: LoggingSection = LoggingSection()
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


def _placed(config: Config, where: Where) -> Config:
    """The entries with their places in the file, and paths that no longer depend on ours."""
    state = Path(where.file).absolute().parent / config.node.state
    return replace(
        config,
        node=replace(config.node, state=state),
        triggers=_entries_at(config.triggers, where.at("trigger")),
        outputs=_entries_at(config.outputs, where.at("output")),
        destinations=_entries_at(config.destinations, where.at("destination")),
        engines=tuple(
            _engine_at(engine, where.at("engine").item(index))
            for index, engine in enumerate(config.engines)
        ),
    )


def _entries_at(entries: tuple[Entry, ...], where: Where) -> tuple[Entry, ...]:
    return tuple(replace(entry, where=where.item(index)) for index, entry in enumerate(entries))


def _engine_at(engine: EngineSection, where: Where) -> EngineSection:
    return replace(
        engine,
        package=located_package(engine.package, where),
        runtime=replace(engine.runtime, where=where.at("runtime")),
    )


def located_package(package: str, where: Where) -> str:
    """An engine's name as it is; the path of one (it has a slash) from the file's folder."""
    return str(Path(where.file).absolute().parent / package) if "/" in package else package
