"""How far a build is, from the phases that the library tells, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Report = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done."""

_STEP = 0.01
"""Smallest progress that is told: the library takes thousands of steps."""


def unreported(fraction: float, phase: str) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class _Phase:
    """A phase of the builder inside of another."""

    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The open phases, and what share of the whole they amount to. Never goes back.

    The builder may call from several threads.
    """

    def __init__(self, report: Report, cancelled: Callable[[], bool]) -> None:
        self._report = report
        self._cancelled = cancelled
        self._open: dict[str, _Phase] = {}
        self._told = 0.0
        self._lock = threading.Lock()
        self.stopped = False
        """Whether the builder was told to stop."""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins."""
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))
            self._tell(name)

    def step(self, name: str, number: int) -> bool:
        """A step, counted from 0, is done; False: stop building."""
        with self._lock:
            if name in self._open:
                self._open[name].done = number + 1
            self._tell(name)
        self.stopped = self.stopped or self._cancelled()
        return not self.stopped

    def finish(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._open.pop(name, None)

    def _tell(self, phase: str) -> None:
        share = min(max((self._share(name) for name in self._outer(None)), default=0.0), 1.0)
        if share >= self._told + _STEP:
            self._told = share
            self._report(share, phase)

    def _share(self, name: str) -> float:
        """Of a phase: its steps, and of the step that runs the share of the phase inside."""
        phase = self._open[name]
        inside = max((self._share(inner) for inner in self._outer(name)), default=0.0)
        return min(phase.done + min(inside, 1.0), phase.steps) / phase.steps

    def _outer(self, parent: str | None) -> list[str]:
        return [name for name, phase in self._open.items() if phase.parent == parent]


def monitor(api: Any, report: Report, cancelled: Callable[[], bool]) -> Any:
    """The library's own monitor over ``Phases``; ``.stopped`` tells whether it was cancelled."""
    phases = Phases(report, cancelled)

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        """Called by the builder, from whatever thread it likes."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            """A phase begins."""
            phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            """A step is done; False cancels."""
            return phases.step(name, step)

        def phase_finish(self, name: str) -> None:
            """A phase ends."""
            phases.finish(name)

        @property
        def stopped(self) -> bool:
            """Whether it was cancelled."""
            return phases.stopped

    return Monitor()
