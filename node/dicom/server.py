"""The open port: takes connections, and turns away what there is no room for.

Nothing here waits for a caller. TLS is negotiated in the association's own thread, and a caller
that is not let in never has one.
"""

from __future__ import annotations

import errno
import socket
import threading
from copy import copy
from typing import Any, cast

import structlog
from pynetdicom import AE
from pynetdicom.transport import (
    AddressInformation,
    AssociationServer,
    RequestHandler,
)

from node.dicom.acceptor import Acceptor, House
from node.dicom.line import Line
from node.dicom.lobby import Lobby, Visit

log = structlog.get_logger()

_BACKLOG = 256
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 0.1


class Server(AssociationServer):
    """A listening port of a receiver. ``serve_forever`` in a thread; ``stop`` from another."""

    request_queue_size = _BACKLOG

    def __init__(self, ae: AE, address: tuple[str, int], *args: Any, **kwargs: Any) -> None:
        """Made by ``AE.make_server``; takes ``house`` and ``lobby`` besides."""
        self.house: House = kwargs.pop("house")
        self.lobby: Lobby = kwargs.pop("lobby")
        self._stopped = threading.Event()
        super().__init__(ae, address, *args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises OSError, when there are no descriptors after a pause."""
        try:
            return cast(socket.socket, self.socket).accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                log.error("no connection can be accepted", error=error.strerror)
                self._stopped.wait(_PAUSE_S)
            raise

    def service_actions(self) -> None:
        """The library collects garbage here; there is none."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong while an association was made; its connection is closed."""
        log.exception("a connection could not be served", address=client_address[0])

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; one that an association has taken over is the association's."""
        self.close_request(request)

    def stop(self) -> None:
        """Take no more connections."""
        self._stopped.set()
        listener = cast(socket.socket, self.socket)
        try:
            # Wakes the thread that accepts, which otherwise looks only twice a second.
            listener.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("listener was closed already", error=error.strerror)
        super(AssociationServer, self).shutdown()
        listener.close()


class Caller(RequestHandler):
    """One connection that was just accepted, in the thread that accepts."""

    server: Server

    def handle(self) -> None:
        """Give the caller a place and a thread, or close the connection."""
        self._acceptor: Acceptor | None = None
        visit = self.server.lobby.enter(self.client_address[0], self._end)
        if visit is None:
            log.warning("connection refused: too many", address=self.client_address[0])
            self.request.close()
            return
        try:
            self._acceptor = self._acceptor_of(visit)
            self._acceptor.start()
        except BaseException:
            visit.leave()
            raise

    def _end(self) -> None:
        if self._acceptor is not None:
            self._acceptor.end()

    def _acceptor_of(self, visit: Visit) -> Acceptor:
        server = self.server
        line = Line(self.request, server.house.patience.tick_s)
        acceptor = Acceptor(server.ae, line, visit, server.house)
        acceptor._server = server
        acceptor.acceptor.maximum_length = server.ae.maximum_pdu_size
        acceptor.acceptor.ae_title = server.ae_title
        acceptor.acceptor.address_info = self.local
        acceptor.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        acceptor.acceptor.implementation_version_name = server.ae.implementation_version_name
        acceptor.acceptor.supported_contexts = [copy(context) for context in server.contexts]
        acceptor.requestor.address_info = AddressInformation.from_tuple(self.client_address)
        for event, bound in server._handlers.items():
            # An event that asks has one handler, one that tells has a list of them.
            for handler, arguments in [bound] if isinstance(bound, tuple) else bound:
                acceptor.bind(event, handler, arguments)
        return acceptor
