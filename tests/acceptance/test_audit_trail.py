"""What a whole node writes into its event log, and what the hospital's audit repository gets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.audit import ANCHOR_NAME, Anchor, verify
from node.config import Config, load
from node.daemon import Node
from node.dicom import scu
from node.domain.errors import PeerError
from node.domain.event import Event, EventKind
from node.domain.peer import Network, Peer
from node.ledger import Ledger
from node.site import Watcher
from node.testing.archive import Archive
from node.testing.series import save
from tests import canary
from tests.acceptance.hospital import (
    AE_TITLE,
    MODALITY,
    SPEC,
    Lookout,
    Plan,
    ended,
    small_study,
    tiny_engine,
)
from tests.collector import Collector


@dataclass(frozen=True)
class Trail:
    """What a node left that ran twice: its log, and the messages that the repository took."""

    config: Config
    events: tuple[Event, ...]
    messages: tuple[str, ...]

    def kinds(self, study_uid: str) -> list[str]:
        return [event.kind for event in self.events if event.study_uid == study_uid]

    def count(self, code: str, event_type: str = "") -> int:
        wanted = f'<EventID csd-code="{code}"'
        kind = f'<EventTypeCode csd-code="{event_type}"' if event_type else ""
        return sum(wanted in message and kind in message for message in self.messages)


def call(node: Node, directory: Path) -> None:
    """A known modality sends a study, and somebody else is turned away twice."""
    own = Peer("node", AE_TITLE, "127.0.0.1", node.port)
    for _ in range(2):
        with pytest.raises(PeerError):
            scu.echo(Network("STRANGER"), own)
    receipts = list(scu.store(Network(MODALITY), own, save(small_study(), directory / "study")))
    assert all(receipt.accepted for receipt in receipts)


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    directory = tmp_path_factory.mktemp("trail")
    lookout = Lookout()
    with Archive() as archive, Collector() as collector:
        audit = f'[audit]\nsyslog = "{collector.url}"\n'
        plan = Plan(tiny_engine(directory), archive.port, quiet_period_s=0.5, extra=audit)
        config = load(plan.write(directory / "node"))
        with Node(config, Watcher(reached=lookout.reached)) as node:
            call(node, directory)
            assert lookout.wait_for(lambda: ended(node))
        # What was noted while the first run stopped is told by the second.
        with Node(config):
            assert collector.wait_for(lambda taken: any(b'"110121"' in one for one in taken))
        messages = tuple(message.decode() for message in collector.taken)
    with closing(Ledger.open(config.node.state / "ledger.sqlite")) as ledger:
        with ledger.read() as books:
            events = tuple(books.events.walk())
        yield Trail(config, events, messages)


def test_a_study_leaves_its_way_in_the_log(trail: Trail) -> None:
    kinds = [kind for kind in trail.kinds(SPEC.study_uid) if kind != EventKind.DELIVERY]
    assert kinds[:5] == ["received", "complete", "selected", "inferred", "done"]
    assert sorted(kinds[5:9]) == ["sending", "sending", "sent", "sent"]
    (received,) = (event for event in trail.events if event.kind == EventKind.RECEIVED)
    assert (received.words, received.actor) == ("6 instances in all from modality", "modality")
    (inferred,) = (event for event in trail.events if event.kind == EventKind.INFERRED)
    assert re.search(r"version \S+, package \w{16}, configuration \w{16}, ", inferred.words)
    assert re.search(
        r"computed by ONNX Runtime \S+ on the CPU; verification \w{16}$", inferred.words
    )
    (selected,) = (event for event in trail.events if event.kind == EventKind.SELECTED)
    assert SPEC.series_uid in selected.words


def test_every_part_notes_its_start_and_its_end_with_the_version(trail: Trail) -> None:
    for part in ("receiver", "gateway", "worker"):
        told = [event for event in trail.events if event.words == f"{part} 0.1.0"]
        assert [event.kind for event in told] == ["started", "stopped"] * 2


def test_the_configuration_is_noted_once_as_it_did_not_change(trail: Trail) -> None:
    assert sum(event.kind == EventKind.CONFIGURED for event in trail.events) == 1


def test_rejected_associations_are_noted_with_the_caller(trail: Trail) -> None:
    (rejected,) = (event for event in trail.events if event.kind == EventKind.REJECTED)
    assert rejected.actor == "STRANGER@127.0.0.1"
    assert rejected.words.endswith("(2 times)")


def test_the_log_is_sound_and_its_anchor_holds_the_last_event(trail: Trail) -> None:
    anchor = Anchor(trail.config.node.state / ANCHOR_NAME)
    with closing(Ledger.open(trail.config.node.state / "ledger.sqlite")) as ledger:
        proof = verify(ledger, anchor)
    assert proof.sound
    assert anchor.read() == proof.head


def test_the_repository_is_told_of_everything_that_must_be_audited(trail: Trail) -> None:
    assert trail.count("110100", "110120") >= 3
    assert trail.count("110100", "110121") >= 1
    assert trail.count("110102") == 2
    assert trail.count("110103") == 1
    assert trail.count("110104") >= 3
    assert trail.count("110113", "110126") == 1


def test_the_repository_is_told_no_patient(trail: Trail) -> None:
    assert list(canary.in_text("".join(trail.messages), "syslog")) == []
