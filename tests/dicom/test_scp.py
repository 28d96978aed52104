"""The receiver: who may call, what is kept, and what the sender is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from structlog.testing import capture_logs

from node.dicom import scu
from node.dicom.contexts import VERIFICATION, plain
from node.dicom.requestor import associated, gone
from node.dicom.scp import Outcome
from node.dicom.wire import is_uid
from node.domain.errors import DigestMismatch, HeaderError, PeerRejected, SpoolError, SpoolFull
from node.domain.peer import Network, Peer
from node.testing.modality import Called, send
from tests.dicom.callers import (
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    Shelf,
    answer_to,
    calling,
    images,
    listening,
    named,
    node_at,
    store_request,
)


def called(port: int, calling_ae: str = "SCANNER") -> Called:
    return Called("127.0.0.1", port, "NODE", calling_ae)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Shelf, int]]:
    """A receiver for the tests that leave nothing behind."""
    shelf = Shelf()
    with listening(shelf) as scp:
        yield shelf, scp.port


def test_a_port_of_zero_becomes_a_real_one() -> None:
    with listening(Shelf()) as scp:
        assert scp.port > 0
    assert scp.port == 0


def test_the_bytes_reach_keep_as_they_came() -> None:
    shelf, sent = Shelf(), images(3)
    with listening(shelf) as scp:
        assert send(sent, called(scp.port)).statuses == {0x0000: 3}
    first = shelf.received[0]
    assert [r.sop_instance_uid for r in shelf.received] == [d.SOPInstanceUID for d in sent]
    assert (first.sop_class_uid, first.transfer_syntax_uid) == (MR, EXPLICIT)
    assert (first.peer, first.calling_ae, first.called_ae) == ("scanner", "SCANNER", "NODE")
    assert first.address == "127.0.0.1"
    # Implicit and explicit would differ in length; the pixels end the data set.
    assert bytes(first.dataset).endswith(sent[0].PixelData)
    assert not bytes(first.dataset).startswith(b"\2\0")


def test_a_data_set_that_names_its_instance_is_kept_whatever_follows(
    shared: tuple[Shelf, int],
) -> None:
    shelf, port = shared
    content = named(MR, "1.2.3") + b"not a data set at all"
    with calling(port) as association:
        answer = answer_to(association, store_request(MR, "1.2.3", content))
    assert answer.Status == 0x0000
    assert shelf.received[-1].dataset == content


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"not a data set at all", 0xC000),
        (named(CT, "1.2.3"), 0xA900),
        (named(MR, "1.2.4"), 0xA900),
        (named(MR, "1.2.3")[:-12], 0xA900),
    ],
)
def test_what_can_be_no_instance_is_refused_at_once(
    shared: tuple[Shelf, int], content: bytes, status: int
) -> None:
    shelf, port = shared
    before = len(shelf.received)
    with calling(port) as association:
        assert answer_to(association, store_request(MR, "1.2.3", content)).Status == status
    assert len(shelf.received) == before


def test_associations_at_the_same_time_keep_everything() -> None:
    shelf, sent = Shelf(), images(40)
    parts = [sent[start::4] for start in range(4)]
    with listening(shelf) as scp, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda part: send(part, called(scp.port)).accepted, parts))
    assert results == [10, 10, 10, 10]
    kept = {received.sop_instance_uid for received in shelf.received}
    assert kept == {dataset.SOPInstanceUID for dataset in sent}


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (SpoolFull("the disk is full"), 0xA700),
        (SpoolError("fsync failed"), 0xA700),
        (DigestMismatch("other bytes"), 0xA700),
        (HeaderError("not for us"), 0xC000),
        (ZeroDivisionError("a mistake of ours"), 0x0110),
        (OSError("not wrapped"), 0x0110),
    ],
)
def test_what_is_not_kept_is_never_a_success(failure: Exception, status: int) -> None:
    shelf = Shelf(failure=failure)
    with listening(shelf) as scp:
        result = send(images(2), called(scp.port))
        assert result.statuses == {status: 2}
        assert result.accepted == 0
        shelf.failure = None
        assert send(images(2), called(scp.port)).accepted == 2


def test_the_error_comment_fits_its_element_and_is_ascii() -> None:
    shelf = Shelf(failure=SpoolFull("kein Platz übrig\\n " + "x" * 100))
    with listening(shelf) as scp, calling(scp.port) as association:
        answer = answer_to(association, store_request(MR, "1.2.3", named(MR, "1.2.3")))
    assert len(answer.ErrorComment) == 64
    assert answer.ErrorComment.startswith("kein Platz ?brig/n x")


def test_another_class_than_the_contexts_is_refused(shared: tuple[Shelf, int]) -> None:
    shelf, port = shared
    before = len(shelf.received)
    with calling(port, MR) as association:
        assert answer_to(association, store_request(CT, "1.2.3", b"1234")).Status == 0x0122
    assert len(shelf.received) == before


def test_a_store_that_names_verification_is_not_answered_success(
    shared: tuple[Shelf, int],
) -> None:
    shelf, port = shared
    before = len(shelf.received)
    with calling(port, MR) as association:
        answer = answer_to(association, store_request(VERIFICATION, "1.2.3", b"1234"))
    assert answer.Status == 0x0122
    assert len(shelf.received) == before


def test_an_empty_data_set_is_refused(shared: tuple[Shelf, int]) -> None:
    _, port = shared
    request = store_request(MR, "1.2.3", None)
    with calling(port) as association:
        assert answer_to(association, request).Status == 0xC000


@pytest.mark.parametrize("uid", ["../../x", "/etc/x", "1.2\n3", "%2e%2e", "a" * 64, "..", "1.2;3"])
def test_an_invalid_instance_uid_is_refused(shared: tuple[Shelf, int], uid: str) -> None:
    shelf, port = shared
    before = len(shelf.received)
    with calling(port) as association:
        assert answer_to(association, store_request(MR, uid, b"1234")).Status == 0x0117
    assert len(shelf.received) == before


def test_a_leading_zero_in_a_uid_is_let_pass(shared: tuple[Shelf, int]) -> None:
    _, port = shared
    with calling(port) as association:
        answer = answer_to(association, store_request(MR, "1.02.3", named(MR, "1.02.3")))
    assert answer.Status == 0x0000


# A backslash parts two values and the library passes the first on; of nothing but padding it makes
# no UID at all, and does not answer.
ASCII = st.text(
    alphabet=st.characters(max_codepoint=127, exclude_characters="\\"), min_size=1, max_size=64
).filter(lambda text: text.strip(" \0\t\n\v\f\r\x1c\x1d\x1e\x1f") != "")


@settings(max_examples=40)
@given(uid=ASCII | st.from_regex(r"[0-9.]{1,64}", fullmatch=True))
def test_any_uid_is_answered_by_the_table(shared: tuple[Shelf, int], uid: str) -> None:
    shelf, port = shared
    before = len(shelf.received)
    with calling(port) as association:
        answer = answer_to(association, store_request(MR, uid, named(MR, uid)))
    assert answer is None or answer.Status in (0x0000, 0x0117, 0xA900)
    acknowledged = answer is not None and answer.Status == 0x0000
    assert len(shelf.received) == before + acknowledged
    # Nothing else than a UID is ever handed on.
    assert all(is_uid(received.sop_instance_uid) for received in shelf.received)


def test_a_sender_that_aborts_half_way_leaves_nothing() -> None:
    shelf = Shelf()
    with listening(shelf) as scp:
        with calling(scp.port) as association:
            first_fragments(association, 3)
            association.abort()
        # The next one is served, so the half message has been dealt with.
        assert send(images(1), called(scp.port)).accepted == 1
    assert len(shelf.received) == 1


def first_fragments(association: Association, count: int) -> None:
    """The command and the beginning of a data set of 1 MB."""
    message: Any = C_STORE_RQ()
    message.primitive_to_message(store_request(MR, "1.2.3", bytes(1 << 20)))
    fragments = message.encode_msg(1, 16382)
    for _ in range(count):
        association.dul.send_pdu(next(fragments))


def test_a_connection_that_stops_in_the_middle_of_a_pdu_is_closed() -> None:
    with (
        listening(Shelf(), pdu_timeout_s=0.3) as scp,
        socket.create_connection(("127.0.0.1", scp.port), timeout=10.0) as caller,
    ):
        caller.sendall(b"\x01")
        assert caller.recv(1) == b""


def rejected(port: int, calling_ae: str = "SCANNER", called_ae: str = "NODE") -> str:
    with pytest.raises(PeerRejected) as caught:
        scu.echo(Network(calling_ae), node_at(port, called_ae))
    return str(caught.value)


def test_an_unknown_calling_ae_title_is_rejected_logged_and_told() -> None:
    shelf = Shelf()
    with listening(shelf) as scp, capture_logs() as logs:
        assert "Calling AE title not recognised" in rejected(scp.port, calling_ae="STRANGER")
    (outcome,) = shelf.outcomes
    assert (outcome.accepted, outcome.calling_ae) == (False, "STRANGER")
    (line,) = [entry for entry in logs if entry["event"] == "association rejected"]
    assert line["address"] == "127.0.0.1"
    assert "add a [[peer]]" in line["reason"]


def test_another_called_ae_title_is_rejected() -> None:
    with listening(Shelf()) as scp:
        assert "Called AE title not recognised" in rejected(scp.port, called_ae="OTHER")


def test_a_known_ae_title_from_another_address_is_rejected() -> None:
    with listening(Shelf(), [Peer("scanner", "SCANNER", hosts=("192.0.2.0/24",))]) as scp:
        assert "Calling AE title not recognised" in rejected(scp.port)


def test_unknown_callers_are_taken_where_configured() -> None:
    shelf = Shelf()
    with listening(shelf, [], accept_unknown=True) as scp:
        assert send(images(1), called(scp.port, "STRANGER")).accepted == 1
    assert shelf.received[0].peer == "unknown"
    assert shelf.outcomes[0].accepted


def test_one_association_too_many_is_rejected_as_transient() -> None:
    shelf = Shelf()
    with listening(shelf, maximum_associations=1) as scp, calling(scp.port):
        assert "Local limit exceeded" in rejected(scp.port)
        assert [outcome.accepted for outcome in shelf.outcomes] == [True, False]
        assert "maximum_associations" in shelf.outcomes[1].reason


class Broken(list[Outcome]):
    """Fails with whoever tells it something."""

    def append(self, outcome: Outcome) -> None:
        raise RuntimeError("a mistake of ours")


def test_an_observer_that_fails_lets_nobody_in() -> None:
    shelf = Shelf(outcomes=Broken())
    with listening(shelf) as scp:
        assert "No reason given" in rejected(scp.port)
    assert shelf.received == []


def test_echo_is_answered() -> None:
    with listening(Shelf()) as scp:
        answer = scu.echo(Network("SCANNER"), node_at(scp.port))
    assert answer.latency_ms > 0
    assert answer.offers[0].accepted


@pytest.mark.parametrize(
    ("syntax", "accepted"),
    [
        (IMPLICIT, True),
        ("1.2.840.10008.1.2.2", True),
        ("1.2.840.10008.1.2.4.112", True),
        ("1.2.840.10008.1.2.4.107", True),
        ("1.2.840.10008.1.2.1.99", False),
    ],
)
def test_contexts_are_accepted_but_for_deflated(
    shared: tuple[Shelf, int], syntax: str, accepted: bool
) -> None:
    _, port = shared
    proposed = plain(MR)
    proposed.transfer_syntax = [syntax]
    with associated(Network("SCANNER"), node_at(port), [plain(VERIFICATION), proposed]) as opened:
        agreed = {str(c.abstract_syntax): c.transfer_syntax[0] for c in opened.accepted_contexts}
    assert (agreed.get(MR) == syntax) is accepted


def test_stopping_ends_the_open_associations() -> None:
    with listening(Shelf()) as scp, calling(scp.port) as association:
        scp.stop()
        association.dimse.get_msg(block=True)  # ends when the association does
        assert gone(association)
