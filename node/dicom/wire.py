"""What both roles, requestor and acceptor, ask of pynetdicom.

Three habits of the library would cost us: its log handlers print every message (a third of the
receiver's time, and patient data in the log), its sockets wait for ever inside a half-received
PDU, and Nagle's algorithm holds back each answer for 40 ms. They are turned off here, once.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False  # queries carry patient data
_config.LOG_RESPONSE_IDENTIFIERS = False
# A file is sent as the bytes it has: what was frozen and hashed is what the peer gets.
_config.STORE_SEND_CHUNKED_DATASET = True

MAXIMUM_PDU = 131072
"""Longest P-DATA-TF PDU that we announce, in bytes; larger ones measured no faster."""

_UID = re.compile(r"[0-9][0-9.]{0,63}")


def is_uid(text: str) -> bool:
    """Whether text can be a UID: 1 to 64 digits and dots, a digit first (PS3.5 section 9).

    Leading zeros in a component are forbidden by the standard and sent by real devices, so they
    pass; nothing that could mean something in a path, a log or a query does.
    """
    return _UID.fullmatch(text) is not None


def connection_of(association: Association) -> socket.socket:
    """The socket under an association that has one."""
    wrapped = cast(AssociationSocket, association.dul.socket)
    return cast(socket.socket, wrapped.socket)


def tune(event: Event, silence_s: float) -> None:
    """Handler of EVT_CONN_OPEN: no Nagle delay, and an end to every blocking read and write.

    ``silence_s`` bounds one read or write in seconds; without it a peer that stops in the middle
    of a PDU would hold the association's thread for ever.
    """
    connection = connection_of(event.assoc)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(silence_s)


def tuning(silence_s: float) -> tuple[evt.NotificationEvent, Callable[..., None], list[float]]:
    """``tune`` in the form in which pynetdicom binds handlers."""
    return (evt.EVT_CONN_OPEN, tune, [silence_s])


def read_alone(association: Association) -> None:
    """Have the answers of a requested association read by its caller only.

    The library's own thread for it should stand still while a request is under way, but now and
    then, on a busy machine, it takes the answer that the caller waits for. All that it could add
    is to notice that the peer has gone.
    """
    association._is_paused = True  # what a caller asks before it sends


def reject(association: Association, result: int, source: int, diagnostic: int) -> None:
    """Answer a requested association with A-ASSOCIATE-RJ (PS3.8 section 9.3.4) and end it."""
    association.acse.send_reject(result, source, diagnostic)
    association.kill()


def close(server: ThreadedAssociationServer) -> None:
    """Take no more connections. Open associations go on; ``AE.shutdown`` aborts them."""
    # Wakes the thread that accepts, which otherwise looks only twice a second whether to end.
    with suppress(OSError):
        cast(socket.socket, server.socket).shutdown(socket.SHUT_RDWR)
    server.shutdown()
