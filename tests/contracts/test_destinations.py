"""What every destination promises, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from node.destinations import DESTINATIONS, Destination
from node.domain.errors import PeerError
from node.domain.peer import Network, Peer, Receipt
from node.testing.archive import Archive
from node.testing.series import save
from tests.dicom.callers import archive_at, images


@dataclass(frozen=True)
class Site:
    """Where results can go in these tests; ``up`` by a network that works."""

    directory: Path
    archive: Archive

    def network(self, up: bool = True) -> Network:
        pacs = archive_at(self.archive) if up else Peer("pacs", "ARCHIVE", "127.0.0.1", 1)
        return Network("NODE", {"pacs": pacs}, connect_timeout_s=2.0, answer_timeout_s=5.0)


OPTIONS: dict[str, Callable[[Site], dict[str, Any]]] = {
    "store": lambda site: {"peer": "pacs"},
    "folder": lambda site: {"path": str(site.directory / "out")},
}
"""Options under which a destination works; a new destination needs an entry here."""

BROKEN: dict[str, Callable[[Site], dict[str, Any]]] = {
    "store": lambda site: {"peer": "pacs"},  # over a network that is down
    "folder": lambda site: {"path": str(site.directory / "no" / "mount")},
}
"""Options, with the network down, under which it cannot be reached."""


@pytest.fixture(scope="module")
def running() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@pytest.fixture
def site(tmp_path: Path, running: Archive) -> Site:
    running.forget()
    return Site(tmp_path, running)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return save(images(3), tmp_path / "results")


@pytest.fixture(params=sorted(DESTINATIONS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str, options: dict[str, Any]) -> Destination:
    member: Destination = TypeAdapter(DESTINATIONS[kind]).validate_python(options)
    return member


def delivered(kind: str, site: Site, files: list[Path]) -> list[Receipt]:
    destination = build(kind, OPTIONS[kind](site))
    return list(destination.deliver(files, site.network()))


def test_every_destination_has_an_example_here() -> None:
    assert set(OPTIONS) == set(BROKEN) == set(DESTINATIONS)


def test_one_accepted_receipt_each_in_order(kind: str, site: Site, files: list[Path]) -> None:
    receipts = delivered(kind, site, files)
    assert [receipt.sop_instance_uid for receipt in receipts] == [
        image.SOPInstanceUID for image in images(3)
    ]
    assert all(receipt.accepted and not receipt.retryable for receipt in receipts)


def test_delivering_the_same_bytes_twice_is_no_error(
    kind: str, site: Site, files: list[Path]
) -> None:
    delivered(kind, site, files)
    assert all(receipt.accepted for receipt in delivered(kind, site, files))


def test_nothing_to_deliver_gives_no_receipt(kind: str, site: Site) -> None:
    assert delivered(kind, site, []) == []


def test_a_file_that_is_no_dicom_is_refused_in_words_and_holds_nobody_up(
    kind: str, site: Site, files: list[Path]
) -> None:
    text = site.directory / "notes.txt"
    text.write_text("no DICOM")
    first, refused, last = delivered(kind, site, [files[0], text, files[1]])
    assert first.accepted
    assert last.accepted
    assert not refused.accepted
    assert not refused.retryable
    assert "notes.txt" in refused.reason


def test_a_destination_that_cannot_be_reached_raises_a_retryable_peer_error(
    kind: str, site: Site, files: list[Path]
) -> None:
    destination = build(kind, BROKEN[kind](site))
    with pytest.raises(PeerError) as caught:
        list(destination.deliver(files, site.network(up=False)))
    assert caught.value.retryable
    assert str(caught.value)


def test_a_probe_tells_whether_it_can_be_reached(kind: str, site: Site) -> None:
    build(kind, OPTIONS[kind](site)).probe(site.network())
    with pytest.raises(PeerError) as caught:
        build(kind, BROKEN[kind](site)).probe(site.network(up=False))
    assert caught.value.retryable


def test_what_it_has_accepted_its_prover_finds(kind: str, site: Site, files: list[Path]) -> None:
    prover = build(kind, OPTIONS[kind](site)).prover()
    if prover is None:
        return
    delivered(kind, site, files[:2])
    uids = {str(image.SOPInstanceUID) for image in images(2)}
    assert prover.look(files, site.network()) == uids
    assert prover.plan.timeout_s > 0
    with pytest.raises(PeerError):
        prover.look(files, site.network(up=False))


def test_a_member_is_frozen_and_knows_its_options(kind: str, site: Site) -> None:
    member: Any = build(kind, OPTIONS[kind](site))
    with pytest.raises(FrozenInstanceError):
        setattr(member, fields(member)[0].name, "other")
    with pytest.raises(ValidationError, match="extra"):
        build(kind, OPTIONS[kind](site) | {"extra": 1})
