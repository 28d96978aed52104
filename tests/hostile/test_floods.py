"""The receiver under more callers than it has room for."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from node.testing.series import save
from tests.bench.replay import RELEASE, connect, pdata, read_pdu, store_command
from tests.certificates import Authority
from tests.dicom.callers import MR, images
from tests.hostile.receiver import Running, answers, opened, running
from tests.peers import free_port, storescu

_TLS = """
maximum_connections = 300
maximum_connections_per_address = 300
[scp.tls]
port = {port}
required = false
certificate = "{own.cert}"
key = "{own.key}"
ca = "{ca}"
"""


THREADS: list[int] = []
"""How many threads the receiver has when nobody calls."""


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def receiver(tls_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hospital = Authority.found(tmp_path_factory.mktemp("hospital"), "hospital")
    tls = _TLS.format(port=tls_port, own=hospital.issue("node"), ca=hospital.own.cert)
    with running(tls) as found:
        waited(found, 0.5)
        THREADS.append(threads(found))
        yield found


def associated_and_gone(port: int) -> bool:
    """One association, released at once."""
    with suppress(OSError, AssertionError), opened(port) as connection:
        connection.sendall(RELEASE)
        return read_pdu(connection)[:1] == b"\x06"
    return False


def storm(port: int, count: int) -> int:
    """So many associations, four at a time; how many were served."""
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(lambda _: associated_and_gone(port), range(count)))


def descriptors(receiver: Running) -> int:
    return len(os.listdir(f"/proc/{receiver.process.pid}/fd"))


def threads(receiver: Running) -> int:
    return len(os.listdir(f"/proc/{receiver.process.pid}/task"))


def waited(receiver: Running, seconds: float) -> None:
    """Let time pass, for what is measured over it."""
    with suppress(subprocess.TimeoutExpired):
        receiver.process.wait(seconds)


def settled(receiver: Running) -> None:
    """Wait until every association has come to its end."""
    until = time.monotonic() + 10
    while threads(receiver) > THREADS[-1] and time.monotonic() < until:
        waited(receiver, 0.05)
    assert threads(receiver) <= THREADS[-1]


def test_a_storm_of_associations_is_served_and_leaves_nothing(receiver: Running) -> None:
    assert storm(receiver.port, 20) == 20
    settled(receiver)
    before = descriptors(receiver)
    assert storm(receiver.port, 400) == 400
    begun = time.monotonic()
    assert answers(receiver.port)
    assert time.monotonic() - begun < 1.0
    settled(receiver)
    assert descriptors(receiver) <= before
    assert receiver.peak_mb < 300


@pytest.mark.slow
def test_ten_thousand_associations_take_a_minute_at_most(receiver: Running) -> None:
    begun = time.monotonic()
    assert storm(receiver.port, 10_000) == 10_000
    assert time.monotonic() - begun < 60
    begun = time.monotonic()
    assert answers(receiver.port)
    assert time.monotonic() - begun < 1.0
    assert receiver.peak_mb < 300


def test_twenty_idle_associations_cost_next_to_nothing(receiver: Running) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(opened(receiver.port))
        before, begun = receiver.cpu_s, time.monotonic()
        waited(receiver, 2.0)
        assert (receiver.cpu_s - before) / (time.monotonic() - begun) < 0.02


def half_pdus(receiver: Running, count: int, stack: ExitStack) -> None:
    """Connections that stop within a PDU: at its header, and within an association."""
    half = pdata(1, 3, store_command(MR, "1.2.3"))[:40]
    for number in range(count):
        if number % 25 == 0:  # those who are known, and behave no better
            connection = stack.enter_context(opened(receiver.port))
            connection.sendall(half)
        else:
            connection = stack.enter_context(connect(receiver.port))
            with suppress(ConnectionError):
                connection.sendall(b"\x01\0\0\0" if number % 2 else b"\x01")


def silent(port: int, count: int, stack: ExitStack) -> None:
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))


def sent_in(receiver: Running, files: Path) -> float:
    """Seconds that storescu takes for a folder."""
    begun = time.monotonic()
    result = storescu([files], receiver.port, "AINODE", calling_ae="REPLAY")
    assert result.returncode == 0, result.stderr
    return time.monotonic() - begun


@pytest.mark.peer
def test_a_sender_works_on_beside_half_pdus_and_silent_tls_peers(
    receiver: Running, tls_port: int, tmp_path: Path
) -> None:
    save(images(200), tmp_path)
    alone = min(sent_in(receiver, tmp_path) for _ in range(3))
    with ExitStack() as stack:
        half_pdus(receiver, 200, stack)
        silent(tls_port, 50, stack)
        beside = min(sent_in(receiver, tmp_path) for _ in range(3))
        assert answers(receiver.port)
    # Full rate, but for what a machine with other things to do adds to either.
    assert beside < 1.5 * alone + 0.2
    assert receiver.peak_mb < 300


def test_an_object_without_end_costs_no_memory(receiver: Running) -> None:
    before = receiver.peak_mb
    with opened(receiver.port) as connection:
        connection.sendall(pdata(1, 3, store_command(MR, "1.2.3")))
        for _ in range(1000):
            connection.sendall(pdata(1, 0, bytes(130_000)))
    settled(receiver)
    assert receiver.peak_mb - before < 10
    assert not list((receiver.spool / "incoming").glob("*.part"))
