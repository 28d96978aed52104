"""Removes the bytes of studies that are finished with, by age and for want of space.

What is decided is a pure function of what the ledger says, the clock and the disk. What nobody
has finished with is never removed, however full the disk is: then a person is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.domain.event import EventKind
from node.ledger import Ledger
from node.ledger.upkeep import Holding
from node.spool import Spool

_log = structlog.get_logger()

DAY_S = 86_400.0
GB = 1_000_000_000
EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """``age_s``: seconds after the last event of a study (0: age removes nothing). ``free``: bytes
    to keep free. ``maximum``: bytes that all holdings may take (0: no limit)."""

    age_s: float = 7 * DAY_S
    free: int = 10 * GB
    maximum: int = 0


@dataclass(frozen=True, slots=True)
class Sized:
    """A holding and the bytes that it takes on the disk."""

    holding: Holding
    size: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be removed, and the bytes that are still wanting afterwards."""

    aged: tuple[str, ...]
    for_space: tuple[str, ...]
    wanting: int


def choose(holdings: Sequence[Sized], limits: Limits, now: float, free: int) -> Choice:
    """What to remove, what happened longest ago first, and only what is finished with.

    ``free`` is what the disk has left, in bytes.
    """
    finished = sorted(
        (one for one in holdings if one.holding.finished), key=lambda one: one.holding.last_at
    )
    aged = [one for one in finished if limits.age_s and now - one.holding.last_at >= limits.age_s]
    wanting = _wanting(holdings, limits, free) - sum(one.size for one in aged)
    for_space = []
    for one in finished[len(aged) :]:
        if wanting <= 0:
            break
        for_space.append(one.holding.study_uid)
        wanting -= one.size
    return Choice(tuple(one.holding.study_uid for one in aged), tuple(for_space), max(0, wanting))


def _wanting(holdings: Sequence[Sized], limits: Limits, free: int) -> int:
    taken = sum(one.size for one in holdings)
    return max(limits.free - free, taken - limits.maximum if limits.maximum else 0)


@dataclass(slots=True)
class Retention:
    """Looks at the disk once a minute. One at a time may run on a spool.

    ``free_bytes`` gives what the spool's disk has left.
    """

    ledger: Ledger
    spool: Spool
    limits: Limits
    free_bytes: Callable[[], int]
    due_at: float = 0.0
    """When to look again, in seconds since the epoch."""
    _alarmed: bool = False

    def step(self, now: float) -> int:
        """Remove what is to be removed. Returns how many studies. Raises LedgerError."""
        if now < self.due_at:
            return 0
        self.due_at = now + EVERY_S
        choice = choose(self._sized(), self.limits, now, self.free_bytes())
        removed = sum(self._remove(study, "its age", now) for study in choice.aged)
        removed += sum(self._remove(study, "want of space", now) for study in choice.for_space)
        self._tell(choice, now)
        return removed

    def _sized(self) -> list[Sized]:
        with self.ledger.read() as books:
            holdings = books.upkeep.holdings()
            if not self.limits.maximum and self.free_bytes() >= self.limits.free:
                # Asking the disk for every file takes long, and nothing depends on it.
                return [Sized(holding, 0) for holding in holdings]
            return [Sized(one, _size(books.upkeep.files(one.study_uid))) for one in holdings]

    def _remove(self, study: str, why: str, now: float) -> bool:
        """Remove a study's files if it is still finished with. The files go before the ledger
        forgets them, so that a crash in between leaves none behind."""
        with self.ledger.write() as books:
            current = books.upkeep.holdings(study)
            if not current or not current[0].finished:
                return False
            files = books.upkeep.files(study)
            self.spool.remove(files)
            books.upkeep.forget_files(study)
            words = (
                f"{len(files)} files removed by retention for {why}; what is known of them stays"
            )
            books.events.note(now, EventKind.REMOVED, words, study_uid=study)
        _log.info("study removed", study=study, files=len(files), why=why)
        return True

    def _tell(self, choice: Choice, now: float) -> None:
        """Raise the alarm once, when space is wanting that may not be made."""
        if choice.wanting and not self._alarmed:
            words = (
                f"{choice.wanting / GB:.1f} GB of space are wanting, and every study that is here "
                "still is to be assessed or delivered: see `ai-node jobs` and "
                "`ai-node deliveries`, or give the state folder a larger disk"
            )
            with self.ledger.write() as books:
                books.events.note(now, EventKind.ALARM, words)
            _log.error("disk short of space", wanting=choice.wanting)
        self._alarmed = choice.wanting > 0


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())
