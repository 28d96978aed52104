"""Assembly against a reference model that keeps every arrival."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.assembly import Assembly, Policy, arrive, due, tick

POLICY = Policy(quiet_period_s=10.0, deadline_s=60.0)
EMPTY = Assembly("1.2")


def test_study_completes_after_quiet_period() -> None:
    state = arrive(EMPTY, 100.0, new=True)
    assert tick(state, POLICY, 0.0, 109.9)[1] is None
    closed, completion = tick(state, POLICY, 0.0, 110.0)
    assert completion is not None
    assert (completion.rule, completion.waited_s) == ("quiet period", 10.0)
    assert closed.opened_at is None


def test_study_completes_at_its_deadline_though_more_arrive() -> None:
    state = EMPTY
    for second in range(0, 61, 5):
        state = arrive(state, 100.0 + second, new=True)
    completion = tick(state, POLICY, 0.0, 160.0)[1]
    assert completion is not None
    assert completion.rule == "deadline"


def test_each_arrival_prolongs_the_wait() -> None:
    state = arrive(arrive(EMPTY, 100.0, new=True), 108.0, new=True)
    assert due(state, POLICY, 0.0) == (118.0, "quiet period")


def test_repeated_instance_does_not_reopen_a_complete_study() -> None:
    closed, _ = tick(arrive(EMPTY, 100.0, new=True), POLICY, 0.0, 110.0)
    assert arrive(closed, 120.0, new=False).opened_at is None


def test_late_instance_reopens_a_complete_study() -> None:
    closed, _ = tick(arrive(EMPTY, 100.0, new=True), POLICY, 0.0, 110.0)
    assert arrive(closed, 120.0, new=True).opened_at == 120.0


def test_time_in_which_the_node_was_down_is_no_silence() -> None:
    state = arrive(EMPTY, 100.0, new=True)
    restarted = 5000.0
    assert tick(state, POLICY, restarted, 5009.0)[1] is None
    assert tick(state, POLICY, restarted, 5010.0)[1] is not None


@dataclass
class Reference:
    """Keeps the whole history and decides by looking at all of it."""

    seen: set[int] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def arrive(self, key: int, at: float) -> bool:
        new = key not in self.seen
        self.seen.add(key)
        if new or self.times:
            self.times.append(at)
        return new

    def complete(self, now: float) -> str:
        if not self.times:
            return ""
        if now >= max(self.times) + POLICY.quiet_period_s:
            rule = "quiet period"
        elif now >= min(self.times) + POLICY.deadline_s:
            rule = "deadline"
        else:
            return ""
        both = (max(self.times) + POLICY.quiet_period_s, min(self.times) + POLICY.deadline_s)
        self.times.clear()
        return rule if both[0] <= both[1] else "deadline"


EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.floats(0, 25), st.floats(-5, 0)), min_size=1, max_size=60
)


@given(EVENTS)
def test_any_interleaving_of_arrivals_equals_the_reference(
    events: list[tuple[int, float, float]],
) -> None:
    """Instances repeat, come late and come out of order (a timestamp up to 5 s back)."""
    state, model, now = EMPTY, Reference(), 1000.0
    for key, pause, skew in events:
        now += pause
        state, completion = tick(state, POLICY, 0.0, now)
        assert (completion.rule if completion else "") == model.complete(now)
        state = arrive(state, now + skew, new=model.arrive(key, now + skew))
    state, completion = tick(state, POLICY, 0.0, now + 1000.0)
    assert (completion.rule if completion else "") == model.complete(now + 1000.0)
    assert state.opened_at is None


@pytest.mark.parametrize("now", [0.0, 1e9])
def test_nothing_is_due_before_anything_arrived(now: float) -> None:
    assert tick(EMPTY, POLICY, 0.0, now) == (EMPTY, None)
