"""Studies that were pushed to us: complete ones become jobs, one per engine.

The same trigger completes what a query pulled, for it too arrives by C-STORE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic.dataclasses import dataclass

from node.assembly import Assembly, Completion, Policy, due, tick
from node.domain.event import EventKind
from node.domain.job import Job, JobState, job_id, urgency
from node.domain.peer import Network
from node.domain.stage import Stage
from node.ledger import Books
from node.ledger.arrivals import StudyRow
from node.room import EngineIdentity, Room, Terms

_USUAL = Terms()


@dataclass(frozen=True, config={"extra": "forbid"})
class Push:
    """Completes studies by silence or deadline. A peer may have times of its own."""

    quiet_period_s: float = 10.0
    """Seconds without a new instance after which a study counts as complete."""

    deadline_s: float = 1800.0
    """Seconds after its first instance at which a study is complete even if more arrive."""

    def fire(self, room: Room, now: float) -> None:
        """Complete what is due and enter its jobs, each study in one transaction."""
        with room.ledger.read() as books:
            rows = books.arrivals.open_rows()
        for row in rows:
            policy = self.policy(row.peer, room.network)
            _, completion = tick(_state(row), policy, room.listening_since, now)
            if completion is not None:
                _complete(room, completion, now)

    def next_due(self, rows: Iterable[StudyRow], room: Room) -> float | None:
        """When the next of the open studies will be due; None when none is open."""
        return min(self._dues(rows, room), default=None)

    def policy(self, peer: str, network: Network) -> Policy:
        """The times that hold for a peer's studies."""
        own = network.peers.get(peer)
        quiet = own.quiet_period_s if own else None
        deadline = own.deadline_s if own else None
        return Policy(
            self.quiet_period_s if quiet is None else quiet,
            self.deadline_s if deadline is None else deadline,
        )

    def _dues(self, rows: Iterable[StudyRow], room: Room) -> Iterator[float]:
        for row in rows:
            expected = due(_state(row), self.policy(row.peer, room.network), room.listening_since)
            if expected is not None:
                yield expected[0]


def _state(row: StudyRow) -> Assembly:
    return Assembly(row.study_uid, row.opened_at, row.last_at)


def _complete(room: Room, completion: Completion, now: float) -> None:
    room.reached(Stage.STUDY_COMPLETE, completion.study_uid)
    with room.ledger.write() as books:
        content = books.arrivals.complete(completion.study_uid, completion.rule, now)
        for peer, count in books.arrivals.senders(completion.study_uid).items():
            words = f"{count} instances in all from {peer}"
            books.events.note(
                now, EventKind.RECEIVED, words, study_uid=completion.study_uid, actor=peer
            )
        books.events.note(
            now,
            EventKind.COMPLETE,
            f"by {completion.rule} after {completion.waited_s:.1f} s",
            study_uid=completion.study_uid,
        )
        for engine in room.engines:
            enter_job(books, engine, completion.study_uid, content, now, room.terms)
    room.reached(Stage.JOB_CREATED, completion.study_uid)
    room.wake_worker()


def enter_job(
    books: Books,
    engine: EngineIdentity,
    study_uid: str,
    content: str,
    now: float,
    terms: Terms = _USUAL,
) -> str:
    """Enter the job of an engine on a revision, unless it is there.

    Returns its id; "" where the terms want none.
    """
    identity = job_id(content, engine.name, engine.digest, engine.config_digest)
    if books.jobs.row(identity) is not None:
        words = f"{engine.name} has this content already; nothing is made twice"
        books.events.note(now, EventKind.KNOWN, words, study_uid=study_uid, job=identity)
        return identity
    late = books.jobs.has_earlier(study_uid, engine.name, content)
    if late and terms.late_instances == "ignore":
        words = f"{engine.name} has assessed an earlier content; late instances make no job"
        books.events.note(now, EventKind.KNOWN, words, study_uid=study_uid)
        return ""
    held = late and terms.late_instances == "hold"
    job = Job(
        id=identity,
        study_uid=study_uid,
        revision=content,
        engine=engine.name,
        engine_digest=engine.digest,
        config_digest=engine.config_digest,
        state=JobState.HELD if held else JobState.QUEUED,
        attempts=0,
        created_at=now,
        priority=engine.priority + urgency(books.upkeep.priorities(study_uid)),
        deadline_at=now + terms.deadline_s if terms.deadline_s else None,
        supersedes=books.jobs.superseded(study_uid, engine.name, content),
    )
    books.jobs.add(job)
    if held:
        words = f"{engine.name} waits: instances came late; `ai-node reprocess` lets it run"
        books.events.note(now, EventKind.HELD, words, study_uid=study_uid, job=identity)
    return identity
