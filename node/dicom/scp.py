"""The receiver: answers C-ECHO and C-STORE of those who may call.

A data set is never parsed here. Its bytes go to ``keep`` as they came, and only when ``keep``
returns, which means that they are durable, is the sender told 0x0000. Left to its own, pynetdicom
would also answer success when an object's SOP class is not that of its presentation context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import cast
from weakref import WeakKeyDictionary

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import ThreadedAssociationServer

from node.dicom import contexts, statuses
from node.dicom.admission import LIMIT_EXCEEDED, Admission, AllowList
from node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from node.dicom.wire import MAXIMUM_PDU, is_uid, reject, tuning
from node.domain.errors import NodeError, SpoolError
from node.domain.peer import Peer

log = structlog.get_logger()

_COMMENT_LENGTH = 64  # Error Comment (0000,0902) is LO


@dataclass(frozen=True, slots=True)
class ScpOptions:
    """How the receiver listens. Times in seconds; port 0 takes a free one."""

    ae_title: str
    bind: str
    port: int
    maximum_associations: int = 20
    maximum_pdu: int = MAXIMUM_PDU
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 60.0
    network_timeout_s: float = 60.0
    accept_unknown: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One object as it came over the wire.

    ``dataset`` are the bytes of the data set in its transfer syntax, without group 2. The UIDs
    are the command's (PS3.7 9.3.1.1): they are digits and dots, but nobody has compared them with
    the data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str
    calling_ae: str
    called_ae: str
    address: str
    dataset: bytes | memoryview


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

Observe = Callable[[Outcome], object]
"""Told of every requested association, in the association's own thread."""


def _nobody(outcome: Outcome) -> None:
    """The Observe of a receiver that nobody watches."""


class Scp:
    """The storage server. ``start`` and ``stop`` once each; ``port`` is known after ``start``."""

    def __init__(
        self, options: ScpOptions, peers: Iterable[Peer], keep: Keep, observe: Observe = _nobody
    ) -> None:
        """``keep`` and ``observe`` are called from several threads at the same time."""
        self._options = options
        self._keep = keep
        self._observe = observe
        self._allowed = AllowList(
            options.ae_title, peers, time.monotonic, accept_unknown=options.accept_unknown
        )
        self._callers: WeakKeyDictionary[Association, Outcome] = WeakKeyDictionary()
        self._ae = _application_entity(options)
        self._server: ThreadedAssociationServer | None = None

    @property
    def port(self) -> int:
        """The port that we listen on; the configured one before ``start``."""
        return self._server.server_address[1] if self._server else self._options.port

    def start(self) -> None:
        """Listen, in threads of its own. Raises OSError when the address is taken."""
        options = self._options
        self._server = self._ae.start_server(
            (options.bind, options.port),
            block=False,
            # Only what needs no admission: the rest is offered when a caller has been admitted,
            # so a caller that was never looked at can store nothing.
            contexts=[contexts.plain(contexts.VERIFICATION)],
            evt_handlers=[
                tuning(options.network_timeout_s),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
            ],
        )
        log.info("receiver listens", ae_title=options.ae_title, bind=options.bind, port=self.port)

    def stop(self) -> None:
        """Take no more associations and abort the open ones; unanswered objects come again."""
        if self._server is not None:
            self._server.shutdown()
            self._ae.shutdown()
            self._server = None

    def _on_requested(self, event: Event) -> None:
        association = event.assoc
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = association.requestor.address
        admission = self._admission(calling, called, address)
        outcome = Outcome(calling, called, address, admission.peer, admission.reason)
        try:
            self._tell(outcome)
        finally:
            if admission.rejection is not None:
                reject(association, *admission.rejection)
        if admission.rejection is None:
            self._callers[association] = outcome
            association.acceptor.supported_contexts = contexts.acceptable(
                request.presentation_context_definition_list
            )

    def _admission(self, calling: str, called: str, address: str) -> Admission:
        admission = self._allowed.admit(calling, called, address)
        most = self._options.maximum_associations
        if admission.rejection is None and len(self._ae.active_associations) > most:
            reason = f"{most} associations are open (maximum_associations): it may try again"
            return Admission(admission.peer, LIMIT_EXCEEDED, reason)
        return admission

    def _tell(self, outcome: Outcome) -> None:
        if not outcome.accepted:
            log.warning("association rejected", **asdict(outcome))
        self._observe(outcome)

    def _on_echo(self, event: Event) -> int:
        # A C-STORE that names the Verification class comes here too; it must not read success.
        return statuses.SUCCESS if isinstance(event.request, C_ECHO) else 0x0211

    def _on_store(self, event: Event) -> int | Dataset:
        caller = self._callers.get(event.assoc)
        if caller is None:
            return _answer(statuses.NOT_AUTHORISED, "caller was not admitted")
        request = cast(C_STORE, event.request)
        received = _received(request, caller, event.context.transfer_syntax)
        refusal = _refusal(received, str(event.context.abstract_syntax))
        return refusal or self._kept(received)

    def _kept(self, received: Received) -> int | Dataset:
        try:
            self._keep(received)
        except NodeError as error:
            full = isinstance(error, SpoolError)
            status = statuses.OUT_OF_RESOURCES if full else statuses.CANNOT_UNDERSTAND
            log.error(
                "object not kept", peer=received.peer, status=f"{status:#06x}", error=str(error)
            )
            return _answer(status, str(error))
        except Exception:
            # pynetdicom turns it into 0xC211, and says so where nobody listens.
            log.exception("object not kept: a programming error", peer=received.peer)
            raise
        return statuses.SUCCESS


def _application_entity(options: ScpOptions) -> AE:
    entity = AE(options.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    # Ours is the limit that counts, because it tells; the library's is a second net.
    entity.maximum_associations = options.maximum_associations
    entity.maximum_pdu_size = options.maximum_pdu
    entity.acse_timeout = options.acse_timeout_s
    entity.dimse_timeout = options.dimse_timeout_s
    entity.network_timeout = options.network_timeout_s
    return entity


def _received(request: C_STORE, caller: Outcome, transfer_syntax_uid: str) -> Received:
    return Received(
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(transfer_syntax_uid),
        peer=caller.peer,
        calling_ae=caller.calling_ae,
        called_ae=caller.called_ae,
        address=caller.address,
        dataset=request.DataSet.getvalue() if request.DataSet else b"",
    )


def _refusal(received: Received, abstract_syntax_uid: str) -> Dataset | None:
    """Why an object is not even kept, as far as the command alone can tell."""
    if received.sop_class_uid != abstract_syntax_uid:
        return _answer(
            statuses.CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
        )
    if not is_uid(received.sop_instance_uid):
        return _answer(statuses.INVALID_INSTANCE, "SOP Instance UID is not digits and dots")
    if not received.dataset:
        return _answer(statuses.CANNOT_UNDERSTAND, "data set is empty")
    return None


def _answer(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    plain = comment.encode("ascii", "replace").decode().replace("\\", "/")
    answer.ErrorComment = " ".join(plain.split())[:_COMMENT_LENGTH]
    return answer
