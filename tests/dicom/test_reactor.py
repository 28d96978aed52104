"""The reactor: what it waits for, how long, and how much it takes."""

from __future__ import annotations

import inspect
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynetdicom
import pytest
from pynetdicom import _config, _globals, evt, transport
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE, InvalidEventError, StateMachine
from structlog.testing import capture_logs

from node.dicom.line import Gone, Line, Overdue
from node.dicom.reactor import Patience, Progress
from node.dicom.scp import Scp
from tests.bench.replay import (
    RELEASE,
    association_request,
    echo_command,
    element,
    message,
    pdata,
    read_pdu,
    status_of,
    store_command,
)
from tests.dicom.callers import MR, SCANNER, Shelf, listening, named

ABORT = b"\x07"


@contextmanager
def opened(scp: Scp) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", scp.port), timeout=10) as connection:
        connection.sendall(association_request("SCANNER", "NODE", MR))
        assert read_pdu(connection)[:1] == b"\x02"
        yield connection


def ended(connection: socket.socket) -> tuple[bytes, float]:
    """The first byte of the last PDU before the end, and how long that took in seconds."""
    begun, last = time.monotonic(), b""
    while pdu := read_pdu(connection):
        last = pdu[:1]
    return last, time.monotonic() - begun


HALF = pdata(1, 3, store_command(MR, "1.2.3"))[:30]
BEGUN = pdata(1, 3, store_command(MR, "1.2.3")) + pdata(1, 0, bytes(10))


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        (b"", {"network_timeout_s": 0.2}),
        (HALF, {"pdu_timeout_s": 0.2}),
        (HALF[:3], {"pdu_timeout_s": 0.2}),
        (BEGUN, {"dimse_timeout_s": 0.2}),
        (BEGUN, {"message_timeout_s": 0.2}),
        (BEGUN + HALF, {"message_timeout_s": 0.2}),
    ],
)
def test_every_silence_ends_in_an_abort(sent: bytes, limit: dict[str, float]) -> None:
    with listening(Shelf(), **limit) as scp, opened(scp) as connection:
        connection.sendall(sent)
        last, took = ended(connection)
    assert last == ABORT
    assert took < 2.0


def test_a_connection_that_asks_for_nothing_is_closed() -> None:
    with (
        listening(Shelf(), acse_timeout_s=0.2) as scp,
        socket.create_connection(("127.0.0.1", scp.port), timeout=10) as connection,
    ):
        assert ended(connection)[1] < 2.0


def test_a_message_that_drips_is_aborted_when_its_time_is_over() -> None:
    shelf = Shelf()
    with listening(shelf, message_timeout_s=0.5) as scp, opened(scp) as connection:
        begun = time.monotonic()
        connection.sendall(BEGUN)
        connection.settimeout(0.02)
        while not dripped(connection):
            assert time.monotonic() < begun + 3
    assert shelf.received == []


def dripped(connection: socket.socket) -> bool:
    """Send one byte more; whether the answer is an abort."""
    connection.sendall(pdata(1, 0, b"x"))
    try:
        return connection.recv(1) == ABORT
    except TimeoutError:
        return False


def test_a_message_has_a_least_rate_once_its_grace_is_over() -> None:
    patience = Patience(rate=1000.0, grace_s=10.0, message_s=300.0, pause_s=60.0, pdu_s=30.0)
    progress = Progress(patience)
    progress.begin()
    now = time.monotonic()
    assert progress.until() == pytest.approx(now + 10, abs=0.1)
    progress.received = 5000
    assert progress.until() == pytest.approx(now + 15, abs=0.1)
    assert progress.until(coming=2000) == pytest.approx(now + 17, abs=0.1)
    progress.received = 10**9
    assert progress.until() == pytest.approx(now + 60, abs=0.1)
    assert progress.until(coming=1) == pytest.approx(now + 30, abs=0.1)
    progress.end()
    assert progress.until() == pytest.approx(now + 60, abs=0.1)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">BBI", 4, 0, 131079),
        struct.pack(">BBI", 4, 0, 0xFFFFFFFF),
        struct.pack(">BBI", 1, 0, 65537),
        struct.pack(">BBI", 9, 0, 4),
        struct.pack(">BBI", 4, 0, 0),
        struct.pack(">BBIIBB", 4, 0, 6, 1, 1, 3),
        struct.pack(">BBIIBB", 4, 0, 6, 3, 1, 3),
        pdata(1, 0, b"data without a command"),
        pdata(1, 1, b"") + pdata(3, 1, b""),
        b"".join(pdata(1, 1, bytes(16000)) for _ in range(2)),
        pdata(5, 3, store_command(MR, "1.2.3")),
        pdata(1, 3, store_command(MR, "1.2.3")[:-1]),
        pdata(1, 3, element(0x0100, b"\1\0") + element(0x0800, b"\0\0")),
        pdata(3, 3, element(0x0100, b"\x77\x77") + element(0x0110, b"\1\0")),
        association_request("SCANNER", "NODE", MR),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_aborted_at_once(sent: bytes) -> None:
    shelf = Shelf()
    with listening(shelf) as scp, opened(scp) as connection, capture_logs():
        connection.sendall(sent + bytes(10))
        last, took = ended(connection)
        assert last == ABORT
        assert took < 2.0
    assert shelf.received == []


def test_an_object_may_not_be_longer_than_configured() -> None:
    shelf = Shelf()
    whole = named(MR, "1.2.3") + bytes(100_000)
    with listening(shelf, maximum_object=100_000) as scp:
        with opened(scp) as connection:
            connection.sendall(message(store_command(MR, "1.2.3"), whole, 16384))
            assert ended(connection)[0] == ABORT
        with opened(scp) as connection:
            fits = named(MR, "1.2.4")
            connection.sendall(message(store_command(MR, "1.2.4"), fits))
            assert status_of(read_pdu(connection)) == 0
    assert [received.sop_instance_uid for received in shelf.received] == ["1.2.4"]


Cutter = Callable[[bytes], list[bytes]]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_fragments_and_packets_of_any_size_make_the_same_object(size: int) -> None:
    shelf = Shelf()
    dataset = named(MR, "1.2.3") + bytes(range(256)) * 4
    parts = [dataset[at : at + size] for at in range(0, len(dataset), size)]
    command = store_command(MR, "1.2.3")
    sent = b"".join(
        [pdata(1, 1, command[:10]), pdata(1, 3, command[10:])]
        + [pdata(1, 0, part) for part in parts[:-1]]
        + [pdata(1, 2, parts[-1])]
    )
    with listening(shelf) as scp, opened(scp) as connection:
        for at in range(0, len(sent), 997):
            connection.sendall(sent[at : at + 997])
        assert status_of(read_pdu(connection)) == 0
    assert shelf.received[0].dataset == dataset


def test_command_and_data_set_may_share_a_pdu() -> None:
    shelf = Shelf()
    dataset = named(MR, "1.2.3")
    parts = pdata(1, 3, store_command(MR, "1.2.3"))[6:], pdata(1, 0, dataset)[6:]
    body = b"".join(parts) + struct.pack(">IBB", 2, 1, 2)
    with listening(shelf) as scp, opened(scp) as connection:
        connection.sendall(struct.pack(">BBI", 4, 0, len(body)) + body)
        assert status_of(read_pdu(connection)) == 0
    assert shelf.received[0].dataset == dataset


def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    shelf = Shelf()
    uids = [f"1.2.{number}" for number in range(20)]
    with listening(shelf) as scp, opened(scp) as connection:
        connection.sendall(
            b"".join(
                message(store_command(MR, uid, number), named(MR, uid))
                for number, uid in enumerate(uids)
            )
            + pdata(3, 3, echo_command())
            + RELEASE
        )
        answers = [read_pdu(connection) for _ in range(22)]
    assert [status_of(answer) for answer in answers[:21]] == [0] * 21
    assert all(uid.encode() in answer for uid, answer in zip(uids, answers, strict=False))
    assert answers[21][:1] == b"\x06"


def test_an_abort_and_a_lost_connection_leave_nothing_of_half_an_object() -> None:
    shelf = Shelf()
    with listening(shelf) as scp:
        for end in (b"\x07\0\0\0\0\4\0\0\0\0", b""):
            with opened(scp) as connection:
                connection.sendall(BEGUN + end)
        with opened(scp) as connection:
            connection.sendall(pdata(3, 3, echo_command()))
            assert status_of(read_pdu(connection)) == 0
    assert shelf.received == []


def test_stopping_tells_the_peer() -> None:
    with listening(Shelf()) as scp, opened(scp) as connection:
        scp.stop()
        assert ended(connection)[0] == ABORT


def test_a_line_reads_to_the_end_of_short_reads() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        line = Line(_loop(ours), tick_s=0.05)
        theirs.sendall(b"ab")
        buffer = bytearray(4)
        assert line.begin(memoryview(buffer), time.monotonic() + 1) == 2
        with pytest.raises(Overdue):
            line.fill(memoryview(buffer), time.monotonic() + 0.1)
        theirs.close()
        with pytest.raises(Gone):
            line.fill(memoryview(buffer), time.monotonic() + 1)
        line.close()
        line.close()


def _loop(connection: socket.socket) -> Any:
    """A socket of another family that may be asked for TCP's option."""

    class Tcp(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            if level != socket.IPPROTO_TCP:
                super().setsockopt(level, option, value)

    return Tcp(connection.family, connection.type, fileno=connection.detach())


# What we touch of the library that it does not promise to keep.


def test_the_library_is_the_version_whose_inside_we_know() -> None:
    assert pynetdicom.__version__ == "3.0.4"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            DULServiceProvider,
            "_decode_pdu _process_recv_primitive send_pdu receive_pdu peek_next_pdu stop_dul",
        ),
        (Association, "_serve_request run_reactor set_socket kill bind abort"),
        (transport.AssociationSocket, "_shutdown_socket send close event_queue tls_args"),
        (transport.AssociationServer, "get_request service_actions handle_error bind"),
        (transport.AssociationServer, "process_request active_associations"),
        (transport.RequestHandler, "handle local remote"),
        (StateMachine, "do_action transition"),
        (DIMSEMessage, "decode_msg message_to_primitive"),
        (_config, "LOG_HANDLER_LEVEL LOG_REQUEST_IDENTIFIERS STORE_SEND_CHUNKED_DATASET"),
        (evt, "EVT_REQUESTED EVT_C_ECHO EVT_N_EVENT_REPORT trigger"),
    ],
)
def test_the_inside_has_the_names_that_we_use(owner: Any, names: str) -> None:
    assert [name for name in names.split() if not hasattr(owner, name)] == []


def test_an_association_has_the_state_that_we_use() -> None:
    association = Association(pynetdicom.AE(), _globals.MODE_ACCEPTOR)
    names = "_accepted_cx _kill _server acse dimse dul is_rejected is_aborted is_established"
    assert [name for name in names.split() if not hasattr(association, name)] == []
    dul = association.dul
    names = "event_queue _recv_pdu to_provider_queue to_user_queue artim_timer state_machine socket"
    assert [name for name in names.split() if not hasattr(dul, name)] == []
    assert not dul.is_alive()


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (DULServiceProvider.__init__, ["self", "assoc"]),
        (DULServiceProvider._decode_pdu, ["self", "bytestream"]),
        (Association.__init__, ["self", "ae", "mode"]),
        (Association._serve_request, ["self", "msg", "context_id"]),
        (DIMSEMessage.decode_msg, ["self", "primitive", "assoc"]),
        (transport.AssociationSocket.__init__, ["self", "assoc", "client_socket", "address"]),
    ],
)
def test_the_inside_is_called_as_we_call_it(function: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_the_state_machine_goes_the_ways_that_we_rely_on() -> None:
    ways = {
        ("Evt5", "Sta1"): "AE-5",
        ("Evt6", "Sta2"): "AE-6",
        ("Evt17", "Sta2"): "AA-5",
        ("Evt18", "Sta2"): "AA-2",
        ("Evt19", "Sta2"): "AA-1",
        ("Evt19", "Sta6"): "AA-8",
        ("Evt17", "Sta6"): "AA-4",
        ("Evt12", "Sta6"): "AR-2",
    }
    assert {way: TRANSITION_TABLE[way] for way in ways} == ways
    assert set(ways.values()) <= set(ACTIONS)
    assert issubclass(InvalidEventError, Exception)


def test_the_two_threads_of_the_library_are_one_here() -> None:
    with listening(Shelf(), [SCANNER]) as scp, opened(scp):
        assert scp._server is not None
        (acceptor,) = scp._server.active_associations
        assert acceptor.is_alive()
        assert not acceptor.dul.is_alive()
