"""Opening an association with a peer, and saying in typed words why it did not open."""

from __future__ import annotations

import ssl
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
from node.dicom.tls import client_context
from node.dicom.wire import MAXIMUM_PDU, connection_of, read_alone, tuning
from node.domain.errors import (
    ConfigError,
    ContextRejected,
    PeerError,
    PeerRejected,
    PeerUnreachable,
)
from node.domain.peer import Network, Peer

_TLS_ADVICE = (
    "; with TLS also that its certificate names this host, is not expired and of an authority in "
    "[scp.tls] ca, and that it takes ours"
)


class _Plug(AssociationSocket):
    """The library's socket, which it leaves open when a TLS handshake fails."""

    def _shutdown_socket(self) -> None:
        super()._shutdown_socket()
        if self.socket is not None:
            self.socket.close()


@contextmanager
def associated(
    network: Network, peer: Peer, proposed: Sequence[PresentationContext]
) -> Iterator[Association]:
    """An established association, released at the end of the block.

    Raises PeerUnreachable, PeerRejected, or ContextRejected when nothing proposed is accepted.
    """
    association = _prepared(network, peer, proposed)
    connection = connection_of(association)
    try:
        association.request()
        if not association.is_established:
            raise _failure(association, network, peer)
        read_alone(association)  # in place of association.start()
        try:
            yield association
        finally:
            _end(association)
    finally:
        # The library leaves it open when it never connected, and when its own thread died.
        connection.close()
        _close_tls(association)


def gone(association: Association) -> bool:
    """Whether the peer, or a time-out of ours, has ended an association."""
    return not association.is_established or association.acse.is_aborted()


def _close_tls(association: Association) -> None:
    """TLS takes the connection over, so that closing the first is not enough."""
    wrapped = association.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        wrapped.socket.close()


def _end(association: Association) -> None:
    if association.acse.is_aborted():
        association.kill()
    else:
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


def _prepared(network: Network, peer: Peer, proposed: Sequence[PresentationContext]) -> Association:
    remote = _remote(peer)
    association = Association(_application_entity(network), MODE_REQUESTOR)
    # A thread that hangs in the library must not keep the process from ending.
    association.daemon = association.dul.daemon = True
    association.name = f"RequestorThread@{peer.name}"
    local = AddressInformation("" if remote.is_ipv4 else "::", 0)
    # The context first: what it raises must leave no socket behind.
    context = _tls_context(network, peer) if peer.tls else None
    plug = _Plug(association, address=local)
    plug.tls_args = (context, peer.host) if context is not None else None
    association.set_socket(plug)
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


def _tls_context(network: Network, peer: Peer) -> ssl.SSLContext:
    """Made anew for every association, so that a renewed certificate is shown at once."""
    if network.identity is None:
        raise PeerError(
            f"{peer.name} has tls = true, but the node has no certificate to show: set [scp.tls]"
        )
    try:
        return client_context(network.identity)
    except ConfigError as error:
        raise PeerUnreachable(f"{peer.name} cannot be called: {error}") from error


def _application_entity(network: Network) -> AE:
    entity = AE(network.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.connection_timeout = network.connect_timeout_s
    entity.acse_timeout = network.answer_timeout_s
    entity.dimse_timeout = network.answer_timeout_s
    # No limit for our own silence between two requests.
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


def _rejection(association: Association) -> A_ASSOCIATE | None:
    """The peer's A-ASSOCIATE-RJ, if that is how it answered."""
    if association.is_rejected:
        return cast(A_ASSOCIATE, association.acceptor.primitive)
    # A peer that rejects at once has closed the connection before the library looks whether it
    # was ever open; the answer then still lies where it was put.
    waiting = association.dul.peek_next_pdu()
    return waiting if isinstance(waiting, A_ASSOCIATE) and waiting.result else None


def _failure(association: Association, network: Network, peer: Peer) -> PeerError:
    place = f"{peer.name} ({peer.ae_title} at {peer.host}:{peer.port})"
    rejection = _rejection(association)
    if rejection is not None:
        reason = rejection.reason_str
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
    if not association.requestor.port:  # ours, known from the moment of the connection
        return PeerUnreachable(
            f"{place} takes no connection (waited at most {network.connect_timeout_s:g} s): check "
            f"that it runs, its host and port, and the firewall{_TLS_ADVICE if peer.tls else ''}"
        )
    return PeerUnreachable(
        f"{place} took the connection but did not answer the association request within "
        f"{network.answer_timeout_s:g} s or broke it off: check that a DICOM node listens there"
        f"{_TLS_ADVICE if peer.tls else ''}"
    )
