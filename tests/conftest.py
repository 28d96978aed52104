"""What every test may count on: a clean environment, a clock that it sets, the same examples in CI.

Fixtures of one folder stand in that folder's own ``conftest.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import settings

# What steers a node from outside would steer the tests too. pytest reads this file before any of
# ours is imported.
for _name in ("AI_NODE_CONFIG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
    os.environ.pop(_name, None)

settings.register_profile("node", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("node")


@dataclass
class Clock:
    """A clock that stands still until it is told to go on; seconds since the epoch."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Go on, and tell the new time."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()
