"""What a trigger may use: the ledger, the network, and the engines that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.domain.peer import Network
from node.domain.stage import Reached, unobserved
from node.ledger import Ledger
from node.ledger.pulls import Pull


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What makes a job of an engine this job and no other."""

    name: str
    digest: str
    config_digest: str


@dataclass(frozen=True, slots=True)
class DurablePulls:
    """The book of pulls, each call a transaction of its own: durable when it returns.

    A C-MOVE takes minutes, and no transaction may stay open for that long.
    """

    ledger: Ledger

    def watermark(self, name: str) -> float | None:
        """When the query of that name was last answered; None before the first time."""
        with self.ledger.read() as books:
            return books.pulls.watermark(name)

    def advance(self, name: str, at: float) -> None:
        """The query of that name was answered."""
        with self.ledger.write() as books:
            books.pulls.advance(name, at)

    def note(
        self, peer: str, study_uid: str, accession: str, instances: int | None, now: float
    ) -> None:
        """A study was found at a peer."""
        with self.ledger.write() as books:
            books.pulls.note(peer, study_uid, accession, instances, now)

    def due(self, peer: str, now: float) -> tuple[Pull, ...]:
        """What is to be fetched from a peer now."""
        with self.ledger.read() as books:
            return books.pulls.due(peer, now)

    def pulled(self, peer: str, study_uid: str, now: float, instances: int | None) -> None:
        """A study was fetched."""
        with self.ledger.write() as books:
            books.pulls.pulled(peer, study_uid, now, instances)
            books.events.note(now, "pulled", f"from {peer} by C-MOVE", study_uid=study_uid)

    def postpone(self, peer: str, study_uid: str, until: float, reason: str) -> None:
        """A fetch failed; it is due again at ``until``."""
        with self.ledger.write() as books:
            books.pulls.postpone(peer, study_uid, until, reason)

    def give_up(self, peer: str, study_uid: str, reason: str) -> None:
        """A fetch failed for the last time."""
        with self.ledger.write() as books:
            books.pulls.give_up(peer, study_uid, reason)


@dataclass(frozen=True, slots=True)
class Room:
    """Handed to every trigger that fires. ``listening_since`` is seconds since the epoch."""

    ledger: Ledger
    network: Network
    engines: tuple[EngineIdentity, ...]
    listening_since: float
    wake_worker: Callable[[], None]
    reached: Reached = unobserved

    @property
    def pulls(self) -> DurablePulls:
        """What was found at peers and fetched."""
        return DurablePulls(self.ledger)
