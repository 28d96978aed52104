"""The tables of the configuration that say what one part of the node may do, and for how long.

Every field is a key of the TOML file, with its unit and meaning below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from node.domain.job import BackOff
from node.domain.peer import Identity
from node.domain.quiet import QuietHours
from node.rules import ae_title_reason

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""No unknown keys, and no number that is none."""

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _legal_ae_title(title: str) -> str:
    reason = ae_title_reason(title)
    if reason:
        raise ValueError(reason)
    return title


@dataclass(frozen=True, slots=True)
class NodeSection:
    """Who this node is, and where it keeps what it must not lose."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    ae_title: Annotated[str, AfterValidator(_legal_ae_title)] = "AINODE"
    """The AE title that we answer to and call with; 1 to 16 characters."""
    state: Path = Path("/var/lib/ai-node")
    """Folder of the spool, the ledger and the results; relative to the configuration file."""


@dataclass(frozen=True, slots=True)
class TlsSection:
    """TLS with certificates of both ends, in version 1.2 or 1.3. Files are PEM.

    They are read again when they change. The same certificate is shown to peers with ``tls``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    certificate: Annotated[str, Field(min_length=1)]
    """Our certificate with its chain; ``credential:NAME`` is a credential of the service."""
    key: Annotated[str, Field(min_length=1)]
    """Its private key, without a password; ``credential:NAME`` is a credential of the service."""
    ca: Annotated[str, Field(min_length=1)]
    """The authorities whose certificates we take, or ``credential:NAME``."""
    port: Port = 2762
    """TCP port for TLS; 0 lets the system choose one."""
    required: bool = True
    """Whether the port without TLS is then open to this machine only."""

    @property
    def identity(self) -> Identity:
        """What the network is told of it."""
        return Identity(self.certificate, self.key, self.ca)


@dataclass(frozen=True, slots=True)
class ScpSection:
    """The receiver: what accepts associations."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
    pdu_timeout_s: Seconds = 30.0
    """Longest time from the first byte of a PDU to its last, in seconds."""
    message_timeout_s: Seconds = 300.0
    """Longest time for one object to arrive, in seconds."""
    minimum_rate_kb: Annotated[int, Field(ge=1)] = 64
    """Thousand bytes a second that an object must come with, once ten seconds have passed."""
    maximum_object_mb: Annotated[int, Field(ge=1)] = 4096
    """Longest data set that is taken, in 10^6 bytes; a longer one is aborted."""
    watermark_mb: Annotated[int, Field(ge=0)] = 2048
    """Free space on the disk below which objects are refused as out of resources, in 10^6 bytes."""
    maximum_connections: Annotated[int, Field(ge=4)] = 128
    """TCP connections at the same time, associations among them."""
    maximum_connections_per_address: Annotated[int, Field(ge=2)] = 64
    """Those of one address; the oldest without an association makes room for a new one."""
    tls: TlsSection | None = None
    """A second port for TLS; without this table there is none."""


@dataclass(frozen=True, slots=True)
class NetworkSection:
    """The node as a caller."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    connect_timeout_s: Seconds = 10.0
    """Longest wait for a peer to accept a connection, in seconds."""
    answer_timeout_s: Seconds = 60.0
    """Longest wait for a peer's answer to a request, in seconds."""


@dataclass(frozen=True, slots=True)
class JobsSection:
    """How often an engine may fail on one study."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    attempts: Annotated[int, Field(ge=1)] = 3
    """Runs of one job before it is given up."""
    first_retry_s: Seconds = 30.0
    """Wait after the first failed run, in seconds; it doubles with each."""
    longest_retry_s: Seconds = 900.0
    """Longest wait between two runs, in seconds."""
    deadline_s: Annotated[float, Field(ge=0)] = 0.0
    """Longest wait before a job is begun, in seconds; later it is given up. 0: no limit."""
    late_instances: Literal["supersede", "hold", "ignore"] = "supersede"
    """When instances come after a study was assessed: supersede the results, hold or ignore."""
    reconcile_days: Annotated[float, Field(ge=0)] = 1.0
    """How long ago a study may be complete that is still given a job that it lacks, in days."""
    timeout_s: Seconds = 3600.0
    """Longest run of one job, in seconds; a worker that takes longer is ended and started anew."""
    memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Address space that a worker process may take, in GB; 0: three quarters of the memory, or any
    where an engine may run on a GPU."""

    @property
    def back_off(self) -> BackOff:
        """The waits between runs."""
        return BackOff(self.first_retry_s, 2.0, self.longest_retry_s)


def _legal_hours(text: str) -> str:
    if text:
        QuietHours.read(text)
    return text


@dataclass(frozen=True, slots=True)
class InferenceSection:
    """What holds for every engine: when networks are verified and compiled, and in what space."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    verify_every_h: Annotated[float, Field(ge=0)] = 24.0
    """Hours after which a network that serves is verified again; 0: only when it is another, or
    what computes it is. The first study after that waits for it."""
    plan_cache_gb: Annotated[float, Field(gt=0)] = 20.0
    """Space for networks compiled for a device, in 10^9 bytes; those used least lately go first."""
    build_hours: Annotated[str, AfterValidator(_legal_hours)] = "22:00-06:00"
    """Hours of the day, local time, in which networks are compiled; empty: at any time."""
    device_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Memory of the device that engines may take, in 10^9 bytes; 0: nine tenths of it."""

    @property
    def quiet_hours(self) -> QuietHours | None:
        """When networks are compiled; None: at any time."""
        return QuietHours.read(self.build_hours) if self.build_hours else None


@dataclass(frozen=True, slots=True)
class DeliverySection:
    """How long a result waits for a destination that does not answer."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    attempts: Annotated[int, Field(ge=0)] = 0
    """Tries before a delivery is given up; 0 never gives up."""
    first_retry_s: Seconds = 5.0
    """Wait after the first failed try, in seconds."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """By what each further wait is longer."""
    longest_retry_s: Seconds = 900.0
    """Longest wait between two tries, in seconds."""
    trip_after: Annotated[int, Field(ge=1)] = 3
    """Failures in a row after which a destination is only asked by C-ECHO until it answers."""

    @property
    def back_off(self) -> BackOff:
        """The waits between tries."""
        return BackOff(self.first_retry_s, self.factor, self.longest_retry_s)


@dataclass(frozen=True, slots=True)
class RetentionSection:
    """How long the bytes of finished studies stay. What is not finished with always stays."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    days: Annotated[float, Field(ge=0)] = 7.0
    """Days after the last that happened to a study; 0: age alone removes nothing."""
    free_gb: Annotated[float, Field(ge=0)] = 10.0
    """Free space to keep on the disk of the state folder, in 10^9 bytes."""
    maximum_gb: Annotated[float, Field(ge=0)] = 0.0
    """Space that studies and results may take, in 10^9 bytes; 0: whatever there is."""


@dataclass(frozen=True, slots=True)
class LoggingSection:
    """What the node writes to standard error."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""
    format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, JSON lines elsewhere."""


def _legal_syslog(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("udp", "tcp", "tls") or not parts.hostname or parts.path):
        raise ValueError("expected udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    _ = parts.port  # raises ValueError where it is no number up to 65535
    return url


@dataclass(frozen=True, slots=True)
class AuditSection:
    """DICOM audit messages to the hospital's audit repository (PS3.15 A.5, IHE ATNA)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    syslog: Annotated[str, AfterValidator(_legal_syslog)] = ""
    """Where the messages go: udp://HOST:PORT, tcp:// or tls://; empty: nowhere.

    Without a port: 514, 601 or 6514.
    """
    application: Annotated[str, Field(min_length=1, max_length=48)] = "ai-node"
    """The audit source's id and the syslog application name; at most 48 characters."""
    ca: Path | None = None
    """Certificates that tls:// trusts, as PEM; without it, those of the system."""
    cert: Path | None = None
    """Our certificate for tls://, as PEM; without it, we show none."""
    key: Path | None = None
    """Its private key, as PEM; without it, the key is in the file of the certificate."""
    include_patient_id: bool = False
    """Whether the messages name the Patient ID. Otherwise it is withheld."""
