"""What both roles ask of pynetdicom."""

from __future__ import annotations

import socket

import pynetdicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import _config

from node.dicom.wire import connection_of, is_uid
from tests.dicom.callers import Shelf, calling, listening


@pytest.mark.parametrize("text", ["1", "1.2.840.10008.1.1", "01.02", "2.25." + "9" * 59])
def test_what_can_be_a_uid_is_one(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", ".1", "../../x", "/etc/x", "1.2\0", "1.2\n", "1.2\n3", "1.2 ", "1.２", "%2e",
     "9" * 65, "a"],
)  # fmt: skip
def test_what_cannot_be_a_uid_is_none(text: str) -> None:
    assert not is_uid(text)


@given(st.text(max_size=70))
def test_nothing_but_digits_and_dots_is_a_uid(text: str) -> None:
    if is_uid(text):
        assert set(text) <= set("0123456789.")
        assert 1 <= len(text) <= 64


def test_the_library_is_the_version_whose_inside_we_know() -> None:
    assert pynetdicom.__version__ == "3.0.4"


def test_the_librarys_message_log_is_off() -> None:
    assert _config.LOG_HANDLER_LEVEL == "none"
    assert not _config.LOG_REQUEST_IDENTIFIERS
    assert not _config.LOG_RESPONSE_IDENTIFIERS


def nodelay(connection: socket.socket) -> bool:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_both_ends_of_an_association_send_without_delay() -> None:
    with listening(Shelf()) as scp, calling(scp.port) as association:
        (acceptor,) = scp._ae.active_associations
        ends = connection_of(association), connection_of(acceptor)
        assert [nodelay(end) for end in ends] == [True, True]
        assert ends[0].gettimeout() == 5.0
