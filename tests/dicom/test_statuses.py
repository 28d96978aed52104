"""What an answer to C-STORE means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom.statuses import verdict


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_success_duplicate_and_the_storage_warnings_are_accepted(status: int) -> None:
    assert verdict(status).accepted
    assert not verdict(status).retryable


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF])
def test_out_of_resources_may_be_tried_again(status: int) -> None:
    assert not verdict(status).accepted
    assert verdict(status).retryable


@pytest.mark.parametrize(
    "status", [0x0110, 0x0117, 0x0122, 0x0124, 0x0211, 0xA801, 0xA900, 0xA9FF, 0xC000, 0xCFFF]
)
def test_other_failures_want_a_person(status: int) -> None:
    assert not verdict(status).accepted
    assert not verdict(status).retryable


def test_the_reason_says_what_to_do() -> None:
    assert "ask its administrator" in verdict(0x0122).reason
    assert "free its storage" in verdict(0xA700).reason
    assert "unknown status 0x1234" in verdict(0x1234).reason


def test_plain_success_needs_no_words() -> None:
    assert verdict(0x0000).reason == ""


@given(st.integers(0, 0xFFFF))
def test_every_status_has_a_meaning_and_only_known_ones_are_accepted(status: int) -> None:
    meaning = verdict(status)
    assert meaning.accepted == (status in {0x0000, 0x0111, 0xB000, 0xB006, 0xB007})
    assert meaning.retryable == (status & 0xFF00 == 0xA700)
    assert meaning.reason or status == 0
