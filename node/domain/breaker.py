"""When to leave a destination alone that does not answer, and when to try it again.

Pure: (breaker, what happened, now) -> breaker. The ledger keeps it, so a restart does not begin
again to knock at a door that was shut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from node.domain.job import BackOff


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of one destination.

    ``failures`` are those in a row. ``probe_at`` (seconds since the epoch) is when an open breaker
    lets a C-ECHO through; None while it is closed and results may be sent.
    """

    failures: int = 0
    probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent."""
        return self.probe_at is not None

    def failed(self, now: float, trip_after: int, back_off: BackOff) -> Breaker:
        """Nobody answered. From ``trip_after`` failures in a row on the breaker is open."""
        failures = self.failures + 1
        if failures < trip_after:
            return Breaker(failures)
        return Breaker(failures, now + back_off.delay(failures - trip_after + 1))

    def echoed(self) -> Breaker:
        """The peer answers again: closed, on trial.

        The failures stay counted until something was sent, so that a peer which answers C-ECHO and
        fails at every C-STORE is left alone for longer each time.
        """
        return replace(self, probe_at=None)

    def gate(self, due: float | None) -> float | None:
        """When something that is due at ``due`` may be tried (seconds since the epoch)."""
        if due is None or self.probe_at is None:
            return due
        return max(due, self.probe_at)
