"""What a trigger may use: the ledger, the network, and the engines that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from node.domain.event import EventKind
from node.domain.peer import Network
from node.domain.stage import Reached, unobserved
from node.ledger import Books, Ledger
from node.ledger.pulls import Pull


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What makes a job of an engine this job and no other; and how urgent its jobs are."""

    name: str
    digest: str
    config_digest: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms jobs are entered. ``deadline_s``: seconds to begin one (0: no limit).

    ``late_instances``: what a study's new content means when an engine has assessed an earlier
    one: ``supersede`` makes a job whose results replace the earlier ones, ``hold`` makes one that
    a person has to release, ``ignore`` makes none.
    """

    deadline_s: float = 0.0
    late_instances: Literal["supersede", "hold", "ignore"] = "supersede"


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

    def queried(self, peer: str, question: str, found: int, now: float) -> None:
        """A peer has answered a question with so many studies."""
        with self.ledger.write() as books:
            books.events.note(now, EventKind.QUERIED, f"{question}; {found} found", actor=peer)

    def note(
        self, peer: str, study_uid: str, accession: str, instances: int | None, now: float
    ) -> None:
        """A study was found at a peer, with so many instances.

        Our own results may be among them: they do not make a study that has grown.
        """
        with self.ledger.write() as books:
            foreign = _without_ours(books, study_uid, instances)
            books.pulls.note(peer, study_uid, accession, foreign, now)

    def due(self, peer: str, now: float) -> tuple[Pull, ...]:
        """What is to be fetched from a peer now."""
        with self.ledger.read() as books:
            return books.pulls.due(peer, now)

    def pulled(self, peer: str, study_uid: str, now: float, instances: int | None) -> None:
        """A study was fetched."""
        with self.ledger.write() as books:
            foreign = _without_ours(books, study_uid, instances)
            books.pulls.pulled(peer, study_uid, now, foreign)
            words = f"from {peer} by C-MOVE"
            books.events.note(now, EventKind.PULLED, words, study_uid=study_uid, actor=peer)

    def postpone(self, peer: str, study_uid: str, until: float, reason: str) -> None:
        """A fetch failed; it is due again at ``until``."""
        with self.ledger.write() as books:
            books.pulls.postpone(peer, study_uid, until, reason)

    def give_up(self, peer: str, study_uid: str, reason: str) -> None:
        """A fetch failed for the last time."""
        with self.ledger.write() as books:
            books.pulls.give_up(peer, study_uid, reason)


def _without_ours(books: Books, study_uid: str, instances: int | None) -> int | None:
    """The count of a study without the results that we have sent."""
    if instances is None:
        return None
    return max(0, instances - books.deliveries.accepted_of_study(study_uid))


@dataclass(frozen=True, slots=True)
class Room:
    """Handed to every trigger that fires. ``listening_since`` is seconds since the epoch."""

    ledger: Ledger
    network: Network
    engines: tuple[EngineIdentity, ...]
    listening_since: float
    wake_worker: Callable[[], None]
    reached: Reached = unobserved
    terms: Terms = Terms()

    @property
    def pulls(self) -> DurablePulls:
        """What was found at peers and fetched."""
        return DurablePulls(self.ledger)
