"""``deliveries``, ``retry`` and ``discard``: single and in bulk, always with who and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.config import load
from node.domain.breaker import Breaker
from node.domain.event import EventKind
from node.domain.job import DeliveryEvent, DeliveryState
from node.ledger import Ledger
from tests.acceptance.hospital import Plan
from tests.cli.conftest import Said
from tests.dispatch import World, make_world

Command = Callable[..., Said]
WAITING, HELD = DeliveryState.WAITING, DeliveryState.HELD
DEAD, SENT = DeliveryState.DEAD, DeliveryState.SENT
DISCARDED = DeliveryState.DISCARDED


@dataclass(frozen=True)
class Ward:
    """A node's state without a running node: one result waits, one is held, dead, sent each."""

    config: Path
    world: World


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    config = Plan(tmp_path / "engine", 104).write(tmp_path)
    world = make_world(load(config).node.state, results=4)
    _, held, dead, sent = world.rows()
    with world.ledger.write() as books:
        books.deliveries.advance(held, DeliveryEvent.HOLD, reason="cannot understand")
        books.deliveries.advance(dead, DeliveryEvent.GIVE_UP, reason="no route")
        books.deliveries.advance(sent, DeliveryEvent.ACCEPT, sent_at=1.0)
    world.ledger.close()
    return Ward(
        config, World(world.spool, Ledger.open(tmp_path / "state/ledger.sqlite"), world.pacs)
    )


def test_the_list_says_where_each_result_stands_and_why(ward: Ward, ai_node: Command) -> None:
    said = ai_node("deliveries", "--config", ward.config)
    assert "     2  held: 1.9.1 to pacs, tries 1, study 1.2\n        cannot understand" in said.out
    rows = ai_node("deliveries", "--config", ward.config, "--json").json
    assert [row["state"] for row in rows] == ["waiting", "held", "dead", "sent"]
    assert rows[1]["result"]["sop_instance_uid"] == "1.9.1"


def test_the_list_can_be_narrowed(ward: Ward, ai_node: Command) -> None:
    def numbers(*options: str) -> list[int]:
        rows = ai_node("deliveries", *options, "--config", ward.config, "--json").json
        return [row["id"] for row in rows]

    assert numbers("--state", "held") == [2]
    assert numbers("--destination", "pacs") == [1, 2, 3, 4]
    assert numbers("--destination", "elsewhere") == []


def test_one_is_retried_by_its_number_and_the_event_says_who_and_why(
    ward: Ward, ai_node: Command
) -> None:
    said = ai_node(
        "retry", "2", "--reason", "PACS was updated", "--actor", "kim", "--config", ward.config
    )
    assert said.code == 0
    assert ward.world.states() == [WAITING, WAITING, DEAD, SENT]
    assert ward.world.rows()[1].attempts == 0
    with ward.world.ledger.read() as books:
        event = books.events.latest(EventKind.OPERATOR)
    assert event is not None
    assert (event.actor, event.study_uid) == ("kim", "1.2")
    assert event.words == "1.9.1 to pacs: release, was held, now waiting: PACS was updated"


def test_one_is_retried_by_its_sop_instance_uid_even_when_it_was_sent(
    ward: Ward, ai_node: Command
) -> None:
    ai_node("retry", "1.9.3", "--reason", "PACS restored", "--config", ward.config)
    assert ward.world.states() == [WAITING, HELD, DEAD, WAITING]


def test_all_that_is_stuck_is_retried_each_with_an_event(ward: Ward, ai_node: Command) -> None:
    said = ai_node("retry", "--all", "--reason", "back again", "--config", ward.config)
    assert "2 deliveries" in said.out
    assert ward.world.states() == [WAITING, WAITING, WAITING, SENT]
    assert len(ward.world.words(EventKind.OPERATOR)) == 2


def test_without_an_actor_the_user_is_named(ward: Ward, ai_node: Command) -> None:
    ai_node("retry", "2", "--reason", "x", "--config", ward.config)
    with ward.world.ledger.read() as books:
        event = books.events.latest(EventKind.OPERATOR)
    assert event is not None
    assert event.actor


def test_bulk_is_limited_by_state_and_destination(ward: Ward, ai_node: Command) -> None:
    ai_node("discard", "--all", "--state", "dead", "--reason", "old", "--config", ward.config)
    assert ward.world.states() == [WAITING, HELD, DISCARDED, SENT]
    elsewhere = ("--destination", "elsewhere")
    ai_node("discard", "--all", *elsewhere, "--reason", "old", "--config", ward.config)
    assert ward.world.states() == [WAITING, HELD, DISCARDED, SENT]


def test_what_waits_can_be_discarded_and_is_never_sent(ward: Ward, ai_node: Command) -> None:
    ai_node("discard", "1", "--reason", "PACS is gone", "--config", ward.config)
    assert ward.world.states() == [DISCARDED, HELD, DEAD, SENT]
    assert not ward.world.step()


def test_an_order_that_one_of_them_does_not_allow_changes_nothing(
    ward: Ward, ai_node: Command
) -> None:
    said = ai_node("discard", "1", "4", "--reason", "x", "--config", ward.config)
    assert said.code == 1
    assert "4 is sent, so it cannot be discarded" in said.err
    assert ward.world.states() == [WAITING, HELD, DEAD, SENT]
    assert ward.world.words(EventKind.OPERATOR) == []


@pytest.mark.parametrize("arguments", [["99"], ["1", "99"], ["1.9.77"]])
def test_a_number_that_nothing_has_is_an_error(
    ward: Ward, ai_node: Command, arguments: list[str]
) -> None:
    said = ai_node("retry", *arguments, "--reason", "x", "--config", ward.config)
    assert said.code == 1
    assert "no delivery has the number" in said.err
    assert ward.world.states() == [WAITING, HELD, DEAD, SENT]


@pytest.mark.parametrize(
    "arguments",
    [["1"], ["1", "--reason", "  "], ["--reason", "x"], ["1", "--all", "--reason", "x"]],
)
def test_who_does_not_say_what_and_why_is_refused(
    ward: Ward, ai_node: Command, arguments: list[str]
) -> None:
    assert ai_node("discard", *arguments, "--config", ward.config).code == 2
    assert ward.world.states() == [WAITING, HELD, DEAD, SENT]


def test_a_retry_asks_a_destination_that_is_down_at_once(ward: Ward, ai_node: Command) -> None:
    with ward.world.ledger.write() as books:
        books.deliveries.keep_breaker("pacs", Breaker(7, 9e9))
    ai_node("retry", "--all", "--reason", "back again", "--config", ward.config)
    with ward.world.ledger.read() as books:
        breaker = books.deliveries.breaker("pacs")
    assert breaker.failures == 7
    assert breaker.probe_at is not None
    assert breaker.probe_at < 9e9
