"""Opening an association, and why it did not open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.dicom.contexts import VERIFICATION, plain
from node.dicom.requestor import associated, known_peer
from node.domain.errors import ContextRejected, PeerError, PeerRejected, PeerUnreachable
from node.domain.peer import Network, Peer
from node.testing.archive import Archive, Faults

NETWORK = Network("NODE", connect_timeout_s=1.0, answer_timeout_s=0.5)
ECHO = [plain(VERIFICATION)]


def open_and_close(peer: Peer, uid: str = VERIFICATION) -> None:
    with associated(NETWORK, peer, [plain(uid)]):
        pass


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerUnreachable, match="takes no connection"):
        open_and_close(Peer("pacs", "PACS", "127.0.0.1", port))


def test_a_port_that_is_silent_is_unreachable_when_the_time_is_up() -> None:
    with silent() as port, pytest.raises(PeerUnreachable, match="did not answer"):
        open_and_close(Peer("pacs", "PACS", "127.0.0.1", port))


def test_a_host_without_an_address_is_unreachable() -> None:
    with pytest.raises(PeerUnreachable, match="host name no.such.host.invalid is unknown"):
        open_and_close(Peer("pacs", "PACS", "no.such.host.invalid", 104))


def test_a_peer_that_only_calls_us_cannot_be_called() -> None:
    with pytest.raises(PeerError, match="has no host or port"):
        open_and_close(Peer("scanner", "CT1"))


def test_a_rejection_says_why_and_names_our_ae_title() -> None:
    with Archive(faults=Faults(refuse=True)) as archive:
        peer = Peer("pacs", "ARCHIVE", "127.0.0.1", archive.port)
        with pytest.raises(PeerRejected, match=r"No reason given.*our AE title NODE"):
            open_and_close(peer)


def test_nothing_accepted_is_an_error_that_names_what_was_proposed() -> None:
    with Archive() as archive:
        peer = Peer("pacs", "ARCHIVE", "127.0.0.1", archive.port)
        with pytest.raises(ContextRejected, match="Modality Worklist"):
            open_and_close(peer, "1.2.840.10008.5.1.4.31")


def test_an_unknown_name_lists_the_names_there_are() -> None:
    network = Network("NODE", {"pacs": Peer("pacs", "PACS"), "ct": Peer("ct", "CT1")})
    assert known_peer(network, "ct").ae_title == "CT1"
    with pytest.raises(PeerError, match=r"no peer is named 'pax' \(known: ct, pacs\)"):
        known_peer(network, "pax")


def test_nobody_else_reads_the_answers() -> None:
    with Archive() as archive:
        peer = Peer("pacs", "ARCHIVE", "127.0.0.1", archive.port)
        with associated(NETWORK, peer, ECHO) as association:
            assert not association.is_alive()


def test_no_thread_is_left_behind_by_what_failed() -> None:
    before = threading.active_count()
    with silent() as port, pytest.raises(PeerUnreachable):
        open_and_close(Peer("pacs", "PACS", "127.0.0.1", port))
    assert threading.active_count() <= before
