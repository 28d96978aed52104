"""The circuit breaker of a destination."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.domain.breaker import Breaker
from node.domain.job import BackOff

BACK_OFF = BackOff(5.0, 2.0, 60.0)


def test_it_opens_at_the_last_of_so_many_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker = breaker.failed(100.0, 3, BACK_OFF)
        assert not breaker.is_open
    assert breaker.failed(100.0, 3, BACK_OFF) == Breaker(3, 105.0)


def test_each_failed_probe_makes_the_next_one_later_up_to_the_longest() -> None:
    breaker, waits = Breaker(2), []
    for _ in range(6):
        breaker = breaker.failed(0.0, 3, BACK_OFF)
        waits.append(breaker.probe_at)
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_after_an_echo_one_more_failure_opens_it_again_for_longer() -> None:
    trial = Breaker(3, 5.0).echoed()
    assert not trial.is_open
    assert trial.failed(5.0, 3, BACK_OFF) == Breaker(4, 15.0)


@given(st.integers(0, 10_000), st.integers(1, 10))
def test_no_number_of_failures_overflows(failures: int, trip_after: int) -> None:
    breaker = Breaker(failures).failed(0.0, trip_after, BACK_OFF)
    assert breaker.is_open == (failures + 1 >= trip_after)
    assert not breaker.is_open or 5.0 <= (breaker.probe_at or 0.0) <= 60.0


def test_an_open_breaker_lets_nothing_through_before_its_probe() -> None:
    assert Breaker(3, 50.0).gate(10.0) == 50.0
    assert Breaker(3, 50.0).gate(70.0) == 70.0
    assert Breaker(3, 50.0).gate(None) is None
    assert Breaker(2).gate(10.0) == 10.0
