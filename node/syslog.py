"""Syslog as audit repositories speak it: RFC 5424 messages over UDP, TCP or TLS.

Syslog has no acknowledgement, and what a TCP socket took may never be read. So a batch of messages
counts as delivered only when the repository has closed the connection after we said that nothing
more comes: a repository that died answers with a reset instead.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from node.domain.errors import NodeError

PRIORITY = 10 * 8 + 5
"""Facility 10 (security), severity 5 (notice): PS3.15 A.6.2."""
MESSAGE_ID = "DICOM+RFC3881"
_BOM = b"\xef\xbb\xbf"
_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}


class RepositoryUnreachable(NodeError):
    """The audit repository could not be reached, or did not take everything."""

    retryable: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Sender:
    """The header fields that are ours (RFC 5424 6.2): host, application and process id."""

    host: str
    application: str
    process: str = str(os.getpid())


@dataclass(frozen=True, slots=True)
class Repository:
    """Where messages go. ``ca`` None trusts the authorities of the system; seconds."""

    url: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout_s: float = 5.0

    def deliver(self, messages: Sequence[bytes]) -> None:
        """Send messages in order, over one connection. Raises RepositoryUnreachable.

        Then any number of them may have arrived: send all of them again. Over UDP what is lost on
        the way is lost.
        """
        try:
            if self._scheme == "udp":
                self._cast(messages)
            else:
                self._stream(messages)
        except OSError as error:
            raise RepositoryUnreachable(
                f"the audit repository at {self.url} did not take the messages: "
                f"{error.strerror or error}; they wait here and are sent again"
            ) from error

    @property
    def _scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def _place(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or _PORTS[parts.scheme]

    def _cast(self, messages: Sequence[bytes]) -> None:
        family, _, _, _, place = socket.getaddrinfo(*self._place, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as out:
            out.settimeout(self.timeout_s)
            out.connect(place)
            for message in messages:
                out.send(message)
            out.setblocking(False)
            with suppress(BlockingIOError):
                # Where nobody listens on the port, its machine has said so by now, with luck.
                out.recv(1)

    def _stream(self, messages: Sequence[bytes]) -> None:
        with socket.create_connection(self._place, self.timeout_s) as plain:
            channel: _Plain | _Secure = _Plain(plain)
            if self._scheme == "tls":
                channel = _Secure(plain, self._context(), self._place[0])
            for message in messages:
                channel.send(framed(message))
            channel.end()

    def _context(self) -> ssl.SSLContext:
        # Read each time: a renewed certificate counts from the next connection on.
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


def syslog_message(content: bytes, at: str, sender: Sender) -> bytes:
    """A SYSLOG-MSG (RFC 5424 section 6) around UTF-8 text; ``at`` is its RFC 3339 time."""
    host = _word(sender.host, 255)
    application = _word(sender.application, 48)
    header = f"<{PRIORITY}>1 {at} {host} {application} {_word(sender.process, 128)} {MESSAGE_ID} - "
    # The mark says that what follows is UTF-8 (MSG-UTF8).
    return header.encode("ascii") + _BOM + content


def framed(message: bytes) -> bytes:
    """Octet counting: the length stands before the message (RFC 5425 4.3, RFC 6587 3.4.1)."""
    return b"%d %b" % (len(message), message)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A TCP connection to write to."""

    connection: socket.socket

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def end(self) -> None:
        """Say that nothing more comes, and wait until the peer has read all and closes as well."""
        self.connection.shutdown(socket.SHUT_WR)
        _drain(self.connection, lambda content: None)


class _Secure:
    """The same under TLS.

    Over buffers of its own, because ``ssl.SSLSocket`` cannot tell a peer that closed from one that
    reset the connection or refused our certificate (TLS 1.3 does that after the handshake).
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._connection = connection
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=host)
        while not self._shaken():
            content = connection.recv(16384)
            if content:
                self._came.write(content)
            else:
                self._came.write_eof()

    def send(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._tls.write(view) :]
            self._say()

    def end(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._say()
        self._connection.shutdown(socket.SHUT_WR)
        _drain(self._connection, self._came.write)
        self._came.write_eof()
        # Many servers close without the closing alert. Any other alert is an error here.
        with suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self._tls.unwrap()

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._say()
        return True

    def _say(self) -> None:
        self._connection.sendall(self._goes.read())


def _drain(connection: socket.socket, take: Callable[[bytes], object]) -> None:
    """Read to the end. Raises TimeoutError when all of it takes longer than one wait may."""
    patience = connection.gettimeout() or 0.0
    deadline = time.monotonic() + patience
    while content := connection.recv(16384):
        take(content)
        connection.settimeout(max(0.001, deadline - time.monotonic()))


def _word(text: str, longest: int) -> str:
    """Printable ASCII without spaces, as RFC 5424 wants header fields; "-" for nothing."""
    plain = "".join(one if "!" <= one <= "~" else "_" for one in text)
    return plain[:longest] or "-"
