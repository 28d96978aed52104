"""Who is connected, and how many that may be, decided before a caller costs a thread.

A connection is worth nothing until it has become an association. So where there is no room, those
that wait longest to become one make it, of the address that has most of them: a caller that keeps
connections open and says nothing pushes out its own, and a sender always gets in.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections in all, of one address, and without an association yet."""

    total: int = 128
    per_address: int = 64
    waiting: int = 32


@dataclass(slots=True, eq=False)
class Visit:
    """One connection. ``end`` has its thread see the end of it."""

    address: str
    end: Callable[[], None]
    seated: bool = False
    """Whether it has become an association."""
    lobby: Lobby | None = field(default=None, repr=False)

    def seat(self) -> None:
        """It has become an association."""
        self.seated = True

    def leave(self) -> None:
        """It is over. A second time does nothing."""
        if self.lobby is not None:
            self.lobby.forget(self)


class Lobby:
    """All connections of a receiver. Safe to use from several threads."""

    def __init__(self, limits: Limits) -> None:
        """Nobody is connected."""
        self._limits = limits
        self._lock = threading.Lock()
        self._visits: dict[Visit, None] = {}
        self._closed = False

    def enter(self, address: str, end: Callable[[], None]) -> Visit | None:
        """A place for a new connection, or None where there is none to be had."""
        visit = Visit(address, end, lobby=self)
        with self._lock:
            if self._closed:
                return None
            leaving = self._crowding(address)
            if leaving is not None and leaving.address == "":
                return None
            if leaving is not None:
                del self._visits[leaving]
            self._visits[visit] = None
        if leaving is not None:
            leaving.end()
        return visit

    def forget(self, visit: Visit) -> None:
        """Give a place back."""
        with self._lock:
            self._visits.pop(visit, None)

    def close(self) -> list[Visit]:
        """Let nobody in any more; those who are in."""
        with self._lock:
            self._closed = True
            return list(self._visits)

    @property
    def seated(self) -> int:
        """How many associations there are."""
        with self._lock:
            return sum(visit.seated for visit in self._visits)

    def __len__(self) -> int:
        return len(self._visits)

    def _crowding(self, address: str) -> Visit | None:
        """Who has to go for a newcomer: None if nobody; the newcomer itself has no address."""
        same = [visit for visit in self._visits if visit.address == address]
        waiting = [visit for visit in self._visits if not visit.seated]
        if len(same) >= self._limits.per_address:
            return next((visit for visit in same if not visit.seated), _NEWCOMER)
        if len(waiting) >= self._limits.waiting or len(self._visits) >= self._limits.total:
            crowd = Counter(visit.address for visit in waiting)
            ((most, _),) = crowd.most_common(1) or ((None, 0),)
            return next((visit for visit in waiting if visit.address == most), _NEWCOMER)
        return None


_NEWCOMER = Visit("", lambda: None)
