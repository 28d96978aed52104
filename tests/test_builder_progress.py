"""What share of a build is done, from phases inside of phases."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.gpu.progress import Phases


def phases(cancel_after: int = 1_000_000) -> tuple[Phases, list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []
    left = iter(range(cancel_after))
    return Phases(lambda *words: told.append(words), lambda: next(left, None) is None), told


def test_steps_of_an_inner_phase_fill_one_step_of_the_outer() -> None:
    made, told = phases()
    made.start("build", None, 2)
    made.start("read", "build", 4)
    made.step("read", 0)
    made.step("read", 1)
    made.finish("read")
    made.step("build", 0)
    made.start("tune", "build", 2)
    made.step("tune", 0)
    assert told == [(0.125, "read"), (0.25, "read"), (0.5, "build"), (0.75, "tune")]


def test_small_steps_are_not_told() -> None:
    made, told = phases()
    made.start("build", None, 10_000)
    for number in range(10_000):
        made.step("build", number)
    assert 90 <= len(told) <= 100
    assert told[-1][0] > 0.98


def test_stopped_build_stays_stopped() -> None:
    made, _ = phases(cancel_after=1)
    made.start("build", None, 4)
    assert made.step("build", 0)
    assert not made.step("build", 1)
    assert not made.step("build", 2)
    assert made.stopped


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from(["start", "step", "finish"]), st.integers(0, 9)
        ),
        max_size=60,
    )
)
def test_share_never_goes_back_nor_beyond_the_end(
    history: list[tuple[str, str, int]],
) -> None:
    made, told = phases()
    for name, what, number in history:
        parent = {"a": None, "b": "a", "c": "b", "d": "a"}[name]
        if what == "start":
            made.start(name, parent, number)
        elif what == "step":
            made.step(name, number)
        else:
            made.finish(name)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
