"""The book of deliveries: what is due, what a person decided, and whether a destination answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.domain.breaker import Breaker
from node.domain.job import DeliveryEvent, DeliveryState, TransitionError
from node.domain.proof import Proof
from node.ledger.deliveries import DeliveryRow
from tests.dispatch import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path, results=3)
    yield world
    world.ledger.close()


def due(world: World, now: float) -> list[int]:
    with world.ledger.read() as books:
        return [row.id for row in books.deliveries.due("pacs", now)]


def advance(world: World, row: DeliveryRow, happened: DeliveryEvent, **values: object) -> None:
    with world.ledger.write() as books:
        books.deliveries.advance(row, happened, **values)


def test_what_failed_often_is_due_after_the_others(world: World) -> None:
    advance(world, world.rows()[0], DeliveryEvent.POSTPONE, attempts=4)
    advance(world, world.rows()[1], DeliveryEvent.POSTPONE, attempts=3)
    assert due(world, 0.0) == [2, 3, 1]


def test_only_tries_to_send_are_counted(world: World) -> None:
    row = world.rows()[0]
    for happened in (
        DeliveryEvent.POSTPONE,
        DeliveryEvent.ACCEPT,
        DeliveryEvent.VERIFY,
        DeliveryEvent.COMMIT,
    ):
        advance(world, row, happened)
    assert world.rows()[0].attempts == 2


def test_the_state_in_the_ledger_counts_not_the_one_that_was_read(world: World) -> None:
    stale = world.rows()[0]
    advance(world, stale, DeliveryEvent.HOLD)
    with pytest.raises(TransitionError), world.ledger.write() as books:
        books.deliveries.advance(stale, DeliveryEvent.ACCEPT)


def test_a_released_delivery_is_as_if_it_were_new(world: World) -> None:
    row = world.rows()[0]
    proof = {"proof": Proof.UNPROVEN, "transaction_uid": "2.25.1", "resends": 2}
    advance(world, row, DeliveryEvent.ACCEPT, sent_at=1.0, **proof)
    with world.ledger.write() as books:
        assert books.deliveries.release(row, 50.0) is DeliveryState.WAITING
        released = books.deliveries.row(row.id)
    assert released is not None
    assert (released.attempts, released.due_at, released.resends) == (0, 50.0, 0)
    assert (released.proof, released.transaction_uid) == (Proof.NONE, "")


def test_proofs_are_due_only_of_what_was_accepted_and_is_not_proven(world: World) -> None:
    for row in world.rows():
        advance(world, row, DeliveryEvent.ACCEPT, proof=Proof.LOOK, proof_due_at=10.0 * row.id)
    advance(world, world.rows()[0], DeliveryEvent.VERIFY)
    with world.ledger.read() as books:
        assert books.deliveries.next_proof_due("pacs") == 20.0
        found = books.deliveries.proofs_due("pacs", Proof.LOOK, 25.0)
        assert books.deliveries.proofs_due("pacs", Proof.ASK, 25.0) == ()
    assert [row.id for row in found] == [2]


def test_deliveries_are_listed_and_counted_by_state_and_destination(world: World) -> None:
    advance(world, world.rows()[1], DeliveryEvent.HOLD)
    with world.ledger.read() as books:
        assert [r.id for r in books.deliveries.listed([DeliveryState.HELD])] == [2]
        assert books.deliveries.listed((), "elsewhere") == ()
        assert books.deliveries.counts() == {
            ("pacs", DeliveryState.WAITING): 2,
            ("pacs", DeliveryState.HELD): 1,
        }


def test_the_breaker_is_kept_for_each_destination(world: World) -> None:
    with world.ledger.write() as books:
        books.deliveries.keep_breaker("pacs", Breaker(3, 50.0))
        books.deliveries.keep_breaker("pacs", Breaker(4, 60.0))
    with world.ledger.read() as books:
        assert books.deliveries.breaker("pacs") == Breaker(4, 60.0)
        assert books.deliveries.breaker("elsewhere") == Breaker()
    with world.ledger.write() as books:
        books.deliveries.keep_breaker("pacs", Breaker())
        assert books.deliveries.breaker("pacs") == Breaker()
