"""Who may call us: AE title and address together name a peer.

An AE title is a claim that any caller can make, so it never suffices: the address must be one
that the peer is known to call from.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.domain.peer import Peer

UNKNOWN_PEER = "unknown"
"""Under this name everybody is admitted where unknown callers are accepted."""

CALLING_NOT_RECOGNISED = (1, 1, 3)
"""Result, source and reason of the A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
CALLED_NOT_RECOGNISED = (1, 1, 7)
LIMIT_EXCEEDED = (2, 3, 2)
NO_REASON = (2, 1, 1)
"""Transient: the fault is ours."""

_REMEMBERED_S = 60.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Admission:
    """A peer's name, or why the caller is rejected."""

    peer: str = ""
    rejection: tuple[int, int, int] | None = None
    reason: str = ""


def resolve(name: str) -> Iterable[str]:
    """Every address of a host name; none when it has none or the name server is silent."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return ()


def parse_address(text: str) -> Address | None:
    """An IP address, with IPv4 unwrapped from IPv6 as dual-stack sockets give it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


class AllowList:
    """The peers that may call. Safe to use from several threads."""

    def __init__(
        self,
        ae_title: str,
        peers: Iterable[Peer],
        clock: Callable[[], float],
        resolver: Resolve = resolve,
        accept_unknown: bool = False,
    ) -> None:
        """``ae_title`` is ours; ``clock`` gives seconds and only moves forward."""
        self._ae_title = ae_title.strip()
        self._peers = tuple(peers)
        self._clock = clock
        self._resolver = resolver
        self._accept_unknown = accept_unknown
        self._lock = threading.Lock()
        self._resolved: dict[str, tuple[float, frozenset[Address]]] = {}

    def admit(self, calling_ae: str, called_ae: str, address: str) -> Admission:
        """Whether a caller is let in, and as which peer. Spaces around AE titles do not count."""
        titled = [peer for peer in self._peers if peer.ae_title.strip() == calling_ae.strip()]
        if called_ae.strip() != self._ae_title and not self._accept_unknown:
            return Admission(
                rejection=CALLED_NOT_RECOGNISED,
                reason=f"it calls another AE title than ours: set {self._ae_title} at the caller",
            )
        for peer in titled:
            if self._calls_from(peer, address):
                return Admission(peer.name)
        if self._accept_unknown:
            return Admission(UNKNOWN_PEER)
        return Admission(rejection=CALLING_NOT_RECOGNISED, reason=_advice(titled))

    def _calls_from(self, peer: Peer, address: str) -> bool:
        caller = parse_address(address)
        entries = peer.hosts or ((peer.host,) if peer.host else ())
        return caller is not None and any(self._covers(entry, caller) for entry in entries)

    def _covers(self, entry: str, caller: Address) -> bool:
        try:
            return caller in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return caller in self._addresses(entry)

    def _addresses(self, name: str) -> frozenset[Address]:
        """The addresses of a name, asked at most once a minute.

        A name server that fails for a while does not lock out a peer that it named before.
        """
        with self._lock:
            until, known = self._resolved.get(name, (0.0, frozenset()))
            if self._clock() < until:
                return known
        parsed = map(parse_address, self._resolver(name))
        found = frozenset(address for address in parsed if address) or known
        with self._lock:
            self._resolved[name] = (self._clock() + _REMEMBERED_S, found)
        return found


def _advice(titled: list[Peer]) -> str:
    if not titled:
        return "no peer has this AE title: add a [[peer]] for it"
    names = ", ".join(peer.name for peer in titled)
    return f"the address is none of {names}: add it to the peer's hosts"
