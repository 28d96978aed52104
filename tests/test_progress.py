"""The fraction that is told never falls, however many parts there are and what fails in them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.progress import rising, share

TOTALS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(TOTALS, st.integers(1, 3))
def test_parts_of_any_size_share_the_way_to_the_end(totals: list[int], depth: int) -> None:
    told: list[tuple[int, int]] = []
    place = None
    for _ in range(depth):
        place = share(place or (lambda *now: told.append(now)), 1, 2)
    for number, total in enumerate(totals):
        part = share(place, number, len(totals))
        assert part is not None
        for done in range(1, total + 1):
            part(done, total)
    fractions = [done / whole for done, whole in told]
    assert fractions == sorted(fractions)
    assert told[-1][0] == told[-1][1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)).map(sorted), min_size=1))
def test_what_begins_again_is_told_as_what_was_reached(parts: list[list[int]]) -> None:
    told: list[float] = []
    tell = rising(lambda done, total: told.append(done / total))
    assert tell is not None
    for done, total in parts:
        tell(done, max(total, 1))
    assert all(one <= other for one, other in pairwise(told))
    assert told[-1] == max(done / max(total, 1) for done, total in parts)
    assert len(told) == len(parts)


def test_nobody_is_told_where_nobody_asks() -> None:
    assert rising(None) is None
    assert share(None, 1, 2) is None
