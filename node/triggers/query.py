"""Studies that we fetch ourselves: C-FIND at a PACS, and C-MOVE of what is new to us.

A study is pulled once and none is missed, although firings are missed, processes restart and
archives answer late: the window asked for reaches back over the last one that was answered, and
the ledger knows what was found and what was fetched.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Protocol

import structlog
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from node.dicom import scu
from node.dicom.matching import in_words
from node.dicom.requestor import known_peer
from node.dicom.scu import FindQuery, Match, MoveResult
from node.domain.errors import PeerError, PeerUnreachable
from node.domain.job import BackOff
from node.domain.peer import Network, Peer

log = structlog.get_logger()

_BACK_OFF = BackOff(first=60.0, factor=2.0, longest=3600.0)


class Pull(Protocol):
    """A study to fetch; ``attempts`` have failed so far."""

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""

    @property
    def attempts(self) -> int:
        """Failed attempts so far."""


class Pulls(Protocol):
    """What this trigger needs of the ledger. Times are seconds since the epoch.

    Each call is durable when it returns.
    """

    def watermark(self, name: str) -> float | None:
        """When the query of that name was last answered; None before the first time."""

    def advance(self, name: str, at: float) -> None:
        """The query of that name was answered; the mark never moves back."""

    def note(
        self, peer: str, study_uid: str, accession: str, instances: int | None, now: float
    ) -> None:
        """A study was found: due when it is new, or has more instances than when it was pulled."""

    def queried(self, peer: str, question: str, found: int, now: float) -> None:
        """The peer answered a question with so many studies."""

    def due(self, peer: str, now: float) -> tuple[Pull, ...]:
        """What is to be fetched from a peer now."""

    def pulled(self, peer: str, study_uid: str, now: float, instances: int | None) -> None:
        """A study was fetched; with None, the number of instances last noted stands."""

    def postpone(self, peer: str, study_uid: str, until: float, reason: str) -> None:
        """A fetch failed, and is due again at ``until``; its attempts grow by one."""

    def give_up(self, peer: str, study_uid: str, reason: str) -> None:
        """A fetch failed for the last time; the study is due again only when it grows."""


class Room(Protocol):
    """The part of a trigger's room that this one uses."""

    @property
    def network(self) -> Network:
        """Ourselves and the peers."""

    @property
    def pulls(self) -> Pulls:
        """What was found and fetched."""


def _crontab(expression: str) -> str:
    if expression:
        CronTrigger.from_crontab(expression)
    return expression


@dataclass(frozen=True, config={"extra": "forbid", "use_attribute_docstrings": True})
class Query:
    """Asks one PACS for new studies and has them sent here."""

    peer: str
    """Name of the [[peer]] to ask; it must know our AE title, host and port."""

    interval_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds between two questions; without effect where ``cron`` is given."""

    cron: Annotated[str, AfterValidator(_crontab)] = ""
    """When to ask, as the five fields of a crontab line, such as ``*/5 7-19 * * 1-5``."""

    modality: str = ""
    """Modality that a study must have, such as MR; empty: any."""

    description: str = ""
    """Study Description, with the wildcards * and ?; empty: any."""

    days: Annotated[int, Field(ge=0)] = 2
    """Days before today that the first question reaches back."""

    overlap_days: Annotated[int, Field(ge=0)] = 1
    """Days that each later question reaches back before the day of the last answered one."""

    attempts: Annotated[int, Field(ge=1)] = 5
    """Failed fetches of one study before it is given up."""

    def schedule(self) -> BaseTrigger:
        """When to fire. A firing may be late or left out: the next one asks for its days too."""
        if self.cron:
            return CronTrigger.from_crontab(self.cron)
        return IntervalTrigger(seconds=self.interval_s)

    def fire(self, room: Room, now: float) -> None:
        """Ask for new studies, then fetch what is due, found now or earlier.

        A peer that cannot be reached leaves everything due. Raises PeerError only when no peer
        has the configured name.
        """
        peer = known_peer(room.network, self.peer)
        try:
            found = self._ask(room, peer, now)
        except PeerUnreachable as error:
            log.warning("query unanswered", peer=peer.name, error=str(error))
            return
        except PeerError as error:
            # It answers, so what was found earlier may still be fetched.
            log.warning("query refused", peer=peer.name, error=str(error))
            found = {}
        self._fetch(room, peer, found, now)

    @property
    def _name(self) -> str:
        # Another filter is another question, with a high-water mark of its own.
        return f"query {self.peer} {self.modality} {self.description}"

    def _ask(self, room: Room, peer: Peer, now: float) -> dict[str, Match]:
        today = datetime.date.fromtimestamp(now)
        question = FindQuery(
            modality=self.modality,
            description=self.description,
            date_from=self._first_day(room.pulls.watermark(self._name), today),
            date_to=today,
        )
        matches = scu.find(room.network, peer, question)
        for match in matches:
            room.pulls.note(peer.name, match.study_uid, match.accession, match.instances, now)
        room.pulls.queried(peer.name, in_words(question), len(matches), now)
        # Last, so that a crash half way asks for the same days again.
        room.pulls.advance(self._name, now)
        return {match.study_uid: match for match in matches}

    def _first_day(self, answered: float | None, today: datetime.date) -> datetime.date:
        if answered is None:
            return today - datetime.timedelta(days=self.days)
        last = min(datetime.date.fromtimestamp(answered), today)
        return last - datetime.timedelta(days=self.overlap_days)

    def _fetch(self, room: Room, peer: Peer, found: Mapping[str, Match], now: float) -> None:
        for pull in room.pulls.due(peer.name, now):
            try:
                moved = _moved(room.network, peer, pull.study_uid)
            except PeerUnreachable as error:
                if not _answers(room.network, peer):
                    log.warning("peer is down, fetching stops", peer=peer.name, error=str(error))
                    return
                # It is this one study that it cannot send; the others shall not wait for it.
                self._failed(room, peer, pull, str(error), now)
            except PeerError as error:
                self._failed(room, peer, pull, str(error), now)
            else:
                instances = _instances(found.get(pull.study_uid), moved)
                room.pulls.pulled(peer.name, pull.study_uid, now, instances)

    def _failed(self, room: Room, peer: Peer, pull: Pull, reason: str, now: float) -> None:
        attempt = pull.attempts + 1
        log.warning("fetch failed", peer=peer.name, attempt=attempt, reason=reason)
        if attempt >= self.attempts:
            room.pulls.give_up(peer.name, pull.study_uid, reason)
        else:
            until = now + _BACK_OFF.delay(attempt)
            room.pulls.postpone(peer.name, pull.study_uid, until, reason)


def pull(network: Network, peer: Peer, accession: str) -> tuple[tuple[Match, MoveResult], ...]:
    """Fetch by hand: find by accession number, and have each match sent to our AE title.

    Raises PeerError when nothing matches, and when the peer cannot find or send.
    """
    if not accession or set(accession) & set("*?\\"):
        raise PeerError("an accession number is needed, without wildcards: one study is fetched")
    matches = scu.find(network, peer, FindQuery(accession=accession))
    if not matches:
        raise PeerError(
            f"{peer.name} has no study with this accession number: check the number, and whether "
            f"the study has reached {peer.name}"
        )
    return tuple((match, _moved(network, peer, match.study_uid)) for match in matches)


def _moved(network: Network, peer: Peer, study_uid: str) -> MoveResult:
    """C-MOVE to ourselves. Raises PeerError also when only a part came."""
    moved = scu.move(network, peer, study_uid, network.ae_title)
    if moved.failed:
        raise PeerError(
            f"{peer.name} could not send {moved.failed} of the study's instances to us: look into "
            "its log and ours"
        )
    return moved


def _answers(network: Network, peer: Peer) -> bool:
    try:
        scu.echo(network, peer)
    except PeerError:
        return False
    return True


def _instances(match: Match | None, moved: MoveResult) -> int | None:
    """How many instances of the study we have seen now; None: as many as were noted.

    The larger of the two counts: a peer may count what it does not send, and a study may grow
    between the question and the fetch.
    """
    if match is None or match.instances is None:
        return None
    return max(match.instances, moved.completed + moved.warning)
