"""One accepted association, from its connection to its end, in one thread of its own."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_RELEASE, P_DATA
from pynetdicom.presentation import PresentationContext

from node.dicom.command import Command, Malformed
from node.dicom.intake import Intake, Service
from node.dicom.line import Gone, Line, Overdue
from node.dicom.lobby import Visit
from node.dicom.reactor import Patience, Plug, Reactor
from node.dicom.storing import Offer, Storing

log = structlog.get_logger()

Keeping = Callable[["Acceptor", Offer], Storing]
"""Begins a C-STORE of an association."""


@dataclass(frozen=True, slots=True)
class House:
    """What all associations of a receiver share. ``tls``: the context, for the TLS port."""

    patience: Patience
    maximum_pdu: int
    keeping: Keeping
    tls: Callable[[], ssl.SSLContext] | None = None


class Acceptor(Association):
    """An association of pynetdicom's whose two threads are one, and which polls nothing.

    The library's service classes and negotiation work on it unchanged: what they send through
    ``dul.send_pdu`` is sent before that returns.
    """

    def __init__(self, entity: AE, line: Line, visit: Visit, house: House) -> None:
        """Not yet heard of; ``start`` begins to listen to the peer."""
        super().__init__(entity, MODE_ACCEPTOR)
        self._line = line
        self._visit = visit
        self._house = house
        self.reactor = Reactor(self, line, house.patience, house.maximum_pdu, self._take)
        self._intake = Intake(
            Service(self._store, self._other, self._answer), self.reactor.progress
        )
        self.dul = self.reactor
        self.set_socket(Plug(self, line, house.patience.pdu_s))
        # AE.active_associations finds its threads by this name.
        self.name = f"AcceptorThread@{visit.address}"

    def end(self) -> None:
        """Have the association aborted in its own thread. May be called by any."""
        self.reactor.stopping = True
        self._line.interrupt()

    def run_reactor(self) -> None:
        """The thread's whole life."""
        try:
            if self._secured():
                self._converse()
        except Exception as error:
            # It must never take more than itself with it.
            peer = self._visit.address
            if self.is_established and not isinstance(error, InvalidEventError):
                log.exception("association aborted: a programming error", peer=peer)
            else:
                # The library takes a request apart late, and stumbles over what stands in it.
                reason = type(error).__name__
                log.warning("association aborted: unreadable request", peer=peer, reason=reason)
            self.reactor.abort()
        finally:
            self.is_established = False
            self._intake.close()
            self._line.close()
            self._visit.leave()

    def _secured(self) -> bool:
        if self._house.tls is None:
            return True
        try:
            self._line.secure(self._house.tls(), self._house.patience.handshake_s)
        except (Gone, Overdue, OSError) as error:
            log.warning("TLS refused", address=self._visit.address, reason=str(error))
            return False
        return True

    def _converse(self) -> None:
        self.reactor.turn()
        while self.reactor.open and not self._kill:
            self.reactor.receive()
            self._attend()
        self.reactor.linger()

    def _attend(self) -> None:
        """Do what the last PDU asks for, if it was about the association itself."""
        primitive = self.reactor.receive_pdu()
        if isinstance(primitive, A_ASSOCIATE):
            self._requested(primitive)
        elif isinstance(primitive, A_RELEASE) and primitive.result is None:
            self.acse.send_release(is_response=True)
            self.is_released, self.is_established = True, False
        elif primitive is not None:
            self.is_aborted, self.is_established = True, False

    def _requested(self, primitive: A_ASSOCIATE) -> None:
        self.requestor.primitive = primitive
        evt.trigger(self, evt.EVT_REQUESTED, {})
        if not self.is_aborted and not self.is_rejected:
            self.acse.negotiate_association()
        if self.is_established:
            self._visit.seat()

    def _take(self, pdu: memoryview) -> None:
        self._intake.take(pdu)

    def _store(self, context_id: int, command: Command) -> Storing:
        context = self._accepted_cx.get(context_id)
        if context is None:
            raise Malformed("a message comes under a context that was not accepted")
        syntax = str(context.transfer_syntax[0])
        offer = Offer(command, context_id, str(context.abstract_syntax), syntax)
        return self._house.keeping(self, offer)

    def _other(self, context_id: int, fragments: list[bytes]) -> None:
        """Have the library decode and serve a message."""
        message = DIMSEMessage()
        carried = P_DATA()
        # A list of lists, whatever its type hint says.
        carried.presentation_data_value_list = cast(
            Any, [[context_id, fragment] for fragment in fragments]
        )
        try:
            message.decode_msg(carried, self)
            request = message.message_to_primitive()
        except Exception as error:
            log.debug("a message cannot be decoded", exc_info=True)
            raise Malformed(f"a message cannot be decoded ({type(error).__name__})") from error
        self._serve_request(cast(Any, request), context_id)

    def _answer(self, pdu: bytes) -> None:
        try:
            self._line.send(pdu, time.monotonic() + self._house.patience.pdu_s)
        except Overdue as error:
            raise Malformed("the peer does not read its answers") from error


def caller_of(association: Association) -> tuple[str, str, str]:
    """Calling AE title, called AE title and address of a requested association."""
    request = cast(A_ASSOCIATE, association.requestor.primitive)
    return (
        request.calling_ae_title.strip(),
        request.called_ae_title.strip(),
        association.requestor.address,
    )


def proposed_by(association: Association) -> list[PresentationContext]:
    """The presentation contexts of a requested association."""
    request = cast(A_ASSOCIATE, association.requestor.primitive)
    return request.presentation_context_definition_list
