"""Random histories of a courier and its PACS, each step compared with the reference model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from node.courier import Courier, Persistence
from node.domain.event import EventKind
from node.domain.job import BackOff, DeliveryEvent, DeliveryState, TransitionError
from node.domain.proof import ProofPlan
from node.ledger.deliveries import ResultRow
from node.ledger.tables import breakers, deliveries, results
from tests import model
from tests.dispatch import JOB, NETWORK, Pacs, World, make_world
from tests.model import Line, Model

UIDS = ("1.9.0", "1.9.1", "1.9.2")
ORDINARY, THOROUGH = 120, 10_000
MEMORY = Path("/dev/shm")  # noqa: S108 - nothing here has to survive, and fsync costs nothing there


@contextmanager
def one_world() -> Iterator[World]:
    """A world for all histories: a new ledger would cost more than a history."""
    place = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="histories") as folder:
        world = make_world(Path(folder), results=0)
        for uid in UIDS:
            world.spool.freeze(JOB.id, uid, b"result", (uid, "1.8"))
        yield world
        world.ledger.close()


class Histories(RuleBasedStateMachine):
    """One courier that starts anew for each step, one PACS, one clock, one person."""

    world: World

    @initialize(kind=st.sampled_from(["none", "auto", "find", "commitment"]))
    def begin(self, kind: str) -> None:
        with self.world.ledger.write() as books:
            for table in (deliveries, results, breakers):
                books.connection.execute(delete(table))
            self.before = books.events.head().id
        self.world.pacs, self.world.now = Pacs(), 0.0
        if kind != "none":
            plan = ProofPlan(kind, model.DELAY, model.TIMEOUT, model.RESENDS)  # type: ignore[arg-type]
            self.world.pacs.wish = plan
        self.model = Model(kind)

    @precondition(lambda self: len(self.model.lines) < len(UIDS))
    @rule()
    def a_result_is_made(self) -> None:
        uid, world = UIDS[len(self.model.lines)], self.world
        frozen = world.spool.freeze(JOB.id, uid, b"result", (uid, "1.8"))
        row = ResultRow(uid, JOB.id, "1.8", uid, frozen.path, frozen.sha256)
        with world.ledger.write() as books:
            books.deliveries.add(row, ["pacs"], world.now)
        self.model.lines[uid] = Line(uid, world.now)

    @rule(words=st.lists(st.sampled_from(["take", "full", "down", "silent", "no"]), max_size=4))
    def the_pacs_will_answer(self, words: list[str]) -> None:
        self.world.pacs.script = list(words)
        self.model.script = list(words)

    @rule(up=st.booleans())
    def the_pacs_is(self, up: bool) -> None:
        self.world.pacs.up = self.model.up = up

    @rule(
        finds=st.sampled_from(["well", "down", "refused", "busy"]),
        commits=st.sampled_from(["never", "at once", "refused", "down"]),
    )
    def the_pacs_proves(self, finds: str, commits: str) -> None:
        self.world.pacs.finds = self.model.finds = finds
        self.world.pacs.commits = self.model.commits = commits

    @rule(uid=st.sampled_from(UIDS))
    def the_pacs_loses(self, uid: str) -> None:
        self.world.pacs.kept.discard(uid)
        self.model.kept.discard(uid)

    @precondition(lambda self: self.model.asked)
    @rule(data=st.data())
    def the_pacs_reports(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.model.asked)))
        pacs = self.world.pacs
        transaction = pacs.transactions[number - 1]
        self.world.spool.keep_report(pacs.report(transaction, self.model.asked[number - 1]))
        self.model.report(number)

    @precondition(lambda self: self.model.lines)
    @rule(data=st.data())
    def a_person_retries(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.model.lines)))
        self.decide(uid, DeliveryEvent.RELEASE, self.model.release(uid, self.world.now))

    @precondition(lambda self: self.model.lines)
    @rule(data=st.data())
    def a_person_discards(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.model.lines)))
        self.decide(uid, DeliveryEvent.DISCARD, self.model.discard(uid))

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 10.0, 60.0, 100.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.work()

    @rule()
    def the_next_thing_is_due(self) -> None:
        due = self.courier.next_due()
        if due is not None:
            self.world.now = max(due, self.world.now)
        self.work()

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        with self.world.ledger.read() as books:
            rows = books.deliveries.listed()
            breaker = books.deliveries.breaker("pacs")
            after = books.events.after(self.before, 10_000)
        assert (breaker.failures, breaker.probe_at) == (self.model.failures, self.model.probe_at)
        assert [
            (
                row.result.sop_instance_uid,
                str(row.state),
                row.attempts,
                row.due_at if row.state is DeliveryState.WAITING else None,
                str(row.proof),
                row.proof_due_at,
                row.resends,
            )
            for row in rows
        ] == list(self.model.standing())
        assert self.world.pacs.taken == self.model.taken
        assert sum(event.kind == EventKind.ALARM for event in after) == self.model.alarms

    def teardown(self) -> None:
        for path in self.world.spool.reports():
            path.unlink()

    @property
    def courier(self) -> Courier:
        patience = Persistence(
            model.ATTEMPTS, BackOff(model.FIRST, model.FACTOR, model.LONGEST), model.TRIP_AFTER
        )
        world = self.world
        return Courier("pacs", world.pacs, NETWORK, world.ledger, world.spool, patience)

    def work(self) -> None:
        """Steps until nothing is due, as the loop does."""
        for _ in range(50):
            self.model.step(self.world.now)
            if not self.courier.step(lambda: self.world.now):
                return
        raise AssertionError("a courier that is never done")

    def decide(self, uid: str, happened: DeliveryEvent, possible: bool) -> None:
        """A person's decision on one result, which is refused where the model refuses it."""
        with self.world.ledger.write() as books:
            (row,) = (r for r in books.deliveries.listed() if r.result.sop_instance_uid == uid)
            try:
                if happened is DeliveryEvent.RELEASE:
                    books.deliveries.release(row, self.world.now)
                else:
                    books.deliveries.advance(row, happened)
            except TransitionError:
                assert not possible
            else:
                assert possible


def run_histories(number: int) -> None:
    """So many random histories of up to 25 rules each."""
    with one_world() as world:
        machine = type("Machine", (Histories,), {"world": world})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=number,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_random_histories_equal_the_reference_model() -> None:
    run_histories(ORDINARY)


@pytest.mark.slow
def test_ten_thousand_random_histories_equal_the_reference_model() -> None:
    run_histories(THOROUGH)
