"""Couriers: every result is delivered or says why not, across restarts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.courier import Courier, Persistence
from node.domain.errors import PeerUnreachable
from node.domain.job import BackOff, DeliveryState, Job, JobState
from node.domain.peer import Network, Receipt
from node.domain.study import Instance
from node.ledger import Ledger
from node.ledger.deliveries import DeliveryRow, ResultRow
from node.spool import Spool

NETWORK = Network("AINODE")
JOB = Job("j" * 32, "1.2", "r", "engine", "d", "c", JobState.DONE, 1, 0.0)


@dataclass
class Pacs:
    """A destination that does as the script says, and remembers what it took."""

    script: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        for path in files:
            uid = path.stem
            what = self.script.pop(0) if self.script else "take"
            if what == "down":
                raise PeerUnreachable("no route to the PACS")
            if what == "silent":
                return
            if what == "take":
                self.taken.append(uid)
            yield Receipt(uid, what == "take", 0xA700, what, retryable=what == "full")


@dataclass
class World:
    """One node's disk, a clock, and a PACS."""

    spool: Spool
    ledger: Ledger
    pacs: Pacs
    now: float = 0.0

    def courier(self, attempts: int = 0) -> Courier:
        patience = Persistence(attempts, BackOff(5.0, 2.0, 60.0))
        return Courier("pacs", self.pacs, NETWORK, self.ledger, self.spool, patience)

    def step(self, attempts: int = 0) -> bool:
        return self.courier(attempts).step(lambda: self.now)

    def rows(self) -> tuple[DeliveryRow, ...]:
        with self.ledger.read() as books:
            return books.deliveries.of_job(JOB.id)

    def states(self) -> list[DeliveryState]:
        return [row.state for row in self.rows()]


def make_world(path: Path, results: int = 2) -> World:
    spool, ledger = Spool(path / "spool", lambda: 0.0), Ledger.open(path / "ledger.sqlite")
    instance = Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "s", 0.0, Path("a"), "1.1")
    with ledger.write() as books:
        books.arrivals.record(instance)
        books.jobs.add(JOB)
        for number in range(results):
            frozen = spool.freeze(JOB.id, f"1.9.{number}", b"result", (f"1.9.{number}", "1.8"))
            row = ResultRow(
                frozen.sop_instance_uid, JOB.id, "1.8", frozen.kind, frozen.path, frozen.sha256
            )
            books.deliveries.add(row, ["pacs"], 0.0)
    return World(spool, ledger, Pacs())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.ledger.close()


def test_results_are_delivered_in_the_order_in_which_they_were_made(world: World) -> None:
    assert world.step()
    assert world.pacs.taken == ["1.9.0", "1.9.1"]
    assert world.states() == [DeliveryState.SENT, DeliveryState.SENT]
    assert not world.step()


def test_a_pacs_that_is_down_gets_everything_later(world: World) -> None:
    world.pacs.script = ["down"]
    world.step()
    assert [row.due_at for row in world.rows()] == [5.0, 5.0]
    assert not world.step()
    world.now = 5.0
    world.step()
    assert world.pacs.taken == ["1.9.0", "1.9.1"]


def test_back_off_survives_a_restart(world: World) -> None:
    for _ in range(3):
        world.pacs.script = ["down"]
        world.step()
        world.now = world.rows()[0].due_at
    assert world.rows()[0].attempts == 3
    assert world.courier().next_due() == 5.0 + 10.0 + 20.0


def test_what_has_a_receipt_is_not_sent_again_when_the_rest_fails(world: World) -> None:
    world.pacs.script = ["take", "down"]
    world.step()
    assert world.states() == [DeliveryState.SENT, DeliveryState.WAITING]
    world.now = 5.0
    world.step()
    assert world.pacs.taken == ["1.9.0", "1.9.1"]


def test_a_refusal_that_another_try_does_not_change_is_held_with_its_reason(world: World) -> None:
    world.pacs.script = ["cannot understand", "take"]
    world.step()
    assert world.states() == [DeliveryState.HELD, DeliveryState.SENT]
    assert world.rows()[0].reason == "cannot understand"


def test_a_full_pacs_is_tried_again(world: World) -> None:
    world.pacs.script = ["full", "full"]
    world.step()
    assert world.states() == [DeliveryState.WAITING] * 2


def test_a_destination_without_a_receipt_is_tried_again(world: World) -> None:
    world.pacs.script = ["silent"]
    world.step()
    assert [row.reason for row in world.rows()] == ["the destination gave no receipt"] * 2


def test_a_result_whose_bytes_changed_is_held_and_never_sent(world: World) -> None:
    world.rows()[0].result.path.write_bytes(b"resulT")
    world.step()
    assert world.states() == [DeliveryState.HELD, DeliveryState.SENT]
    assert world.pacs.taken == ["1.9.1"]


def test_attempts_are_limited_where_the_configuration_limits_them(world: World) -> None:
    for _ in range(2):
        world.pacs.script = ["down"]
        world.step(attempts=2)
        world.now += 100.0
    assert world.states() == [DeliveryState.DEAD] * 2


@settings(max_examples=25)
@given(script=st.lists(st.sampled_from(["take", "down", "silent", "full"]), max_size=12))
def test_any_trouble_ends_with_every_result_taken_once(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    world = make_world(tmp_path_factory.mktemp("world"), results=3)
    world.pacs.script = script
    for _ in range(30):
        world.step()
        world.now += 1000.0
    assert sorted(world.pacs.taken) == ["1.9.0", "1.9.1", "1.9.2"]
    world.ledger.close()
