"""The DICOM nodes that we talk to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

CREDENTIAL = "credential:"
"""A path that begins so is the name of a credential of the service (systemd LoadCredential=)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One DICOM application entity.

    ``host`` and ``port`` are where it accepts associations (port 0: it never does, e.g. a
    scanner). ``hosts`` are the addresses from which it may call: names, addresses or networks in
    CIDR form; empty means ``host`` alone. The quiet period and the deadline overrule those of the
    push trigger for studies that this peer sends; seconds. ``tls``: its port takes nothing else.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    ae_title: str
    host: str = ""
    port: int = 0
    hosts: tuple[str, ...] = ()
    quiet_period_s: float | None = None
    deadline_s: float | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are in TLS, and whose word we take: PEM files, or ``credential:NAME``.

    ``ca`` are the authorities that sign our peers' certificates.
    """

    certificate: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class Network:
    """How we present ourselves, and whom we know by name. Times in seconds.

    Without an ``identity`` no peer with ``tls`` can be called.
    """

    ae_title: str
    peers: Mapping[str, Peer] = field(default_factory=dict)
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 60.0
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a destination said of one object.

    ``status`` is the DIMSE status (0 where the destination has none). ``accepted`` is final;
    otherwise ``retryable`` says whether another try can help, and ``reason`` says why not.
    """

    sop_instance_uid: str
    accepted: bool
    status: int = 0
    reason: str = ""
    retryable: bool = False
