"""Random histories of a study being received, against a model that remembers everything.

The ordinary run plays a few hundred, the slow one ten thousand.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from node.assembly import Assembly, Completion, Policy, arrive, due, tick

POLICY = Policy(quiet_period_s=10.0, deadline_s=60.0)
KEYS = st.integers(0, 7)
PAUSES = st.one_of(st.floats(0, 3), st.floats(8, 12), st.floats(50, 70))


class Model:
    """Every arrival since the last completion, and every content ever seen; no arithmetic kept."""

    def __init__(self, listening_since: float) -> None:
        self.seen: set[int] = set()
        self.times: list[float] = []
        self.listening_since = listening_since

    def arrive(self, key: int, at: float) -> bool:
        new = key not in self.seen
        self.seen.add(key)
        if new or self.times:
            self.times.append(at)
        return new

    def ends(self) -> tuple[float, float]:
        """When silence, and when the deadline, will have completed the study."""
        quiet = max([*self.times, self.listening_since]) + POLICY.quiet_period_s
        again = self.listening_since + min(POLICY.quiet_period_s, POLICY.deadline_s)
        return quiet, max(min(self.times) + POLICY.deadline_s, again)

    def tick(self, now: float) -> str:
        if not self.times or now < min(self.ends()):
            return ""
        quiet, deadline = self.ends()
        self.times.clear()
        return "quiet period" if quiet <= deadline else "deadline"


class Histories(RuleBasedStateMachine):
    """Instances arrive, again, late and out of order; time passes; the node restarts."""

    @initialize()
    def start(self) -> None:
        self.now = 1000.0
        self.state = Assembly("1.2")
        self.model = Model(self.now)
        self.content: set[int] = set()

    @rule(key=KEYS, skew=st.floats(-5, 0))
    def receive(self, key: int, skew: float) -> None:
        at = self.now + skew
        self.state = arrive(self.state, at, new=self.model.arrive(key, at))
        self.content.add(key)

    @rule(pause=PAUSES)
    def wait(self, pause: float) -> None:
        self.now += pause
        self.look()

    @rule(pause=st.floats(0, 500))
    def restart(self, pause: float) -> None:
        """The process was away: nothing was received, and nothing was looked at."""
        self.now += pause
        self.model.listening_since = self.now
        self.look()

    @rule()
    def look(self) -> None:
        expected = self.model.tick(self.now)
        before = self.state
        self.state, completion = tick(before, POLICY, self.model.listening_since, self.now)
        assert (completion.rule if completion else "") == expected
        if completion is not None:
            assert before.opened_at is not None
            assert completion == Completion("1.2", completion.rule, self.now - before.opened_at)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        assert (self.state.opened_at is not None) == bool(self.model.times)
        found = due(self.state, POLICY, self.model.listening_since)
        assert (found[0] if found else None) == (
            min(self.model.ends()) if self.model.times else None
        )

    def teardown(self) -> None:
        """However it went, silence completes it in the end, and only once."""
        if not hasattr(self, "model"):
            return
        self.now += 1000.0
        self.look()
        assert self.state.opened_at is None
        assert tick(self.state, POLICY, 0.0, self.now + 1000.0)[1] is None


def play(histories: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Histories, settings=settings(max_examples=histories, stateful_step_count=25, deadline=None)
    )


def test_random_histories_equal_the_model() -> None:
    play(200)


@pytest.mark.slow
def test_ten_thousand_random_histories_equal_the_model() -> None:
    play(10_000)
