"""A TCP proxy on the loopback interface that spoils what passes: a network's bad days.

It understands PDUs as far as to count them (PS3.8 9.3.1), so that a fault strikes at a place in
the conversation: before the answer to the association request, in the middle of a data set, after
the object was stored and before its sender knows.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

_HEAD = 6
_RESET = struct.pack("ii", 1, 0)
_PATIENCE_S = 10.0


class Pdu(IntEnum):
    """What travels (PS3.8 Table 9-11 and following)."""

    ANY = 0
    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a connection.

    ``door``: whether it is accepted, and what happens then. ``direction`` and ``nth`` of ``pdu``
    say where ``act`` strikes: that PDU is not passed on and the connection is closed, reset or
    left hanging; half of it is passed on first; it is garbled, held back for ``seconds``, or passed
    on in tiny pieces.
    """

    door: Literal["open", "close", "reset", "silent", "babble"] = "open"
    direction: Literal["to archive", "to node"] = "to node"
    pdu: Pdu = Pdu.ANY
    nth: int = 0
    act: Literal["close", "reset", "hang", "half", "garble", "delay", "trickle"] = "close"
    seconds: float = 0.0


@dataclass(eq=False)
class Proxy:
    """Passes connections on to a port of this machine; the next ``bad`` of them get the fault.

    ``struck`` counts how often it did what the fault says to a PDU.
    """

    port_behind: int
    fault: Fault = field(default_factory=Fault)
    bad: int = 0
    connections: int = 0
    struck: int = 0
    _listener: socket.socket | None = None
    _port: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)
    _open: list[socket.socket] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        """Where it listens; the same port after a stop and a start."""
        return self._port

    def start(self) -> None:
        """Listen."""
        self._stopping.clear()
        listener = socket.create_server(("127.0.0.1", self._port), backlog=16)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._begin(self._accept, listener)

    def stop(self) -> None:
        """Nobody listens any more, and what was open is closed."""
        self._stopping.set()
        if self._listener is not None:
            _close(self._listener)
            self._listener.close()
        for connection in self._open:
            _close(connection)
        for thread in self._threads:
            thread.join(_PATIENCE_S)
        for connection in self._open:
            connection.close()
        self._threads.clear()
        self._open.clear()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _begin(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            fault = self.fault if self.bad > 0 else Fault()
            self.bad -= 1
            self._open_door(connection, fault)

    def _open_door(self, connection: socket.socket, fault: Fault) -> None:
        if fault.door == "close":
            connection.close()
        elif fault.door == "reset":
            _reset(connection)
        elif fault.door == "babble":
            with suppress(OSError):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            connection.close()
        elif fault.door == "open":
            behind = socket.create_connection(("127.0.0.1", self.port_behind), _PATIENCE_S)
            behind.settimeout(None)
            self._open.append(behind)
            pair = (connection, behind)
            self._begin(self._pass, connection, behind, pair, fault, "to archive")
            self._begin(self._pass, behind, connection, pair, fault, "to node")

    def _pass(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        fault: Fault,
        direction: str,
    ) -> None:
        """One direction, PDU by PDU."""
        left = fault.nth if fault.direction == direction else 0
        with suppress(OSError):
            while pdu := _read_pdu(source):
                left -= fault.pdu in (Pdu.ANY, pdu[0]) and left > 0
                struck = left == 0 and fault.nth > 0 and fault.direction == direction
                if not struck:
                    sink.sendall(pdu)
                    continue
                left = -1
                if not self._strike(pdu, sink, pair, fault):
                    return
            sink.shutdown(socket.SHUT_WR)

    def _strike(
        self,
        pdu: bytes,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        fault: Fault,
    ) -> bool:
        """Do to a PDU what the fault says; whether the connection goes on."""
        self.struck += 1
        if fault.act == "delay":
            self._stopping.wait(fault.seconds)
            sink.sendall(pdu)
        elif fault.act == "trickle":
            for start in range(0, len(pdu), 97):
                sink.sendall(pdu[start : start + 97])
                self._stopping.wait(fault.seconds)
        elif fault.act == "garble":
            sink.sendall(pdu[:_HEAD] + bytes(255 - byte for byte in pdu[_HEAD:]))
        elif fault.act == "hang":
            self._stopping.wait(_PATIENCE_S)
            return False
        else:
            if fault.act == "half":
                sink.sendall(pdu[: len(pdu) // 2])
            for connection in pair:
                _reset(connection) if fault.act == "reset" else _close(connection)
            return False
        return True


def _read_pdu(source: socket.socket) -> bytes:
    """A whole PDU; empty at the end of the stream."""
    head = _read(source, _HEAD)
    if len(head) < _HEAD:
        return head
    return head + _read(source, int.from_bytes(head[2:], "big"))


def _read(source: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = source.recv(min(65536, size - len(parts)))
        if not part:
            return parts
        parts += part
    return parts


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """RST in place of FIN."""
    with suppress(OSError):
        # Wakes whoever reads from it, and sends nothing.
        connection.shutdown(socket.SHUT_RD)
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
