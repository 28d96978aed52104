"""The upper layer of an accepted association, driven by what comes and not by a clock.

pynetdicom turns two threads per association a thousand times a second to see whether there is
something to do, and reads whatever length a PDU claims to have. Here the association's one thread
waits in the kernel for the next PDU, which has a longest length and a moment until which it must be
complete, and walks through the library's own state machine by itself. P-DATA goes to the intake,
everything else byte for byte to the library's decoder.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from node.dicom.command import Malformed
from node.dicom.line import Gone, Line, Overdue

log = structlog.get_logger()

LONGEST_CONTROL_PDU = 65536
"""Bytes. 128 presentation contexts with five transfer syntaxes each need 40,000."""

_P_DATA = 0x04
_HEADER = 6
_LINGER_S = 5.0
_A_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00"
_CLOSED, _AWAITING_REQUEST, _ESTABLISHED, _AWAITING_CLOSE = "Sta1", "Sta2", "Sta6", "Sta13"
_CONNECTION_CLOSED, _ARTIM_EXPIRED, _INVALID_PDU = "Evt17", "Evt18", "Evt19"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds, and how much to take, in bytes."""

    request_s: float = 30.0
    """For an association request, and for the peer to close after a release or rejection."""
    silence_s: float = 60.0
    """For the next PDU between two messages."""
    pause_s: float = 60.0
    """For the next PDU within a message."""
    pdu_s: float = 30.0
    """From the first byte of a PDU to its last."""
    message_s: float = 300.0
    """From the first fragment of a message to its last."""
    rate: float = 65536.0
    """Bytes per second that a message must come with, from its tenth second on."""
    grace_s: float = 10.0
    """Seconds of a message in which its rate does not count."""
    handshake_s: float = 10.0
    """For a TLS handshake."""

    @property
    def tick_s(self) -> float:
        """How often a wait looks at the clock: never later than a fifth of the shortest."""
        return min(1.0, self.request_s / 5, self.silence_s / 5, self.pause_s / 5, self.pdu_s / 5)


class Progress:
    """When the message that is coming began, and how much of it has come."""

    def __init__(self, patience: Patience) -> None:
        """No message is coming."""
        self._patience = patience
        self._began = 0.0
        self.received = 0
        self.under_way = False

    def begin(self) -> None:
        """The first fragment is here."""
        self._began, self.received, self.under_way = time.monotonic(), 0, True

    def end(self) -> None:
        """The last fragment is here."""
        self.under_way = False

    def until(self, coming: int = 0) -> float:
        """Until when the next PDU must have begun; with its length, until when it must end."""
        now, patience = time.monotonic(), self._patience
        if not self.under_way:
            return now + (patience.pdu_s if coming else patience.silence_s)
        least = self._began + patience.grace_s + (self.received + coming) / patience.rate
        wait = patience.pdu_s if coming else patience.pause_s
        return min(now + wait, self._began + patience.message_s, least)


class Plug(AssociationSocket):
    """What the library sends through; it never waits for ever."""

    def __init__(self, association: Association, line: Line, timeout_s: float) -> None:
        """Connect an association with a line, which says so to its state machine."""
        super().__init__(association, client_socket=line.connection)
        self._line = line
        self._timeout_s = timeout_s

    def send(self, bytestream: bytes) -> None:
        """Send everything, or tell the state machine that the connection is closed."""
        try:
            self._line.send(bytestream, time.monotonic() + self._timeout_s)
        except (Gone, Overdue):
            self.event_queue.put(_CONNECTION_CLOSED)

    def close(self) -> None:
        """Leave the closing to whoever owns the line, and tell the state machine."""
        if self._is_connected:
            self.socket, self._is_connected = None, False
            self.event_queue.put(_CONNECTION_CLOSED)


class Reactor(DULServiceProvider):
    """pynetdicom's upper layer without its thread: the association's own thread calls it."""

    def __init__(
        self,
        association: Association,
        line: Line,
        patience: Patience,
        maximum_pdu: int,
        intake: Callable[[memoryview], None],
    ) -> None:
        """``intake`` is given the PDVs of each P-DATA-TF PDU and raises Malformed."""
        super().__init__(association)
        self._line = line
        self._patience = patience
        self._longest = maximum_pdu
        self._intake = intake
        self._header = memoryview(bytearray(_HEADER))
        self._buffer = memoryview(b"")
        self.progress = Progress(patience)
        self.stopping = False

    @property
    def open(self) -> bool:
        """Whether anything may still come that matters."""
        return self.state_machine.current_state not in (_CLOSED, _AWAITING_CLOSE)

    def send_pdu(self, primitive: Any) -> None:
        """Send a primitive at once, in the thread of whoever has it sent."""
        super().send_pdu(primitive)
        if self._process_recv_primitive():
            self.turn()

    def turn(self) -> None:
        """Take the state machine through every event that waits, unless it has come to its end."""
        while not self._kill_thread and not self.event_queue.empty():
            self.state_machine.do_action(self.event_queue.get_nowait())

    def receive(self) -> None:
        """Wait for one PDU and deal with it, whatever becomes of it."""
        try:
            self._receive()
        except Gone:
            # Our own end is closed first when we stop; the peer is still there to be told.
            self.event_queue.put(_INVALID_PDU if self.stopping else _CONNECTION_CLOSED)
        except Overdue:
            log.warning("association aborted: it is too slow", peer=self._peer)
            waits = self.state_machine.current_state == _AWAITING_REQUEST
            self.event_queue.put(_ARTIM_EXPIRED if waits else _INVALID_PDU)
        except Malformed as error:
            log.warning("association aborted", peer=self._peer, reason=str(error))
            self.event_queue.put(_INVALID_PDU)
        self.turn()

    def abort(self) -> None:
        """Tell the peer that it is over, past the state machine, which cannot go on."""
        with suppress(Gone, Overdue):
            self._line.send(_A_ABORT, self._moment(_LINGER_S))
            self._line.interrupt(socket.SHUT_WR)
            self._line.drain(self._moment(_LINGER_S))

    def linger(self) -> None:
        """Give the peer time to close first, so that it still reads what was sent last."""
        if self.state_machine.current_state != _AWAITING_CLOSE or self.stopping:
            return
        try:
            self._line.interrupt(socket.SHUT_WR)
            self._line.drain(time.monotonic() + min(self._patience.request_s, _LINGER_S))
        except (Gone, Overdue):
            self.artim_timer.stop()

    @property
    def _peer(self) -> str:
        return str(self.assoc.requestor.address)

    def _receive(self) -> None:
        established = self.state_machine.current_state == _ESTABLISHED
        until = self.progress.until() if established else self._moment(self._patience.request_s)
        if time.monotonic() >= until:
            raise Overdue  # it comes in bits, none of which is late
        begun = self._line.begin(self._header, until)
        if begun < _HEADER:
            self._line.fill(self._header[begun:], self._moment(self._patience.pdu_s))
        kind, length = self._header[0], int.from_bytes(self._header[2:], "big")
        if kind == _P_DATA and established:
            self._take(length)
        else:
            self._pass_on(kind, length)

    def _take(self, length: int) -> None:
        if not length:
            raise Malformed("a P-DATA-TF PDU is empty")
        # Some count the header of six bytes in, some do not.
        if length > self._longest + _HEADER:
            raise Malformed(f"a P-DATA-TF PDU is longer than announced ({length} bytes)")
        if not self._buffer:
            self._buffer = memoryview(bytearray(self._longest + _HEADER))
        pdu = self._buffer[:length]
        self._line.fill(pdu, self.progress.until(length))
        self._intake(pdu)

    def _pass_on(self, kind: int, length: int) -> None:
        """Have the library decode a PDU: what it says of itself, and what it means."""
        if not 1 <= kind <= 7:
            raise Malformed(f"a PDU of unknown type {kind:#04x}")
        if length > LONGEST_CONTROL_PDU:
            raise Malformed(f"a PDU of type {kind:#04x} claims {length} bytes")
        content = bytearray(_HEADER + length)
        content[:_HEADER] = self._header
        if length:
            view = memoryview(content)[_HEADER:]
            self._line.fill(view, self._moment(self._patience.pdu_s))
        try:
            pdu, event = self._decode_pdu(content)
        except Exception as error:
            # Whatever its decoder stumbles over, the peer has sent it.
            log.debug("a PDU cannot be decoded", exc_info=True)
            raise Malformed(f"a PDU of type {kind:#04x} ({type(error).__name__})") from error
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)

    def _moment(self, wait_s: float) -> float:
        return time.monotonic() + wait_s
