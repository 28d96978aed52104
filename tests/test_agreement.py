"""Dice and its interval, whatever the masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from node.agreement import Compared, agreements, interval, overlap

MASKS = arrays(bool, (2, 3, 4))
SHARES = st.lists(st.floats(0, 1), min_size=5, max_size=12)


@given(one=MASKS, other=MASKS)
def test_overlap_is_symmetric_and_lies_between_0_and_1(
    one: np.typing.NDArray[np.bool_], other: np.typing.NDArray[np.bool_]
) -> None:
    found = overlap(one, other)
    assert found == overlap(other, one)
    assert (found is None) == (not one.any() and not other.any())
    assert found is None or 0 <= found <= 1
    assert overlap(one, one) in (None, 1.0)


def test_overlap_is_twice_the_shared_over_both() -> None:
    one, other = np.zeros(8, bool), np.zeros(8, bool)
    one[:4], other[2:4] = True, True
    assert overlap(one, other) == pytest.approx(2 * 2 / 6)


@given(values=SHARES)
def test_an_interval_holds_the_mean_and_is_the_same_every_time(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    assert found == interval(values)
    assert min(values) - 1e-9 <= found[0] <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= found[1] <= max(values) + 1e-9


def test_few_studies_get_no_interval() -> None:
    assert interval([0.5] * 4) is None
    assert interval([0.5] * 5) == (0.5, 0.5)


def test_studies_in_which_neither_side_has_a_finding_are_counted_apart() -> None:
    compared = (
        Compared("1", {"a": 0.5, "b": None}),
        Compared("2", {"a": 1.0, "b": 0.25}),
        Compared("3", {}, "no mask"),
    )
    a, b = agreements(compared)
    assert (a.finding, a.values, a.absent, a.mean) == ("a", (0.5, 1.0), 0, 0.75)
    assert (b.finding, b.values, b.absent) == ("b", (0.25,), 1)
