"""Syslog over UDP, TCP and TLS: exact bytes, and no belief without the repository's closing."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.syslog import Repository, RepositoryUnreachable, Sender, framed, syslog_message
from tests.certificates import Certificate, certificate
from tests.collector import Collector

SENDER = Sender("ward7.example", "ai-node", "4711")
AT = "2025-01-31T08:00:00.000001Z"


def test_a_message_has_the_header_of_the_standard_and_the_mark_of_utf8() -> None:
    content = "<a>ü</a>".encode()
    assert syslog_message(content, AT, SENDER) == (
        b"<85>1 2025-01-31T08:00:00.000001Z ward7.example ai-node 4711 DICOM+RFC3881 - "
        b"\xef\xbb\xbf" + content
    )


@given(host=st.text(max_size=300), application=st.text(max_size=60))
def test_header_fields_are_printable_ascii_of_their_length(host: str, application: str) -> None:
    message = syslog_message(b"x", AT, Sender(host, application, ""))
    header = re.compile(rb"<85>1 \S+ [!-~]{1,255} [!-~]{1,48} - DICOM\+RFC3881 - \xef\xbb\xbfx")
    assert header.fullmatch(message)


def test_a_frame_counts_octets_and_not_characters() -> None:
    assert framed("ü".encode()) == b"2 \xc3\xbc"


MESSAGES = [b"first", b"second\nwith a line", b"3 " * 10_000]


@pytest.mark.parametrize("scheme", ["udp", "tcp"])
def test_messages_arrive_whole_and_in_order(scheme: str) -> None:
    with Collector(scheme) as collector:
        Repository(collector.url).deliver(MESSAGES)
        assert collector.wait_for(lambda taken: len(taken) == 3)
    assert collector.taken == MESSAGES


def test_what_tcp_took_is_read_when_deliver_returns() -> None:
    with Collector() as collector:
        Repository(collector.url).deliver(MESSAGES)
        assert collector.taken == MESSAGES


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("ours"), "node")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("theirs"))


def test_tls_with_certificates_on_both_sides(ours: Certificate, theirs: Certificate) -> None:
    with Collector("tls", theirs, trusted=ours) as collector:
        repository = Repository(collector.url, theirs.cert, ours.cert, ours.key)
        repository.deliver(MESSAGES)
        assert collector.taken == MESSAGES


def test_a_repository_with_another_certificate_gets_nothing(
    ours: Certificate, theirs: Certificate
) -> None:
    with (
        Collector("tls", theirs) as collector,
        pytest.raises(RepositoryUnreachable, match="certificate verify failed"),
    ):
        Repository(collector.url, ca=ours.cert).deliver(MESSAGES)
    assert collector.taken == []


def test_without_our_certificate_nothing_counts_as_delivered(
    ours: Certificate, theirs: Certificate
) -> None:
    with (
        Collector("tls", theirs, trusted=ours) as collector,
        pytest.raises(RepositoryUnreachable),
    ):
        Repository(collector.url, ca=theirs.cert).deliver(MESSAGES)
    assert collector.taken == []


def test_tls_is_at_least_1_2(theirs: Certificate) -> None:
    context = Repository("tls://h", ca=theirs.cert)._context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("scheme", ["tcp", "udp", "tls"])
def test_a_repository_that_is_down_is_told(scheme: str) -> None:
    with Collector(scheme) as collector:
        url = collector.url
    with pytest.raises(RepositoryUnreachable, match="they wait here") as raised:
        Repository(url).deliver(MESSAGES)
    assert raised.value.retryable


def test_a_missing_file_of_a_certificate_is_told(tmp_path: Path) -> None:
    with Collector() as collector:
        url = collector.url.replace("tcp", "tls")
        with pytest.raises(RepositoryUnreachable):
            Repository(url, ca=tmp_path / "none.pem").deliver(MESSAGES)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_repository_that_dies_with_messages_unread_did_not_take_them(
    scheme: str, after: int, theirs: Certificate
) -> None:
    secured = theirs if scheme == "tls" else None
    with (
        Collector(scheme, secured, dies_after=after) as collector,
        pytest.raises(RepositoryUnreachable),
    ):
        Repository(collector.url, ca=theirs.cert).deliver([b"x" * 1000] * 200)
    assert len(collector.taken) == after


def test_a_repository_that_never_closes_did_not_confirm() -> None:
    """It may be stopped in the middle; what its kernel holds would be lost with it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RepositoryUnreachable, match="timed out"):
            Repository(url, timeout_s=0.2).deliver([b"x"])


def test_ports_without_a_number_are_those_of_the_standards() -> None:
    ports = [Repository(f"{scheme}://h")._place[1] for scheme in ("udp", "tcp", "tls")]
    assert ports == [514, 601, 6514]
    assert Repository("tls://[::1]:99")._place == ("::1", 99)
