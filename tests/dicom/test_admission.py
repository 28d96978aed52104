"""Who may call us."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom.admission import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    AllowList,
    parse_address,
    resolve,
)
from node.domain.peer import Peer
from tests.conftest import Clock

NAMES = {"ct.hospital": ["10.1.2.3", "2001:db8::7"], "pacs.hospital": ["10.9.9.9"]}


def by_table(name: str) -> Iterable[str]:
    return NAMES.get(name, ())


def allowing(*peers: Peer, accept_unknown: bool = False) -> AllowList:
    return AllowList("NODE", peers, Clock(0.0), by_table, accept_unknown)


def scanner(*hosts: str, host: str = "") -> Peer:
    return Peer("ct", "CT1", host, 104, hosts)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (scanner("10.0.0.5"), "10.0.0.5"),
        (scanner("10.0.0.5", "10.0.0.6"), "10.0.0.6"),
        (scanner("10.0.0.0/24"), "10.0.0.255"),
        (scanner("10.0.0.77/24"), "10.0.0.1"),  # host bits set: the network is meant
        (scanner("2001:db8::/32"), "2001:db8:1::9"),
        (scanner("fe80::1"), "fe80::1%eth0"),
        (scanner("10.0.0.5"), "::ffff:10.0.0.5"),  # a dual-stack socket
        (scanner("ct.hospital"), "10.1.2.3"),
        (scanner("ct.hospital"), "2001:db8::7"),
        (scanner(host="pacs.hospital"), "10.9.9.9"),
        (scanner(host="10.0.0.9"), "10.0.0.9"),
    ],
)
def test_a_peer_is_let_in_from_its_addresses(peer: Peer, address: str) -> None:
    assert allowing(peer).admit("CT1", "NODE", address).peer == "ct"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (scanner("10.0.0.5"), "10.0.0.6"),
        (scanner("10.0.0.0/24"), "10.0.1.0"),
        (scanner("10.0.0.0/24"), "2001:db8::1"),
        (scanner("::/0"), "10.0.0.5"),
        (scanner("nowhere.hospital"), "10.1.2.3"),
        (scanner("10.0.0.5", host="10.0.0.9"), "10.0.0.9"),  # hosts overrule host
        (scanner(), "127.0.0.1"),  # nothing listed: nothing allowed
        (scanner("10.0.0.5"), "no address"),
    ],
)
def test_a_peer_is_not_let_in_from_elsewhere(peer: Peer, address: str) -> None:
    admission = allowing(peer).admit("CT1", "NODE", address)
    assert admission.peer == ""
    assert admission.rejection == CALLING_NOT_RECOGNISED
    assert "the peer's hosts" in admission.reason


def test_an_ae_title_of_no_peer_is_rejected_as_calling() -> None:
    admission = allowing(scanner("10.0.0.5")).admit("CT2", "NODE", "10.0.0.5")
    assert admission.rejection == CALLING_NOT_RECOGNISED
    assert "add a [[peer]]" in admission.reason


def test_another_called_ae_title_is_rejected_as_called() -> None:
    admission = allowing(scanner("10.0.0.5")).admit("CT1", "OTHER", "10.0.0.5")
    assert admission.rejection == CALLED_NOT_RECOGNISED
    assert "set NODE at the caller" in admission.reason


def test_spaces_around_ae_titles_do_not_count() -> None:
    assert allowing(scanner("10.0.0.5")).admit(" CT1 ", "NODE  ", "10.0.0.5").peer == "ct"


def test_peers_that_share_an_ae_title_are_told_apart_by_address() -> None:
    peers = (Peer("old", "CT1", hosts=("10.0.0.5",)), Peer("new", "CT1", hosts=("10.0.0.6",)))
    assert allowing(*peers).admit("CT1", "NODE", "10.0.0.6").peer == "new"


def test_unknown_callers_get_in_only_where_that_is_configured() -> None:
    open_door = allowing(scanner("10.0.0.5"), accept_unknown=True)
    assert open_door.admit("X", "ANY", "192.0.2.1").peer == "unknown"
    assert open_door.admit("CT1", "ANY", "10.0.0.5").peer == "ct"
    assert allowing().admit("X", "NODE", "192.0.2.1").peer == ""


def test_a_name_is_asked_for_once_a_minute(clock: Clock) -> None:
    asked: list[str] = []

    def counted(name: str) -> Iterable[str]:
        asked.append(name)
        return ["10.1.2.3"]

    allowed = AllowList("NODE", [scanner("ct.hospital")], clock, counted)
    for seconds in (0.0, 30.0, 29.0):
        clock.advance(seconds)
        assert allowed.admit("CT1", "NODE", "10.1.2.3").peer == "ct"
    assert asked == ["ct.hospital"]
    clock.advance(2.0)
    allowed.admit("CT1", "NODE", "10.1.2.3")
    assert len(asked) == 2


def test_a_silent_name_server_does_not_lock_out_a_known_peer(clock: Clock) -> None:
    answers = [["10.1.2.3"], []]
    allowed = AllowList("NODE", [scanner("ct")], clock, lambda _: answers.pop(0))
    assert allowed.admit("CT1", "NODE", "10.1.2.3").peer == "ct"
    clock.advance(61.0)
    assert allowed.admit("CT1", "NODE", "10.1.2.3").peer == "ct"
    assert answers == []


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses())
def test_a_network_covers_exactly_its_addresses(
    base: ipaddress.IPv4Address,
    bits: int,
    caller: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    admitted = allowing(scanner(str(network))).admit("CT1", "NODE", str(caller)).peer == "ct"
    assert admitted == (parse_address(str(caller)) in network)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=40))
def test_whatever_a_caller_claims_it_is_judged_without_an_error(
    calling: str, called: str, address: str
) -> None:
    admission = allowing(scanner("10.0.0.5", "ct.hospital")).admit(calling, called, address)
    assert bool(admission.peer) != bool(admission.rejection)


def test_the_loopback_name_resolves_and_nonsense_does_not() -> None:
    assert "127.0.0.1" in resolve("localhost")
    assert list(resolve("a..b")) == []
