"""The receiver: answers C-ECHO and C-STORE of those who may call.

A data set is never parsed here, only looked at within a bound. Its bytes go to where they are kept
as they come, and only when that says that they are durable is the sender told 0x0000.

One process, one thread per association. A thread waits in the kernel and hands its bytes on in
system calls that free the interpreter. Processes would not wait for one another's Python, but could
not share the limits on connections, and forking is unsafe beside the thread that notes events.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node.dicom import contexts, statuses
from node.dicom.acceptor import Acceptor, House, caller_of, proposed_by
from node.dicom.admission import LIMIT_EXCEEDED, NO_REASON, Admission, AllowList
from node.dicom.commitment import STORAGE_COMMITMENT, on_event_report
from node.dicom.lobby import Limits, Lobby
from node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from node.dicom.reactor import Patience
from node.dicom.server import Caller, Server
from node.dicom.storing import Incoming, Offer, Storing
from node.dicom.tls import Renewed, server_context
from node.dicom.wire import MAXIMUM_PDU, reject
from node.domain.errors import SpoolError
from node.domain.peer import Identity, Peer
from node.domain.proof import CommitmentReport

log = structlog.get_logger()

_STOP_S = 5.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class TlsPort:
    """A second port, on which both ends show a certificate.

    ``required``: the other port is then open to this machine only.
    """

    identity: Identity
    port: int = 2762
    required: bool = True


@dataclass(frozen=True, slots=True)
class ScpOptions:
    """How the receiver listens. Times in seconds, lengths in bytes; port 0 takes a free one.

    ``maximum_object`` is the longest data set, ``limits`` are those on connections, and
    ``message_timeout_s`` and ``minimum_rate`` bound how long one message may take.
    """

    ae_title: str
    bind: str
    port: int
    maximum_associations: int = 20
    maximum_pdu: int = MAXIMUM_PDU
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 60.0
    network_timeout_s: float = 60.0
    accept_unknown: bool = False
    maximum_object: int = 4 << 30
    pdu_timeout_s: float = 30.0
    message_timeout_s: float = 300.0
    minimum_rate: float = 65536.0
    handshake_timeout_s: float = 10.0
    limits: Limits = Limits()
    tls: TlsPort | None = None

    @property
    def patience(self) -> Patience:
        """How long an association is waited for."""
        return Patience(
            request_s=self.acse_timeout_s,
            silence_s=self.network_timeout_s,
            pause_s=self.dimse_timeout_s,
            pdu_s=self.pdu_timeout_s,
            message_s=self.message_timeout_s,
            rate=self.minimum_rate,
            handshake_s=self.handshake_timeout_s,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One object as it came over the wire.

    ``dataset`` are the bytes of the data set in its transfer syntax, without group 2; none yet
    where it is still to come. The UIDs are the command's (PS3.7 9.3.1.1).
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str
    calling_ae: str
    called_ae: str
    address: str
    dataset: bytes | memoryview = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a requested association. ``reason`` is empty when it was accepted."""

    calling_ae: str
    called_ae: str
    address: str
    peer: str
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the caller was let in."""
        return not self.reason


Keep = Callable[[Received], object]
"""Makes an object durable before it returns. Raises NodeError when it could not."""

Begin = Callable[[Received], Incoming]
"""Begins to keep an object whose data set is still to come. Raises NodeError when it cannot."""

KeepReport = Callable[[CommitmentReport], object]
"""Makes a storage commitment report durable before it returns. Raises SpoolError."""

Observe = Callable[[Outcome], object]
"""Told of every requested association, in the association's own thread."""


def _nobody(outcome: Outcome) -> None:
    """The Observe of a receiver that nobody watches."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where everything goes that a receiver is sent."""

    begin: Begin
    report: KeepReport | None = None
    """None: storage commitment reports are not taken."""


def whole(keep: Keep) -> Begin:
    """Collects each object in memory and gives it to ``keep`` at once."""
    return partial(_Whole, keep)


class Scp:
    """The storage server. ``start`` and ``stop`` once each; ``port`` is known after ``start``."""

    def __init__(
        self,
        options: ScpOptions,
        peers: Iterable[Peer],
        keep: Keep | Storage,
        observe: Observe = _nobody,
    ) -> None:
        """``keep`` and ``observe`` are called from several threads at the same time."""
        self._options = options
        self._storage = keep if isinstance(keep, Storage) else Storage(whole(keep))
        self._observe = observe
        self._allowed = AllowList(
            options.ae_title, peers, time.monotonic, accept_unknown=options.accept_unknown
        )
        self._lobby = Lobby(options.limits)
        self._callers: WeakKeyDictionary[Association, Outcome] = WeakKeyDictionary()
        self._ae = _application_entity(options)
        self._house = House(options.patience, options.maximum_pdu, self._storing)
        self._server: Server | None = None
        self._tls_server: Server | None = None

    @property
    def port(self) -> int:
        """The port that we listen on; the configured one before ``start``."""
        return self._server.server_address[1] if self._server else self._options.port

    @property
    def tls_port(self) -> int:
        """The port for TLS; 0 where there is none."""
        return self._tls_server.server_address[1] if self._tls_server else 0

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises OSError when an address is taken, ConfigError when a certificate cannot be used.
        """
        options, tls = self._options, self._options.tls
        secure = Renewed(tls.identity, server_context) if tls is not None else None
        only_here = tls is not None and tls.required
        bind = _LOOPBACK if only_here and not _is_loopback(options.bind) else options.bind
        self._server = self._listen(bind, options.port, self._house)
        if tls is not None and secure is not None:
            house = replace(self._house, tls=secure.current)
            self._tls_server = self._listen(options.bind, tls.port, house)

    def stop(self) -> None:
        """Take no more associations and abort the open ones; unanswered objects come again."""
        servers = [server for server in (self._server, self._tls_server) if server is not None]
        self._server = self._tls_server = None
        for server in servers:
            server.stop()
        for visit in self._lobby.close():
            visit.end()
        until = time.monotonic() + _STOP_S
        for acceptor in [a for server in servers for a in server.active_associations]:
            acceptor.join(max(until - time.monotonic(), 0.0))

    def _listen(self, bind: str, port: int, house: House) -> Server:
        server = self._ae.make_server(
            (bind, port),
            # Only what needs no admission: the rest is offered when a caller has been admitted,
            # so a caller that was never looked at can store nothing.
            contexts=[contexts.plain(contexts.VERIFICATION)],
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_N_EVENT_REPORT, self._on_report),
            ],
            server_class=Server,
            request_handler=Caller,
            house=house,
            lobby=self._lobby,
        )
        assert isinstance(server, Server)  # noqa: S101 - server_class says so
        threading.Thread(target=server.serve_forever, name=f"port {port}", daemon=True).start()
        return server

    def _on_requested(self, event: Event) -> None:
        association = event.assoc
        calling, called, address = caller_of(association)
        try:
            admission = self._admission(calling, called, address)
            outcome = Outcome(calling, called, address, admission.peer, admission.reason)
            self._tell(outcome)
        except Exception:
            # Whoever cannot be looked at or told of is not let in.
            log.exception("association rejected: a programming error", address=address)
            reject(association, *NO_REASON)
            return
        if admission.rejection is not None:
            reject(association, *admission.rejection)
            return
        self._callers[association] = outcome
        association.acceptor.supported_contexts = self._offered(proposed_by(association))

    def _offered(self, proposed: Iterable[PresentationContext]) -> list[PresentationContext]:
        services = [contexts.VERIFICATION]
        if self._storage.report is not None:
            services.append(STORAGE_COMMITMENT)
        offered = contexts.acceptable(proposed, services)
        for context in offered:
            if context.abstract_syntax == STORAGE_COMMITMENT:
                # An archive that calls us to report is the SCP of it (PS3.7 D.3.3.4).
                context.scu_role = context.scp_role = True
        return offered

    def _admission(self, calling: str, called: str, address: str) -> Admission:
        admission = self._allowed.admit(calling, called, address)
        most = self._options.maximum_associations
        if admission.rejection is None and self._lobby.seated >= most:
            reason = f"{most} associations are open (maximum_associations): it may try again"
            return Admission(admission.peer, LIMIT_EXCEEDED, reason)
        return admission

    def _tell(self, outcome: Outcome) -> None:
        if not outcome.accepted:
            log.warning("association rejected", **asdict(outcome))
        self._observe(outcome)

    def _on_echo(self, event: Event) -> int:
        # Another request that names the Verification class comes here too.
        echo = isinstance(event.request, C_ECHO)
        return statuses.SUCCESS if echo else statuses.UNRECOGNISED_OPERATION

    def _on_report(self, event: Event) -> tuple[int, None]:
        keep = self._storage.report
        if keep is None or event.assoc not in self._callers:
            return statuses.NOT_AUTHORISED, None
        return on_event_report(event, keep), None

    def _storing(self, association: Acceptor, offer: Offer) -> Storing:
        caller = self._callers.get(association)
        peer = caller.peer if caller is not None else ""
        begin = partial(self._begin, caller)
        return Storing(offer, begin, peer, self._options.maximum_object)

    def _begin(self, caller: Outcome | None, offer: Offer) -> Incoming:
        if caller is None:
            raise SpoolError("the caller was not admitted")
        return self._storage.begin(
            Received(
                sop_class_uid=offer.command.sop_class_uid,
                sop_instance_uid=offer.command.sop_instance_uid,
                transfer_syntax_uid=offer.transfer_syntax,
                peer=caller.peer,
                calling_ae=caller.calling_ae,
                called_ae=caller.called_ae,
                address=caller.address,
            )
        )


class _Whole:
    """An object that is collected in memory."""

    def __init__(self, keep: Keep, received: Received) -> None:
        self._keep = keep
        self._received = received
        self._content = bytearray()

    def write(self, fragment: memoryview) -> None:
        self._content += fragment

    @contextmanager
    def look(self) -> Iterator[memoryview]:
        with memoryview(self._content) as view, view.toreadonly() as content:
            yield content

    def finish(self) -> object:
        return self._keep(replace(self._received, dataset=bytes(self._content)))

    def discard(self) -> None:
        self._content.clear()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _application_entity(options: ScpOptions) -> AE:
    entity = AE(options.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    # Ours is the limit that counts, because it tells; the library's is a second net.
    entity.maximum_associations = options.limits.total
    entity.maximum_pdu_size = options.maximum_pdu
    entity.acse_timeout = options.acse_timeout_s
    entity.dimse_timeout = options.dimse_timeout_s
    entity.network_timeout = options.network_timeout_s
    return entity
