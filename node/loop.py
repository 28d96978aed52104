"""A part of the node that works in its own thread: sleeps until woken or until something is due."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event

import structlog

from node.domain.errors import DeviceLost, NodeError, may_pass

_log = structlog.get_logger()

RETRY_S = 1.0
"""Pause after a step that failed for a passing reason: a locked ledger, a full disk."""
LONGEST_GATHER_S = 1.0
"""However often a loop is woken, it works after this time."""
LONGEST_SLEEP_S = 30.0
"""However far away the next due time is, look again: the wall clock may have been set."""


@dataclass(slots=True)
class Loop:
    """Calls ``step`` while it has work, then waits until ``next_due`` or ``wake``.

    ``step`` returns whether it did anything; ``next_due`` gives seconds since the epoch or None.
    """

    name: str
    step: Callable[[], bool]
    next_due: Callable[[], float | None]
    clock: Callable[[], float]
    beat: float = 0.0
    """When the loop last began a turn, by the stopwatch; proof of progress for the watchdog."""
    stopwatch: Callable[[], float] = time.monotonic
    """Seconds that only rise: a wall clock that is set back must not hide a loop that hangs."""
    gather_s: float = 0.0
    """Once woken it waits until it was not woken for so long: then it has more to do at once."""
    niceness: int = 0
    """What its thread yields to others (nice(2)), with the processes that it starts."""
    _stirred: Event = field(default_factory=Event)
    _stopping: Event = field(default_factory=Event)

    def run(self) -> None:
        """Work until ``stop``. What ``step`` raises ends the loop, and thereby the node, unless
        trying again can help."""
        self._yield()
        while not self._stopping.is_set():
            self.beat = self.stopwatch()
            self._stirred.clear()
            try:
                pause = 0.0 if self.step() else self._pause()
            except NodeError as error:
                # A lost device comes back to another process only.
                if not error.retryable or isinstance(error, DeviceLost):
                    raise
                _log.warning("trying again", loop=self.name, error=str(error))
                self._stopping.wait(RETRY_S)
            except OSError as error:
                if not may_pass(error):
                    raise
                _log.warning("trying again", loop=self.name, error=error.strerror)
                self._stopping.wait(RETRY_S)
            else:
                self._wait(pause)

    def wake(self) -> None:
        """There may be work now."""
        self._stirred.set()

    def stop(self) -> None:
        """End after the step that runs."""
        self._stopping.set()
        self._stirred.set()

    def _wait(self, pause: float) -> None:
        if not self._stirred.wait(pause) or not self.gather_s:
            return
        until = self.stopwatch() + LONGEST_GATHER_S
        while True:
            self._stirred.clear()
            # Not woken by every ring meanwhile: a thousand a second would cost more than they say.
            if self._stopping.wait(self.gather_s) or not self._stirred.is_set():
                return
            if self.stopwatch() >= until:
                return

    def _yield(self) -> None:
        if self.niceness:
            # A service may have been forbidden to; then its unit says what each part weighs.
            with suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.niceness)

    def _pause(self) -> float:
        due = self.next_due()
        if due is None:
            return LONGEST_SLEEP_S
        return min(LONGEST_SLEEP_S, max(0.0, due - self.clock()))
