"""Proofs of delivery: what the PACS accepted it also keeps, or there is an alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.domain.event import EventKind
from node.domain.job import DeliveryEvent, DeliveryState
from node.domain.proof import CommitmentReport, FailedInstance, Proof, ProofPlan
from tests.dispatch import World, make_world

SENT, COMMITTED = DeliveryState.SENT, DeliveryState.COMMITTED
VERIFIED = DeliveryState.VERIFIED


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    world.pacs.wish = ProofPlan("find", 10.0, 600.0, 2)
    yield world
    world.ledger.close()


@pytest.fixture
def committing(world: World) -> World:
    world.pacs.wish = ProofPlan("commitment", 10.0, 600.0, 2)
    return world


def test_what_the_pacs_finds_is_verified(world: World) -> None:
    world.settle(until=9.0)
    assert (world.states(), world.proofs()) == ([SENT] * 2, [Proof.LOOK] * 2)
    world.settle(until=10.0)
    assert world.states() == [VERIFIED] * 2
    assert world.words(EventKind.PROVEN) == ["1.9.0 to pacs: verified", "1.9.1 to pacs: verified"]


def test_what_the_pacs_lost_is_sent_again(world: World) -> None:
    world.step()
    world.pacs.kept.discard("1.9.1")
    world.settle(until=700.0)
    assert world.states() == [VERIFIED] * 2
    assert world.pacs.taken == ["1.9.0", "1.9.1", "1.9.1"]
    assert any("sent again" in words for words in world.words(EventKind.DELIVERY))


def test_what_the_pacs_loses_every_time_stays_sent_with_an_alarm(world: World) -> None:
    for until in range(0, 5000, 5):
        world.pacs.kept.discard("1.9.1")
        world.settle(until=float(until))
    assert world.states() == [VERIFIED, SENT]
    assert world.proofs()[1] is Proof.UNPROVEN
    assert world.pacs.taken.count("1.9.1") == 3
    (alarm,) = world.words(EventKind.ALARM)
    assert "1.9.1 to pacs: accepted, but not proven to be kept" in alarm
    assert world.courier().next_due() is None


@pytest.mark.parametrize("how", ["refused", "failure"])
def test_a_pacs_without_find_raises_the_alarm_where_find_is_wanted(world: World, how: str) -> None:
    world.pacs.finds = how
    world.settle(until=20.0)
    assert (world.states(), world.proofs()) == ([SENT] * 2, [Proof.UNPROVEN] * 2)
    assert len(world.words(EventKind.ALARM)) == 2


def test_a_pacs_without_find_is_no_alarm_where_that_is_agreed(world: World) -> None:
    world.pacs.wish, world.pacs.finds = ProofPlan("auto", 10.0, 600.0, 2), "refused"
    world.settle(until=20.0)
    assert (world.states(), world.proofs()) == ([SENT] * 2, [Proof.NOT_OFFERED] * 2)
    assert world.words(EventKind.ALARM) == []


def test_a_pacs_that_is_busy_or_down_is_asked_until_it_answers(world: World) -> None:
    world.pacs.finds = "busy"
    world.settle(until=100.0)
    world.pacs.finds = "down"
    world.settle(until=5_000.0)
    assert world.proofs() == [Proof.LATE] * 2
    assert len(world.words(EventKind.ALARM)) == 2
    world.pacs.finds = "well"
    world.settle(until=20_000.0)
    assert world.states() == [VERIFIED] * 2
    assert len(world.words(EventKind.ALARM)) == 2


def test_trouble_with_proofs_does_not_close_the_door_to_results(world: World) -> None:
    world.pacs.finds = "down"
    world.settle(until=3_600.0)
    with world.ledger.read() as books:
        assert not books.deliveries.breaker("pacs").failures


def test_a_report_makes_it_committed(committing: World) -> None:
    committing.pacs.commits = "at once"
    committing.settle(until=1.0)
    assert committing.states() == [COMMITTED] * 2
    assert len(committing.pacs.transactions) == 1
    assert committing.spool.reports() == ()


def test_a_report_that_comes_later_by_our_own_port_makes_it_committed(committing: World) -> None:
    committing.settle(until=1.0)
    assert committing.proofs() == [Proof.ASKED] * 2
    (transaction,) = committing.pacs.transactions
    committing.spool.keep_report(committing.pacs.report(transaction, ["1.9.0", "1.9.1"]))
    assert committing.courier().next_due() == 0.0
    committing.settle(until=2.0)
    assert committing.states() == [COMMITTED] * 2


def test_a_report_survives_a_restart_before_it_is_entered(committing: World) -> None:
    committing.settle(until=1.0)
    (transaction,) = committing.pacs.transactions
    committing.spool.keep_report(CommitmentReport(transaction, ("1.9.0",)))
    committing.courier().step(lambda: 2.0)
    assert committing.states() == [COMMITTED, SENT]


def test_without_a_report_the_pacs_is_asked_by_find(committing: World) -> None:
    committing.settle(until=599.0)
    assert committing.proofs() == [Proof.ASKED] * 2
    committing.settle(until=600.0)
    assert committing.states() == [VERIFIED] * 2


def test_a_report_after_the_time_is_out_still_counts(committing: World) -> None:
    committing.settle(until=600.0)
    (transaction,) = committing.pacs.transactions
    committing.spool.keep_report(CommitmentReport(transaction, ("1.9.0",)))
    committing.settle(until=601.0)
    assert committing.states() == [COMMITTED, VERIFIED]


def test_what_is_reported_as_missing_is_sent_again(committing: World) -> None:
    committing.step()
    committing.pacs.kept.clear()
    (transaction,) = committing.pacs.transactions
    report = committing.pacs.report(transaction, ["1.9.0", "1.9.1"])
    committing.spool.keep_report(report)
    committing.settle(until=2.0)
    assert committing.proofs() == [Proof.LOOK] * 2
    assert "does not have" in committing.rows()[0].reason
    committing.pacs.commits = "at once"
    committing.settle(until=700.0)
    assert committing.states() == [COMMITTED] * 2
    assert len(set(committing.pacs.transactions)) == 2


def test_a_pacs_that_does_not_commit_but_has_it_is_verified(committing: World) -> None:
    committing.settle(until=1.0)
    (transaction,) = committing.pacs.transactions
    failed = (FailedInstance("1.9.0", 0x0213),)
    committing.spool.keep_report(CommitmentReport(transaction, (), failed))
    committing.settle(until=2.0)
    assert committing.states() == [VERIFIED, SENT]


@pytest.mark.parametrize("how", ["refused", "failure"])
def test_a_pacs_without_storage_commitment_is_asked_by_find(committing: World, how: str) -> None:
    committing.pacs.commits = how
    committing.settle(until=10.0)
    assert committing.states() == [VERIFIED] * 2


def test_a_request_that_got_no_answer_is_repeated_as_the_same_transaction(
    committing: World,
) -> None:
    committing.pacs.commits = "down"
    committing.settle(until=100.0)
    committing.pacs.commits = "never"
    committing.settle(until=300.0)
    with committing.ledger.read() as books:
        asked = {row.transaction_uid for row in books.deliveries.listed()}
    assert asked == set(committing.pacs.transactions)


def test_reports_on_nothing_of_ours_are_dropped(world: World) -> None:
    world.settle(until=20.0)
    world.spool.keep_report(CommitmentReport("2.25.1", ("1.9.0",)))
    world.settle(until=30.0)
    assert world.spool.reports() == ()
    assert world.states() == [VERIFIED] * 2


def test_a_damaged_report_is_put_aside_and_holds_nobody_up(world: World) -> None:
    path = world.spool.keep_report(CommitmentReport("2.25.1"))
    path.write_bytes(b"{")
    world.settle(until=20.0)
    assert world.states() == [VERIFIED] * 2
    assert path.with_suffix(".damaged").exists()


def test_a_person_who_was_faster_than_the_proof_is_not_overruled(world: World) -> None:
    world.step()
    rows = world.rows()

    def release() -> None:
        with world.ledger.write() as books:
            books.deliveries.release(rows[0], world.now)

    class Slow(type(world.pacs)):  # type: ignore[misc]
        def look(self, files: object, network: object) -> frozenset[str]:
            release()
            return frozenset({"1.9.0", "1.9.1"})

    world.pacs.__class__ = Slow
    world.now = 10.0
    world.step()
    assert world.states() == [DeliveryState.WAITING, VERIFIED]


def test_a_result_that_is_gone_cannot_be_proven(world: World) -> None:
    world.step()
    world.rows()[0].result.path.unlink()
    world.settle(until=20.0)
    assert world.states() == [SENT, VERIFIED]
    assert world.proofs()[0] is Proof.UNPROVEN


def test_a_configuration_that_wants_no_proof_any_more_lets_it_be(world: World) -> None:
    world.step()
    world.pacs.wish = None
    world.now = 1000.0
    assert world.courier().next_due() is None
    assert not world.step()


def test_no_proof_event_is_lost_on_a_delivery_that_was_discarded(world: World) -> None:
    with world.ledger.write() as books:
        books.deliveries.advance(world.rows()[0], DeliveryEvent.DISCARD)
    world.settle(until=20.0)
    assert world.states() == [DeliveryState.DISCARDED, VERIFIED]
