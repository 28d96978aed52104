"""A crew knows which of its loops still turn, whatever the wall clock says."""

from __future__ import annotations

from node.crew import Crew
from node.loop import Loop


def test_a_loop_that_hangs_is_noticed_though_the_clock_was_set_back() -> None:
    passed = 100.0
    loop = Loop("one", lambda: False, lambda: None, clock=lambda: -1e9, stopwatch=lambda: passed)
    loop.beat = 50.0
    crew = Crew({"one": loop})
    assert crew.turning(longest_s=60.0)
    passed = 111.0
    assert not crew.turning(longest_s=60.0)
