"""Quiet hours begin and end when they say, past midnight too."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.quiet import QuietHours, may_build

MINUTE = timedelta(minutes=1)
MIDNIGHT = datetime(2026, 11, 20)


@pytest.mark.parametrize(
    ("text", "quiet", "loud"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["21:59", "06:00", "12:00"]),
        ("01:30-02:00", ["01:30", "01:59"], ["01:29", "02:00", "13:30"]),
        ("00:00-00:00", ["00:00", "12:34", "23:59"], []),
    ],
)
def test_quiet_hours_begin_and_end_when_they_say(
    text: str, quiet: list[str], loud: list[str]
) -> None:
    hours = QuietHours.read(text)
    assert str(hours) == text
    for moments, wanted in ((quiet, True), (loud, False)):
        for moment in moments:
            hour, minute = map(int, moment.split(":"))
            assert may_build(MIDNIGHT.replace(hour=hour, minute=minute), hours) is wanted


@given(begin=st.integers(0, 1439), end=st.integers(0, 1439))
def test_quiet_hours_last_as_long_as_they_say(begin: int, end: int) -> None:
    hours = QuietHours(begin, end)
    quiet = [minute for minute in range(1440) if may_build(MIDNIGHT + minute * MINUTE, hours)]
    assert len(quiet) == ((end - begin) % 1440 or 1440)
    assert begin in quiet
    assert QuietHours.read(str(hours)) == hours


def test_without_quiet_hours_it_is_always_time() -> None:
    assert may_build(MIDNIGHT, None)


@pytest.mark.parametrize("text", ["", "22-06", "24:00-06:00", "22:60-06:00", "22:00", "a:b-c:d"])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="22:00-06:00"):
        QuietHours.read(text)
