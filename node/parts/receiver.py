"""The receiver: accepts associations and makes what they bring durable. Parses nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import structlog

from node import __version__
from node.audit import Notes
from node.config import ScpSection, TlsSection
from node.crew import Crew
from node.dicom import scu
from node.dicom.lobby import Limits
from node.dicom.scp import Outcome, Received, Scp, ScpOptions, Storage, TlsPort
from node.dicom.storing import Incoming
from node.domain.errors import ListenError, PeerError
from node.domain.event import EventKind
from node.domain.peer import Network, Peer
from node.domain.proof import CommitmentReport
from node.domain.stage import Stage
from node.loop import Loop
from node.site import Site
from node.spool import Arriving

_log = structlog.get_logger()

_SELF = "this node"
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_ECHO_TIMEOUT_S = 5.0
_MB = 1_000_000
_NOTES_S = 5.0
"""How often what is to be noted is entered: a flood of callers costs the ledger no more."""


class Receiver:
    """The open door."""

    def __init__(self, site: Site) -> None:
        """Nothing is opened before ``start``."""
        self._site = site
        self._ring = site.ring("gateway")
        config = site.config
        self._own = Peer(
            _SELF, config.node.ae_title, hosts=("127.0.0.0/8", "::1"), port=config.scp.port
        )
        peers = (*config.peers, self._own)
        self._notes = Notes(site.watcher.clock)
        self._scp = Scp(
            _options(config.node.ae_title, config.scp),
            peers,
            Storage(self._begin, self._keep_report),
            self._observe,
        )
        # The ledger is written beside the receiver, never in its way.
        self.crew = Crew({"notes": Loop("notes", self._enter_notes, self._soon, self._clock)})

    @property
    def port(self) -> int:
        """The port on which we listen (of interest where the configuration says 0)."""
        return self._scp.port

    def start(self) -> None:
        """Clear away what was never acknowledged, then open the door. Raises ListenError."""
        self._site.appear("receiver")
        self._notes.note(EventKind.STARTED, f"receiver {__version__}")
        swept = self._site.spool.sweep("incoming")
        self._site.watcher.reached(Stage.STARTED, "receiver")
        section = self._site.config.scp
        try:
            self._scp.start()
        except OSError as error:
            raise ListenError(
                f"cannot listen on {section.bind} port {section.port}: {error.strerror}; stop what "
                "listens there, or change [scp] port or bind (ports below 1024 are root's)"
            ) from error
        self.crew.start()
        _log.info("receiver started", port=self.port, swept=swept)

    def alive(self, now: float) -> bool:
        """Whether our own port answers a C-ECHO."""
        section = self._site.config.scp
        # Where TLS is required, the other port is open on this address only.
        only_here = section.tls is not None and section.tls.required
        host = "127.0.0.1" if only_here or section.bind in _EVERYWHERE else section.bind
        own = replace(self._own, host=host, port=self.port)
        network = Network(own.ae_title, {}, _ECHO_TIMEOUT_S, _ECHO_TIMEOUT_S)
        try:
            scu.echo(network, own)
        except PeerError as error:
            _log.error("receiver does not answer itself", error=str(error))
            return False
        return True

    def stop(self) -> None:
        """Close the door; open associations are aborted, and their senders send again."""
        self._scp.stop()
        self.crew.stop()
        self._notes.note(EventKind.STOPPED, f"receiver {__version__}")
        self._enter_notes()

    def _enter_notes(self) -> bool:
        self._notes.flush(self._site.config.node.state / "ledger.sqlite")
        return False

    def _soon(self) -> float:
        return self._clock() + _NOTES_S

    def _clock(self) -> float:
        return self._site.watcher.clock()

    def _observe(self, caller: Outcome) -> None:
        self._site.watcher.reached(Stage.ASSOCIATED, caller.peer)
        self._notes.observe(caller)

    def _keep_report(self, report: CommitmentReport) -> None:
        self._site.spool.keep_report(report)
        self._ring()

    def _begin(self, received: Received) -> Incoming:
        return _Rung(self._site.spool.begin(received), self._ring)


@dataclass(frozen=True, slots=True)
class _Rung:
    """An object while it arrives; once it is kept, whoever indexes it is rung for."""

    arriving: Arriving
    ring: Callable[[], None]

    def write(self, fragment: memoryview) -> None:
        self.arriving.write(fragment)

    def look(self) -> AbstractContextManager[memoryview]:
        return self.arriving.look()

    def finish(self) -> None:
        self.arriving.finish()
        self.ring()

    def discard(self) -> None:
        self.arriving.discard()


def _options(ae_title: str, section: ScpSection) -> ScpOptions:
    return ScpOptions(
        ae_title=ae_title,
        bind=section.bind,
        port=section.port,
        maximum_associations=section.maximum_associations,
        maximum_pdu=section.maximum_pdu,
        acse_timeout_s=section.acse_timeout_s,
        dimse_timeout_s=section.dimse_timeout_s,
        network_timeout_s=section.network_timeout_s,
        accept_unknown=section.accept_unknown,
        maximum_object=section.maximum_object_mb * _MB,
        pdu_timeout_s=section.pdu_timeout_s,
        message_timeout_s=section.message_timeout_s,
        minimum_rate=section.minimum_rate_kb * 1000.0,
        limits=Limits(section.maximum_connections, section.maximum_connections_per_address),
        tls=_tls_port(section.tls),
    )


def _tls_port(section: TlsSection | None) -> TlsPort | None:
    if section is None:
        return None
    return TlsPort(section.identity, section.port, section.required)
