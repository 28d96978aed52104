"""Opening an association with a peer, and saying in typed words why it did not open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import cast

from pynetdicom import AE
from pynetdicom._globals import MODE_REQUESTOR
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from node.dicom.contexts import name_of
from node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from node.dicom.wire import MAXIMUM_PDU, connection_of, tuning
from node.domain.errors import ContextRejected, PeerError, PeerRejected, PeerUnreachable
from node.domain.peer import Network, Peer


class Requestor(Association):
    """An association that we ask for.

    pynetdicom's ``send_c_...`` wait until the association's own thread stands still. After an
    error inside the library that thread has ended without saying so, and they would wait for ever;
    here an ended thread counts as one that stands still, and the missing answer ends the call.
    """

    def __init__(self, entity: AE) -> None:
        """Made by ``associated``."""
        super().__init__(entity, MODE_REQUESTOR)
        self.daemon = True
        self.dul.daemon = True

    @property
    def connected(self) -> bool:
        """Whether the peer took the TCP connection: only then have we a port of our own."""
        return bool(self.requestor.port)

    def run_reactor(self) -> None:
        """The thread's whole life."""
        try:
            super().run_reactor()
        finally:
            self._is_paused = True


@contextmanager
def associated(
    network: Network, peer: Peer, proposed: Sequence[PresentationContext]
) -> Iterator[Requestor]:
    """An established association, released at the end of the block.

    Raises PeerUnreachable, PeerRejected, or ContextRejected when nothing proposed is accepted.
    """
    association = _prepared(network, peer, proposed)
    connection = connection_of(association)
    association.request()
    if not association.is_established:
        # The library leaves a socket open that never connected.
        connection.close()
        raise _failure(association, network, peer)
    association.start()
    try:
        yield association
    finally:
        association.release()


def known_peer(network: Network, name: str) -> Peer:
    """The peer of that name. Raises PeerError that lists the names there are."""
    try:
        return network.peers[name]
    except KeyError:
        names = ", ".join(sorted(network.peers)) or "none"
        raise PeerError(
            f"no peer is named {name!r} (known: {names}): add a [[peer]] with this name"
        ) from None


def _prepared(network: Network, peer: Peer, proposed: Sequence[PresentationContext]) -> Requestor:
    remote = _remote(peer)
    association = Requestor(_application_entity(network))
    association.name = f"RequestorThread@{peer.name}"
    local = AddressInformation("" if remote.is_ipv4 else "::", 0)
    association.set_socket(AssociationSocket(association, address=local))
    association.acceptor.ae_title = peer.ae_title
    association.acceptor.address_info = remote
    association.requestor.address_info = local
    association.requestor.ae_title = network.ae_title
    association.requestor.maximum_length = MAXIMUM_PDU
    association.requestor.implementation_class_uid = association.ae.implementation_class_uid
    association.requestor.implementation_version_name = association.ae.implementation_version_name
    association.requestor.requested_contexts = [
        _numbered(context, 2 * index + 1) for index, context in enumerate(proposed)
    ]
    association.bind(*tuning(network.answer_timeout_s))
    return association


def _application_entity(network: Network) -> AE:
    entity = AE(network.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.connection_timeout = network.connect_timeout_s
    entity.acse_timeout = network.answer_timeout_s
    entity.dimse_timeout = network.answer_timeout_s
    # The library's idle timer would abort in its own thread while ours releases; between two
    # requests it is we who are idle.
    entity.network_timeout = None
    return entity


def _remote(peer: Peer) -> AddressInformation:
    if not peer.host or not peer.port:
        raise PeerError(
            f"{peer.name} has no host or port, so it cannot be called: set both at its [[peer]]"
        )
    try:
        return AddressInformation(peer.host, peer.port)
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable(
            f"{peer.name}: the host name {peer.host} is unknown: check it and the name server"
        ) from error


def _numbered(context: PresentationContext, number: int) -> PresentationContext:
    numbered = copy(context)
    numbered.context_id = number
    return numbered


def _failure(association: Requestor, network: Network, peer: Peer) -> PeerError:
    place = f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
    if association.is_rejected:
        reason = cast(A_ASSOCIATE, association.acceptor.primitive).reason_str
        return PeerRejected(
            f"{place} rejected the association: {reason}. Make our AE title {network.ae_title} "
            "and address known there, and check the peer's ae_title"
        )
    if association.rejected_contexts:
        classes = {name_of(str(c.abstract_syntax)) for c in association.rejected_contexts}
        return ContextRejected(
            f"{place} accepts nothing of what was proposed ({', '.join(sorted(classes))}): ask "
            "its administrator to enable it for us"
        )
    if not association.connected:
        return PeerUnreachable(
            f"{place} takes no connection (waited at most {network.connect_timeout_s:g} s): check "
            "that it runs, its host and port, and the firewall"
        )
    return PeerUnreachable(
        f"{place} took the connection but did not answer the association request within "
        f"{network.answer_timeout_s:g} s or broke it off: check that a DICOM node listens there"
    )
