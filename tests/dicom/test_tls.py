"""DICOM over TLS, both ways: who is let in, who is not, and how certificates are renewed."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node.dicom import scu
from node.dicom.scp import Scp, TlsPort
from node.dicom.tls import CIPHERS, client_context, located, server_context
from node.domain.errors import ConfigError, PeerError, PeerUnreachable
from node.domain.peer import Identity, Network, Peer
from node.testing.series import save
from tests.certificates import Authority, Certificate
from tests.dicom.callers import Shelf, images, listening
from tests.peers import environment
from tests.places import tool

SCANNER = Peer("scanner", "SCANNER", hosts=("127.0.0.1",))
DCMTK = Peer("dcmtk", "STORESCU", hosts=("127.0.0.1",))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("hospital"), "hospital")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def identity(hospital: Authority) -> Identity:
    return identity_of(hospital.issue("node"), hospital)


def identity_of(own: Certificate, authority: Authority) -> Identity:
    return Identity(str(own.cert), str(own.key), str(authority.own.cert))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def scp(shelf: Shelf, identity: Identity) -> Iterator[Scp]:
    tls = TlsPort(identity, port=0)
    with listening(shelf, [SCANNER, DCMTK], tls=tls, handshake_timeout_s=0.5) as scp:
        yield scp


def echo(port: int, identity: Identity | None, host: str = "localhost") -> None:
    network = Network("SCANNER", {}, 5.0, 5.0, identity)
    scu.echo(network, Peer("node", "NODE", host, port, tls=True))


def shaken(port: int, context: ssl.SSLContext) -> str:
    """The version that a handshake ends with; it counts once the acceptor stays connected."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.settimeout(5)
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            version = str(secure.version())
            secure.sendall(b"\x07\0\0\0\0\4\0\0\0\0")  # A-ABORT
            # In TLS 1.3 the acceptor judges our certificate only after our handshake has ended.
            assert secure.recv(1) == b""
            return version


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_taken(scp: Scp, identity: Identity, version: ssl.TLSVersion) -> None:
    context = client_context(identity)
    context.minimum_version = context.maximum_version = version
    assert shaken(scp.tls_port, context) == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_refused(scp: Scp, identity: Identity, version: ssl.TLSVersion) -> None:
    context = client_context(identity)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError):
        shaken(scp.tls_port, context)
    echo(scp.tls_port, identity)


def test_ciphers_without_forward_secrecy_or_authentication_are_refused(
    scp: Scp, identity: Identity
) -> None:
    assert all("GCM" in name or "POLY1305" in name for name in CIPHERS.split(":"))
    context = client_context(identity)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA:AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        shaken(scp.tls_port, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_without_a_certificate_is_refused(
    scp: Scp, hospital: Authority, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=str(hospital.own.cert))
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError):
        shaken(scp.tls_port, context)


def test_a_caller_of_another_authority_is_refused(
    scp: Scp, hospital: Authority, stranger: Authority
) -> None:
    own = stranger.issue("caller")
    with pytest.raises(PeerUnreachable, match="takes ours"):
        echo(scp.tls_port, identity_of(own, hospital))


def test_an_expired_certificate_is_refused(scp: Scp, hospital: Authority) -> None:
    own = hospital.issue("expired", days=-1)
    with capture_logs() as logs, pytest.raises(PeerUnreachable):
        echo(scp.tls_port, identity_of(own, hospital))
    (line,) = [entry for entry in logs if entry["event"] == "TLS refused"]
    assert line["reason"] == "certificate: certificate has expired"


def test_we_refuse_an_acceptor_of_another_authority(
    scp: Scp, identity: Identity, stranger: Authority
) -> None:
    with pytest.raises(PeerUnreachable, match=r"\[scp.tls\] ca"):
        echo(scp.tls_port, Identity(identity.certificate, identity.key, str(stranger.own.cert)))


def test_we_refuse_an_acceptor_whose_certificate_names_another_host(
    scp: Scp, identity: Identity
) -> None:
    with pytest.raises(PeerUnreachable, match="names this host"):
        echo(scp.tls_port, identity, host="127.0.0.2")


def test_a_peer_with_tls_cannot_be_called_without_a_certificate(scp: Scp) -> None:
    with pytest.raises(PeerError, match=r"set \[scp.tls\]"):
        echo(scp.tls_port, None)


def test_tls_on_the_plain_port_and_none_on_the_other_end_in_nothing(
    scp: Scp, identity: Identity
) -> None:
    with pytest.raises(PeerUnreachable):
        echo(scp.port, identity)
    with pytest.raises(PeerUnreachable):
        scu.echo(Network("SCANNER"), Peer("node", "NODE", "127.0.0.1", scp.tls_port))
    echo(scp.tls_port, identity)


def test_a_series_is_stored_over_tls(
    scp: Scp, shelf: Shelf, identity: Identity, tmp_path: Path
) -> None:
    paths = save(images(5), tmp_path)
    network = Network("SCANNER", {}, 5.0, 5.0, identity)
    peer = Peer("node", "NODE", "localhost", scp.tls_port, tls=True)
    assert all(receipt.accepted for receipt in scu.store(network, peer, paths))
    assert len(shelf.received) == 5


def storescu(port: int, own: Certificate, ca: Path, files: Path, *options: str) -> int:
    command = [tool("storescu"), "+sd", "-aet", "STORESCU", "-aec", "NODE"]
    command += ["+tls", str(own.key), str(own.cert), "+cf", str(ca), *options]
    return subprocess.run(
        [*command, "localhost", str(port), str(files)],
        env=environment(),
        capture_output=True,
        check=False,
        timeout=60,
    ).returncode


@pytest.mark.peer
@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_dcmtk_stores_over_tls_in_every_bcp_195_profile(
    scp: Scp, shelf: Shelf, hospital: Authority, tmp_path: Path, profile: str
) -> None:
    save(images(2), tmp_path)
    own = hospital.issue(f"dcmtk{profile[1:]}")
    assert storescu(scp.tls_port, own, hospital.own.cert, tmp_path, profile) == 0
    assert len(shelf.received) == 2


@pytest.mark.peer
def test_dcmtk_of_another_authority_stores_nothing(
    scp: Scp, shelf: Shelf, hospital: Authority, stranger: Authority, tmp_path: Path
) -> None:
    save(images(1), tmp_path)
    own = stranger.issue("dcmtk")
    assert storescu(scp.tls_port, own, hospital.own.cert, tmp_path) != 0
    assert shelf.received == []


def test_silent_peers_hold_up_nobody_and_are_let_go(scp: Scp, identity: Identity) -> None:
    silent = [socket.create_connection(("127.0.0.1", scp.tls_port), 5) for _ in range(25)]
    begun = time.monotonic()
    echo(scp.tls_port, identity)
    assert time.monotonic() - begun < 1.0
    for connection in silent:
        with closing(connection):
            assert connection.recv(1) == b""


def test_a_renewed_certificate_is_shown_without_a_restart(
    shelf: Shelf, hospital: Authority, stranger: Authority, tmp_path: Path
) -> None:
    own = replaced(tmp_path, hospital.issue("before"), hospital)
    with listening(shelf, [SCANNER], tls=TlsPort(own, port=0)) as scp:
        caller = identity_of(hospital.issue("caller"), hospital)
        before = shown(scp.tls_port, caller)
        replaced(tmp_path, hospital.issue("after"), hospital)
        after = shown(scp.tls_port, caller)
        assert (before, after) == ("before", "after")
        # Other authorities are taken over with the same restart that is none.
        replaced(tmp_path, stranger.issue("other"), stranger)
        echo(scp.tls_port, identity_of(stranger.issue("caller"), stranger))
        with pytest.raises(PeerUnreachable):
            echo(scp.tls_port, caller)


def replaced(folder: Path, own: Certificate, authority: Authority) -> Identity:
    """The same three files with new contents, as renewal tools put them in place."""
    for source, name in ((own.cert, "c.pem"), (own.key, "k.pem"), (authority.own.cert, "ca.pem")):
        shutil.copy(source, folder / "new")
        (folder / "new").replace(folder / name)
    return Identity(str(folder / "c.pem"), str(folder / "k.pem"), str(folder / "ca.pem"))


def shown(port: int, caller: Identity) -> str:
    """The common name of the certificate that the acceptor shows."""
    context = client_context(caller)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert()
        assert certificate is not None
        subject = dict(pair for entry in certificate["subject"] for pair in entry)
        return str(subject["commonName"])


def test_a_half_written_renewal_keeps_the_certificate_before(
    shelf: Shelf, hospital: Authority, tmp_path: Path
) -> None:
    own = replaced(tmp_path, hospital.issue("whole"), hospital)
    caller = identity_of(hospital.issue("caller"), hospital)
    with listening(shelf, [SCANNER], tls=TlsPort(own, port=0)) as scp:
        Path(own.certificate).write_text("-----BEGIN CERTIFICATE-----\nhalf")
        with capture_logs() as logs:
            assert shown(scp.tls_port, caller) == "whole"
        assert "certificate not renewed" in logs[0]["event"]


def test_the_plain_port_is_open_to_this_machine_only_where_tls_is_required(
    shelf: Shelf, identity: Identity
) -> None:
    tls = TlsPort(identity, port=0)
    with listening(shelf, [SCANNER], bind="0.0.0.0", tls=tls) as scp:  # noqa: S104
        assert scp._server is not None and scp._tls_server is not None
        assert scp._server.server_address[0] == "127.0.0.1"
        assert scp._tls_server.server_address[0] == "0.0.0.0"  # noqa: S104


def test_a_key_may_be_a_credential_of_the_service(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(identity.key, tmp_path / "tls.key")
    given = Identity(identity.certificate, "credential:tls.key", identity.ca)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="LoadCredential"):
        server_context(given)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert located("credential:tls.key") == tmp_path / "tls.key"
    server_context(given)


def test_files_that_cannot_be_used_are_named(identity: Identity, hospital: Authority) -> None:
    other = hospital.issue("other")
    for wrong in (
        Identity(identity.certificate, str(other.key), identity.ca),
        Identity("/nowhere/c.pem", identity.key, identity.ca),
        Identity(identity.certificate, identity.key, "/nowhere/ca.pem"),
    ):
        with pytest.raises(ConfigError, match=r"scp.tls.*cannot be used"):
            server_context(wrong)
