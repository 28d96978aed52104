"""Couriers: every result is delivered or says why not, across restarts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.domain.breaker import Breaker
from node.domain.event import EventKind
from node.domain.job import DeliveryEvent, DeliveryState
from node.spool import Spool
from tests.dispatch import World, add_result, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.ledger.close()


def breaker(world: World) -> Breaker:
    with world.ledger.read() as books:
        return books.deliveries.breaker("pacs")


def test_results_are_delivered_in_the_order_in_which_they_were_made(world: World) -> None:
    assert world.step()
    assert world.pacs.taken == ["1.9.0", "1.9.1"]
    assert world.states() == [DeliveryState.SENT, DeliveryState.SENT]
    assert not world.step()


def test_the_first_try_and_the_acceptance_are_events(world: World) -> None:
    world.pacs.script = ["full", "full"]
    world.step()
    world.now = 5.0
    world.step()
    assert world.words(EventKind.SENDING) == ["1.9.0 to pacs", "1.9.1 to pacs"]
    assert world.words(EventKind.SENT) == ["1.9.0 to pacs: sent, take", "1.9.1 to pacs: sent, take"]


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
        world.pacs.script = ["full", "full"]
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


def test_only_the_result_on_the_wire_is_charged_when_an_association_ends(world: World) -> None:
    world.pacs.script = ["down"]
    world.step()
    assert [row.attempts for row in world.rows()] == [1, 0]


def test_a_result_at_which_the_pacs_always_breaks_off_keeps_nothing_back(world: World) -> None:
    for _ in range(4):
        world.pacs.script = ["down"]
        world.step()
        world.now += 1000.0
    world.pacs.script = ["take", "down"]
    world.step()
    assert world.pacs.taken == ["1.9.1"]


def test_a_refusal_that_another_try_does_not_change_is_held_with_its_reason(world: World) -> None:
    world.pacs.script = ["cannot understand", "take"]
    world.step()
    assert world.states() == [DeliveryState.HELD, DeliveryState.SENT]
    assert world.rows()[0].reason == "cannot understand"
    assert world.rows()[0].status == 0xA700


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


def test_a_result_whose_file_is_gone_is_held_in_words_without_its_path(world: World) -> None:
    world.rows()[0].result.path.unlink()
    world.step()
    assert world.states() == [DeliveryState.HELD, DeliveryState.SENT]
    assert "cannot be read" in world.rows()[0].reason
    assert str(world.spool.root) not in world.rows()[0].reason


class Starved(Spool):
    """A spool on a machine that has no file descriptor left."""

    def verify(self, path: Path, sha256: str) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_machine_without_descriptors_tries_again_and_holds_nothing(world: World) -> None:
    world.spool = Starved(world.spool.root, lambda: 0.0)
    world.step()
    assert world.states() == [DeliveryState.WAITING] * 2
    assert "Too many open files" in world.rows()[0].reason


def test_attempts_are_limited_where_the_configuration_limits_them(world: World) -> None:
    for _ in range(2):
        world.pacs.script = ["full", "full"]
        world.step(attempts=2)
        world.now += 100.0
    assert world.states() == [DeliveryState.DEAD] * 2


def test_failures_in_a_row_open_the_breaker_and_then_only_echoes_go_out(world: World) -> None:
    world.pacs.up = False
    world.settle(until=3600.0)
    assert world.pacs.associations == 3
    assert world.pacs.echoes > 10
    assert breaker(world).is_open
    assert sum("is down" in words for words in world.words(EventKind.DESTINATION)) == 1


def test_a_destination_that_answers_c_echo_gets_everything_at_once(world: World) -> None:
    world.pacs.up = False
    world.settle(until=3600.0)
    world.pacs.up = True
    world.settle(until=3700.0)
    assert world.states() == [DeliveryState.SENT] * 2
    assert breaker(world) == Breaker()
    assert "pacs takes results again" in world.words(EventKind.DESTINATION)


def test_an_open_breaker_survives_a_restart(world: World) -> None:
    world.pacs.up = False
    world.settle(until=100.0)
    open_until = breaker(world).probe_at
    assert open_until is not None
    asked = world.pacs.echoes, world.pacs.associations
    world.now = open_until - 0.001
    assert not world.step(trip_after=3)
    assert (world.pacs.echoes, world.pacs.associations) == asked
    assert world.courier(trip_after=3).next_due() == open_until


def test_a_pacs_that_echoes_but_takes_nothing_is_left_alone_for_longer_each_time(
    world: World,
) -> None:
    world.pacs.script = ["down"] * 1000
    world.settle(until=3600.0)
    assert world.pacs.associations < 80
    assert world.pacs.echoes < 80


def test_an_open_breaker_is_not_probed_for_nothing(world: World) -> None:
    world.step()
    with world.ledger.write() as books:
        books.deliveries.keep_breaker("pacs", Breaker(5, 10.0))
    assert world.courier().next_due() is None
    world.now = 100.0
    assert not world.step()
    assert world.pacs.echoes == 0


def test_some_success_counts_as_an_answer(world: World) -> None:
    add_result(world, "1.9.2")
    for _ in range(3):
        world.pacs.script = ["take", "down"]
        world.step(trip_after=2)
        world.now += 100.0
        assert not breaker(world).is_open


def test_what_was_discarded_while_it_was_on_the_wire_is_what_the_peer_says(world: World) -> None:
    def discard() -> None:
        with world.ledger.write() as books:
            books.deliveries.advance(world.rows()[1], DeliveryEvent.DISCARD)
        world.pacs.meanwhile = lambda: None

    world.pacs.meanwhile, world.pacs.script = discard, ["take", "take"]
    world.step()
    assert world.states() == [DeliveryState.SENT, DeliveryState.SENT]


def test_a_discarded_delivery_does_not_come_back_when_the_try_fails(world: World) -> None:
    def discard() -> None:
        with world.ledger.write() as books:
            books.deliveries.advance(world.rows()[1], DeliveryEvent.DISCARD)
        world.pacs.meanwhile = lambda: None

    world.pacs.meanwhile, world.pacs.script = discard, ["take", "full"]
    world.step()
    assert world.states() == [DeliveryState.SENT, DeliveryState.DISCARDED]
    assert world.courier().next_due() is None


@settings(max_examples=25)
@given(script=st.lists(st.sampled_from(["take", "down", "silent", "full"]), max_size=12))
def test_any_trouble_ends_with_every_result_taken_once(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    world = make_world(tmp_path_factory.mktemp("world"), results=3)
    world.pacs.script = script
    world.settle(until=10_000.0)
    assert sorted(world.pacs.taken) == ["1.9.0", "1.9.1", "1.9.2"]
    world.ledger.close()
