"""The receiver among those who mean it no good."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from node.dicom.wire import is_uid
from tests.bench.replay import connect, read_pdu, status_of
from tests.hostile.pdus import Hostile, inputs
from tests.hostile.receiver import Running, answers, opened, running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Running]:
    with running() as found:
        yield found


def successes(receiver: Running, hostile: Hostile) -> int:
    """Send it, close our half, and count what was acknowledged as stored."""
    connection = opened(receiver.port) if hostile.associated else connect(receiver.port)
    count = 0
    with connection, suppress(OSError):
        connection.settimeout(10.0)
        connection.sendall(hostile.content)
        connection.shutdown(socket.SHUT_WR)
        while pdu := read_pdu(connection):
            stored = b"\x00\x01\x02\x00\x00\x00\x01\x80" in pdu  # C-STORE-RSP
            count += stored and status_of(pdu) == 0
    return count


def put_up_with(receiver: Running, seed: int, count: int) -> int:
    """Send so many hostile inputs; how many objects were acknowledged among them."""
    acknowledged = 0
    for number, hostile in enumerate(inputs(seed, count)):
        acknowledged += successes(receiver, hostile)
        assert receiver.process.poll() is None, hostile.name
        if number % 20 == 0:
            begun = time.monotonic()
            assert answers(receiver.port), hostile.name
            assert time.monotonic() - begun < 1.0, hostile.name
    return acknowledged


def test_hostile_inputs_leave_it_alive_answering_and_truthful(receiver: Running) -> None:
    before = len(receiver.kept())
    acknowledged = put_up_with(receiver, seed=1, count=1040)
    kept = receiver.kept()
    assert acknowledged > 0
    assert len(kept) - before == acknowledged
    assert all(map(is_uid, kept))
    assert not list((receiver.spool / "incoming").glob("*.part"))
    assert receiver.peak_mb < 300


@pytest.mark.slow
def test_ten_thousand_hostile_inputs_do_no_more(receiver: Running) -> None:
    before = len(receiver.kept())
    acknowledged = put_up_with(receiver, seed=2, count=10_400)
    assert len(receiver.kept()) - before == acknowledged
    assert receiver.peak_mb < 300
