"""A day of hospital load leaves memory, descriptors and threads where they were."""

from __future__ import annotations

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.soak import Soak, soak
from tests.chaos.trial import Place

_MORNING_S = 8 * 3600.0


def check(run: Soak) -> None:
    assert not run.ended
    assert not run.unanswered
    assert abs(run.slope("descriptors")) < 1.0
    assert abs(run.slope("threads")) < 1.0


def test_a_quarter_of_an_hour_of_hospital_load_leaves_no_descriptor_and_no_thread(
    place: Place,
) -> None:
    run = soak(place, 15.0, _MORNING_S)
    assert not run.unanswered
    assert not run.ended
    # Too short for a slope: two samples may catch an association open.
    late = run.samples[len(run.samples) // 2 :]
    assert max(s.descriptors for s in late) - min(s.descriptors for s in late) <= 8
    assert max(s.threads for s in late) - min(s.threads for s in late) <= 8


@pytest.mark.slow
def test_a_day_of_hospital_load_leaves_everything_flat(place: Place, tell: Tell) -> None:
    run = soak(place, 24 * 60.0)
    tell("a day of hospital load", run.figures())
    check(run)
    assert run.slope("memory") < 1e6  # bytes per injected hour
