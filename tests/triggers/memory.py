"""A book of pulls in memory: what the query trigger needs of the ledger, as plain as it can be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from node.domain.peer import Network


@dataclass(frozen=True)
class Entry:
    """A study that was found at a peer. ``state`` is due, pulled or given up."""

    study_uid: str
    instances: int | None
    due_at: float
    attempts: int = 0
    state: str = "due"
    reason: str = ""


@dataclass
class MemoryPulls:
    """The trigger's port."""

    marks: dict[str, float] = field(default_factory=dict)
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    questions: list[tuple[str, str, int]] = field(default_factory=list)

    def watermark(self, name: str) -> float | None:
        return self.marks.get(name)

    def advance(self, name: str, at: float) -> None:
        self.marks[name] = max(at, self.marks.get(name, at))

    def queried(self, peer: str, question: str, found: int, now: float) -> None:
        self.questions.append((peer, question, found))

    def note(
        self, peer: str, study_uid: str, accession: str, instances: int | None, now: float
    ) -> None:
        known = self.entries.get((peer, study_uid))
        if known is None:
            self.entries[peer, study_uid] = Entry(study_uid, instances, now)
        elif instances is not None and instances > (known.instances or 0):
            fresh = replace(known, instances=instances)
            if known.state != "due":
                fresh = Entry(study_uid, instances, now)
            self.entries[peer, study_uid] = fresh

    def due(self, peer: str, now: float) -> tuple[Entry, ...]:
        return tuple(
            entry
            for (owner, _), entry in self.entries.items()
            if owner == peer and entry.state == "due" and entry.due_at <= now
        )

    def pulled(self, peer: str, study_uid: str, now: float, instances: int | None) -> None:
        known = self.entries[peer, study_uid]
        count = known.instances if instances is None else instances
        self.entries[peer, study_uid] = replace(known, state="pulled", instances=count)

    def postpone(self, peer: str, study_uid: str, until: float, reason: str) -> None:
        known = self.entries[peer, study_uid]
        self.entries[peer, study_uid] = replace(
            known, due_at=until, attempts=known.attempts + 1, reason=reason
        )

    def give_up(self, peer: str, study_uid: str, reason: str) -> None:
        known = self.entries[peer, study_uid]
        self.entries[peer, study_uid] = replace(known, state="given up", reason=reason)

    def states(self) -> dict[str, str]:
        """Study Instance UID to state."""
        return {entry.study_uid: entry.state for entry in self.entries.values()}


@dataclass(frozen=True)
class MemoryRoom:
    """The part of a trigger's room that the query trigger uses."""

    network: Network
    pulls: MemoryPulls = field(default_factory=MemoryPulls)
