"""An audit repository for the tests: syslog over UDP, TCP or TLS; it can die and come back."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.certificates import Certificate

PATIENCE_S = 20.0


@dataclass
class Collector:
    """Listens on a free port, or the given one. ``taken`` are the messages, in order.

    With ``dies_after`` it reads so many messages of a connection and then resets it unread.
    """

    scheme: str = "tcp"
    certificate: Certificate | None = None
    trusted: Certificate | None = None
    port: int = 0
    dies_after: int | None = None
    taken: list[bytes] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False

    def __enter__(self) -> Self:
        kind = socket.SOCK_DGRAM if self.scheme == "udp" else socket.SOCK_STREAM
        self._socket = socket.socket(socket.AF_INET, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        if self.scheme != "udp":
            self._socket.listen()
        serve = self._take_datagrams if self.scheme == "udp" else self._accept
        self._thread = threading.Thread(target=serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        if self.scheme == "udp":
            self._socket.sendto(b"", ("127.0.0.1", self.port))
        else:
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._socket.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def wait_for(self, done: Callable[[list[bytes]], bool]) -> bool:
        """Look after every message; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: done(self.taken), PATIENCE_S)

    def _take(self, message: bytes) -> None:
        with self._changed:
            self.taken.append(message)
            self._changed.notify_all()

    def _take_datagrams(self) -> None:
        while not self._stopping:
            message = self._socket.recv(65536)
            if message:
                self._take(message)

    def _accept(self) -> None:
        while not self._stopping:
            connection, _ = self._socket.accept()
            if not self._stopping:
                self._serve(connection)
            connection.close()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(PATIENCE_S)
        try:
            with self._secured(plain) as connection:
                self._read_all(connection)
        except OSError:
            return  # a caller that we do not trust, or that does not trust us

    def _secured(self, plain: socket.socket) -> socket.socket:
        if self.certificate is None:
            return plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate.cert, self.certificate.key)
        if self.trusted is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.trusted.cert)
        return context.wrap_socket(plain, server_side=True)

    def _read_all(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            count = 0
            while length := _length(stream.read):
                if count == self.dies_after:
                    # No waiting, a reset: what was not read is gone.
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
                self._take(stream.read(length))
                count += 1


def _length(read: Callable[[int], bytes]) -> int:
    """MSG-LEN of octet counting; 0 at the end."""
    digits = b""
    while (one := read(1)) not in (b" ", b""):
        digits += one
    return int(digits or b"0")
