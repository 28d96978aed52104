"""A connection to a peer in which no wait is without an end.

pynetdicom waits for ever for the rest of a PDU; here every read and write has a moment until which
it must be done. The reads go into memory that the caller lends and keeps.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress

_TIMEVAL = struct.Struct("ll")
_MILLION = 1_000_000


class Gone(Exception):
    """The peer has closed the connection, or the network has."""


class Overdue(Exception):
    """What should have come, or gone out, by now has not."""


class Line:
    """A TCP connection. One thread reads and writes; any thread may ``interrupt``.

    Blocking reads with MSG_WAITALL take one system call where a non-blocking socket takes several;
    the kernel ends each after ``tick_s`` seconds, so that the moment can be looked at.
    """

    def __init__(self, connection: socket.socket, tick_s: float = 1.0) -> None:
        """Take over a connected socket."""
        self.connection = connection
        self._tick_s = tick_s
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        tick = _TIMEVAL.pack(int(tick_s), int(tick_s % 1 * _MILLION))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)

    def secure(self, context: ssl.SSLContext, timeout_s: float) -> None:
        """Go on in TLS, as its server. Raises Gone, or Overdue after ``timeout_s`` seconds."""
        try:
            self.connection.settimeout(timeout_s)
            self.connection = context.wrap_socket(
                self.connection, server_side=True, do_handshake_on_connect=False
            )
            self.connection.do_handshake()
        except TimeoutError as error:
            raise Overdue("TLS handshake") from error
        except (OSError, ValueError) as error:
            raise Gone(_words(error)) from error
        self.connection.settimeout(self._tick_s)

    def fill(self, view: memoryview, until: float) -> None:
        """Fill ``view``. Raises Gone, or Overdue after the moment ``until`` (monotonic, s)."""
        while True:
            view = view[self._receive(view) :]
            if not view:
                return
            if time.monotonic() >= until:
                raise Overdue

    def begin(self, view: memoryview, until: float) -> int:
        """Wait for the first bytes of something and give their number; raises as ``fill``."""
        while not (count := self._receive(view)):
            if time.monotonic() >= until:
                raise Overdue
        return count

    def send(self, content: bytes, until: float) -> None:
        """Send everything. Raises as ``fill``."""
        view = memoryview(content)
        while True:
            view = view[self._transmit(view) :]
            if not view:
                return
            if time.monotonic() >= until:
                raise Overdue

    def drain(self, until: float) -> None:
        """Throw away what comes until the peer closes; raises as ``fill``."""
        waste = memoryview(bytearray(4096))
        while time.monotonic() < until:
            self._receive(waste)
        raise Overdue

    def interrupt(self, how: int = socket.SHUT_RD) -> None:
        """Have the thread that reads see the end of the connection. May be called by another."""
        # Not SSLSocket.shutdown: that takes the TLS state away from under the thread that reads.
        with suppress(OSError):
            socket.socket.shutdown(self.connection, how)

    def close(self) -> None:
        """Give the socket back. A second time does nothing."""
        self.interrupt(socket.SHUT_RDWR)
        self.connection.close()

    def _receive(self, view: memoryview) -> int:
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                count = self.connection.recv_into(view)
            else:
                count = self.connection.recv_into(view, 0, socket.MSG_WAITALL)
        except (BlockingIOError, TimeoutError):
            return 0
        except (OSError, ValueError) as error:
            raise Gone(_words(error)) from error
        if not count:
            raise Gone("closed by the peer")
        return count

    def _transmit(self, view: memoryview) -> int:
        try:
            return self.connection.send(view)
        except (BlockingIOError, TimeoutError):
            return 0
        except (OSError, ValueError) as error:
            raise Gone(_words(error)) from error


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
