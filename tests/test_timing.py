"""What is timed is what runs, and a ratio comes with both spreads."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.bundle import read
from node.runtimes.onnx import Onnx
from node.timing import NETWORK, STAGES, TOTAL, Side, Spread, Timed, bench, phantom_volumes, ratio
from tests.acceptance.hospital import tiny_engine


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_a_ratio_is_of_medians_with_the_least_and_the_most_that_quartiles_allow() -> None:
    one = Timed("a", 0.0, {TOTAL: Spread(2.0, 1.0, 4.0, 9)})
    other = Timed("b", 0.0, {TOTAL: Spread(6.0, 4.0, 8.0, 9)})
    assert ratio(one, other, TOTAL) == (3.0, 1.0, 8.0)
    assert ratio(other, one, TOTAL) == pytest.approx((1 / 3, 1 / 8, 1.0))


def test_both_sides_run_as_often_and_the_stages_make_up_the_total(tmp_path: Path) -> None:
    bundle = read(tiny_engine(tmp_path))
    seen: list[tuple[int, int]] = []
    sides = [Side("one", Onnx(threads=1)), Side("two", Onnx(threads=1, optimise="none"))]
    volumes = phantom_volumes(bundle, (3, 20, 16))
    assert volumes["flair"].voxels.shape == (3, 20, 16)
    times = bench(bundle, sides, volumes, 3, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    for side in times:
        assert list(side.stages) == list(STAGES)
        assert {spread.runs for spread in side.stages.values()} == {3}
        assert side.stages[NETWORK].high <= side.stages[TOTAL].high
        assert side.loading > 0
