"""TLS as PS3.15 B.12 asks for it (BCP 195): both ends show a certificate, in 1.2 or 1.3.

Certificates are renewed without a restart: whoever is about to need a context has it made anew
when one of its files is another than before.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from node.domain.errors import ConfigError, Fault
from node.domain.peer import CREDENTIAL, Identity

log = structlog.get_logger()

CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
"""Cipher suites of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2)."""


def located(path: str) -> Path:
    """A file, or the credential of that name. Raises ConfigError."""
    if not path.startswith(CREDENTIAL):
        return Path(path)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise _fault(
            f"{path} needs CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential=: run "
            "as a service, or give the path of a file"
        )
    return Path(folder) / path.removeprefix(CREDENTIAL)


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the acceptor: a caller without a certificate of our authorities is refused."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For the requestor: the peer's certificate is of our authorities and names its host."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


class Renewed:
    """A context that follows its files. Safe to use from several threads."""

    def __init__(self, identity: Identity, make: Callable[[Identity], ssl.SSLContext]) -> None:
        """Read the files. Raises ConfigError when they cannot be used."""
        self._identity = identity
        self._make = make
        self._lock = threading.Lock()
        self._stamp = _stamp(identity)
        self._context = make(identity)

    def current(self) -> ssl.SSLContext:
        """The context of the files as they are; of those before while the new ones are wrong."""
        with self._lock:
            stamp = _stamp(self._identity)
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._context

    def _renew(self) -> None:
        try:
            self._context = self._make(self._identity)
        except ConfigError as error:
            log.error("certificate not renewed: the one before is still shown", reason=str(error))
        else:
            log.info("certificate renewed", certificate=self._identity.certificate)


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    certificate, key, ca = _files(identity)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise _fault(
            f"certificate {certificate.name}, key {key.name} or authorities {ca.name} cannot be "
            f"used ({reason}): they must be readable PEM files, and the key that of the "
            "certificate, without a password"
        ) from error
    return context


def _files(identity: Identity) -> tuple[Path, Path, Path]:
    return located(identity.certificate), located(identity.key), located(identity.ca)


def _no_password() -> str:
    raise ValueError("the key has a password")


def _stamp(identity: Identity) -> tuple[tuple[int, int, int], ...]:
    """What changes with the files; a file that is gone for the moment changes it too."""
    return tuple(_stamp_of(path) for path in _files(identity))


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_ino, found.st_size


def _fault(message: str) -> ConfigError:
    return ConfigError((Fault("scp.tls", message),))
