"""Instances become complete studies: a quiet period and a deadline.

Pure: (state, event, now) -> state; the clock is an argument. The ledger keeps the state, the push
trigger turns a completion into jobs.

DICOM has no "that was all" message, so silence decides: a study is complete when nothing has
arrived for the quiet period, or when the deadline has passed since its first instance. Whatever
arrives later reopens it, and it completes again as a new revision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Rule = Literal["quiet period", "deadline"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds of silence that complete a study, and the longest wait from its first instance."""

    quiet_period_s: float = 10.0
    deadline_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Assembly:
    """A study being received; ``opened_at`` is None while nothing new has arrived.

    Times are seconds since the epoch, of the first and the last arrival since the last completion.
    """

    study_uid: str
    opened_at: float | None = None
    last_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A study is complete, and this rule said so."""

    study_uid: str
    rule: Rule
    waited_s: float


def arrive(state: Assembly, at: float, *, new: bool) -> Assembly:
    """An instance arrived at ``at``; ``new`` is False when its bytes were there already.

    A repeated instance never reopens a study, but while one is open it shows that the sender is
    still sending. Arrivals may come out of order.
    """
    if state.opened_at is None:
        return replace(state, opened_at=at, last_at=at) if new else state
    return replace(state, opened_at=min(state.opened_at, at), last_at=max(state.last_at, at))


def due(state: Assembly, policy: Policy, listening_since: float) -> tuple[float, Rule] | None:
    """When the study will be complete if nothing more arrives, and by which rule.

    Only time in which the node could have received counts as silence: after a restart the quiet
    period begins at ``listening_since``. Both rules give way to it, for a sender that was cut off
    needs the chance to go on.
    """
    if state.opened_at is None:
        return None
    quiet = max(state.last_at, listening_since) + policy.quiet_period_s
    deadline = max(
        state.opened_at + policy.deadline_s,
        listening_since + min(policy.quiet_period_s, policy.deadline_s),
    )
    return (quiet, "quiet period") if quiet <= deadline else (deadline, "deadline")


def tick(
    state: Assembly, policy: Policy, listening_since: float, now: float
) -> tuple[Assembly, Completion | None]:
    """Time passed. Returns the state and, if the study is complete now, its completion."""
    expected = due(state, policy, listening_since)
    if expected is None or state.opened_at is None or now < expected[0]:
        return state, None
    closed = replace(state, opened_at=None)
    return closed, Completion(state.study_uid, expected[1], now - state.opened_at)
