"""A whole node whose ledger is damaged, lost or locked recovers by itself; nothing is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node.config import load
from node.daemon import Node
from node.dicom import scu
from node.domain.peer import Network, Peer
from node.site import Watcher
from node.testing.archive import Archive
from node.testing.series import save
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


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


def send(node: Node, directory: Path) -> None:
    """Every instance is acknowledged."""
    peer = Peer("node", AE_TITLE, "127.0.0.1", node.port)
    paths = save(small_study(), directory / "study")
    assert all(receipt.accepted for receipt in scu.store(Network(MODALITY), peer, paths))


def run(config: Path, *, sending: Path | None = None, jobs: int = 1) -> None:
    """Run a node until every job has ended and everything is delivered."""
    lookout = Lookout()
    with Node(load(config), Watcher(reached=lookout.reached)) as node:
        if sending is not None:
            send(node, sending)
        assert lookout.wait_for(lambda: ended(node, jobs))


def contents(archive: Archive) -> list[str]:
    """Everything that the archive holds, each object as text."""
    return sorted(str(held.read()) for held in archive.instances)


def damage(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def lose(path: Path) -> None:
    for each in path.parent.glob("ledger.sqlite*"):
        each.unlink()


@pytest.mark.parametrize("trouble", [damage, lose], ids=lambda trouble: trouble.__name__)
def test_a_node_starts_on_a_ledger_that_is_no_more_and_delivers_the_same_objects(
    tmp_path: Path, archive: Archive, trouble: Callable[[Path], None]
) -> None:
    config = Plan(tiny_engine(tmp_path), archive.port, quiet_period_s=0.5).write(tmp_path / "node")
    run(config, sending=tmp_path)
    first = contents(archive)
    stored = len(archive.stored)
    trouble(tmp_path / "node" / "state" / "ledger.sqlite")
    run(config)
    assert contents(archive) == first
    assert len(archive.stored) == stored + 2
    for aside in (tmp_path / "node" / "state").glob("*.broken-*"):
        aside.unlink()


def test_a_locked_ledger_keeps_nobody_from_sending_and_delays_the_rest(
    tmp_path: Path, archive: Archive
) -> None:
    config = Plan(tiny_engine(tmp_path), archive.port, quiet_period_s=0.5).write(tmp_path / "node")
    lookout = Lookout()
    with Node(load(config), Watcher(reached=lookout.reached)) as node:
        path = tmp_path / "node" / "state" / "ledger.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            send(node, tmp_path)
            other.execute("ROLLBACK")
        assert lookout.wait_for(lambda: ended(node))
        with node.ledger.read() as books:
            assert len(books.arrivals.study(SPEC.study_uid).instances) == 6
    assert len(archive.instances) == 2
