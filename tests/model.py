"""What a courier should do, told a second time and as plainly as possible: the reference model.

It knows no ledger, no spool and none of the courier's code; it is compared with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FIRST, FACTOR, LONGEST = 5.0, 2.0, 60.0
TRIP_AFTER, ATTEMPTS = 3, 6
DELAY, TIMEOUT, RESENDS, DAY = 10.0, 100.0, 1, 86_400.0
OFTEN = 4


@dataclass
class Line:
    """One result as it should stand in the ledger."""

    uid: str
    due: float
    state: str = "waiting"
    attempts: int = 0
    sent_at: float = 0.0
    proof: str = ""
    proof_due: float | None = None
    resends: int = 0
    transaction: int = 0


@dataclass
class Model:
    """One destination. ``kind`` is the proof that is wanted; the rest is the PACS's mood."""

    kind: str
    lines: dict[str, Line] = field(default_factory=dict)
    failures: int = 0
    probe_at: float | None = None
    script: list[str] = field(default_factory=list)
    up: bool = True
    finds: str = "well"
    commits: str = "never"
    kept: set[str] = field(default_factory=set)
    taken: list[str] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    reports: list[tuple[int, set[str], set[str]]] = field(default_factory=list)
    alarms: int = 0

    def wait(self, failures: int) -> float:
        """The back-off after so many failures."""
        wait = FIRST
        for _ in range(failures - 1):
            wait = min(LONGEST, wait * FACTOR)
        return wait

    def step(self, now: float) -> None:
        """One step of the courier."""
        for number, committed, failed in self.reports:
            self.read(number, committed, failed, now)
        self.reports = []
        due = [line for line in self.lines.values() if line.state == "waiting" and line.due <= now]
        due.sort(key=lambda line: line.attempts >= OFTEN)
        if not due and not self.provable(now):
            return
        if self.probe_at is not None:
            if self.probe_at > now:
                return
            if not self.up:
                self.fail(now)
                return
            self.probe_at = None
        self.send(due, now)
        if self.kind != "none":
            self.prove(now)

    def provable(self, now: float) -> list[Line]:
        """The lines whose proof is due."""
        if self.kind == "none":
            return []
        under_way = ("ask", "asked", "look", "late")
        return [
            line
            for line in self.lines.values()
            if line.state == "sent" and line.proof in under_way and (line.proof_due or 0.0) <= now
        ]

    def fail(self, now: float) -> None:
        """The destination could not be reached."""
        self.failures += 1
        if self.failures >= TRIP_AFTER:
            self.probe_at = now + self.wait(self.failures - TRIP_AFTER + 1)

    def send(self, due: list[Line], now: float) -> None:
        """One association."""
        for number, line in enumerate(due):
            word = self.script.pop(0) if self.script else "take"
            if word == "down" or not self.up:
                self.try_again(line, now)
                for other in due[number + 1 :]:
                    other.due = now + FIRST
                if number:
                    self.failures = 0
                self.fail(now)
                return
            self.failures = 0
            if word == "silent":
                for other in due[number:]:
                    self.try_again(other, now)
                return
            self.answer(line, word, now)

    def answer(self, line: Line, word: str, now: float) -> None:
        """What a C-STORE response does."""
        if word == "full":
            self.try_again(line, now)
            return
        line.attempts += 1
        line.state = "sent" if word == "take" else "held"
        if word == "take":
            self.taken.append(line.uid)
            self.kept.add(line.uid)
            line.sent_at = now
            line.proof, line.proof_due = {
                "none": ("", None),
                "commitment": ("ask", now),
            }.get(self.kind, ("look", now + DELAY))

    def try_again(self, line: Line, now: float) -> None:
        """A failure that another try may change."""
        line.attempts += 1
        if line.attempts >= ATTEMPTS:
            line.state = "dead"
        else:
            line.due = now + self.wait(line.attempts)

    def read(self, number: int, committed: set[str], failed: set[str], now: float) -> None:
        """A report of storage commitment."""
        for line in self.lines.values():
            if line.transaction != number:
                continue
            if line.uid in failed:
                if (line.state, line.proof) == ("sent", "asked"):
                    line.proof, line.proof_due = "look", now
            elif line.uid in committed and line.state in ("sent", "verified"):
                line.state, line.proof, line.proof_due = "committed", "", None

    def prove(self, now: float) -> None:
        """Everything that a proof can need, in the order of its stages."""
        for line in self.stage("asked", now):
            line.proof, line.proof_due = "look", now
        asked = self.stage("ask", now)
        if asked:
            self.ask(asked, now)
        looked = [*self.stage("look", now), *self.stage("late", now)]
        mood = self.finds if self.up else "down"
        for line in looked:
            self.look(line, mood, now)

    def stage(self, stage: str, now: float) -> list[Line]:
        """What is due at one stage."""
        return [line for line in self.provable(now) if line.proof == stage]

    def ask(self, lines: list[Line], now: float) -> None:
        """N-ACTION."""
        mood = self.commits if self.up else "down"
        if mood in ("never", "at once"):
            self.asked.append([line.uid for line in lines])
        number = len(self.asked) if mood in ("never", "at once") else -1
        for line in lines:
            line.transaction = number
            if mood in ("never", "at once"):
                line.proof, line.proof_due = "asked", now + TIMEOUT
            elif mood == "down" and now < line.sent_at + TIMEOUT:
                line.proof_due = now + self.doubled(line, now)
            else:
                line.proof, line.proof_due = "look", now
        if mood == "at once":
            self.report(number)

    def report(self, number: int) -> None:
        """The PACS reports on its request of that number, by what it has now."""
        uids = set(self.asked[number - 1])
        self.reports.append((number, uids & self.kept, uids - self.kept))

    def look(self, line: Line, mood: str, now: float) -> None:
        """C-FIND."""
        late = now >= line.sent_at + TIMEOUT
        if mood == "refused":
            line.proof, line.proof_due = "not offered" if self.kind == "auto" else "unproven", None
            self.alarms += self.kind != "auto"
        elif mood in ("down", "busy"):
            if late and line.proof == "look":
                line.proof = "late"
                self.alarms += 1
            line.proof_due = now + self.doubled(line, now)
        elif line.uid in self.kept:
            line.state, line.proof, line.proof_due = "verified", "", None
        elif not late:
            line.proof_due = min(now + self.doubled(line, now), line.sent_at + TIMEOUT)
        elif line.resends < RESENDS:
            line.state, line.proof, line.proof_due = "waiting", "", None
            line.attempts, line.due, line.resends = 0, now, line.resends + 1
        else:
            line.proof, line.proof_due = "unproven", None
            self.alarms += 1

    def doubled(self, line: Line, now: float) -> float:
        """How long to wait before asking once more."""
        return min(max(now - line.sent_at, DELAY), DAY)

    def release(self, uid: str, now: float) -> bool:
        """``ai-node retry``; False where that is not possible."""
        line = self.lines[uid]
        if line.state == "discarded":
            return False
        if self.probe_at is not None:
            self.probe_at = now
        self.lines[uid].__dict__.update(Line(uid, now).__dict__)
        return True

    def discard(self, uid: str) -> bool:
        """``ai-node discard``; False where that is not possible."""
        line = self.lines[uid]
        if line.state not in ("waiting", "held", "dead"):
            return False
        line.state = "discarded"
        return True

    def standing(self) -> Iterable[tuple[object, ...]]:
        """What the ledger must say, line by line."""
        for line in self.lines.values():
            yield (
                line.uid,
                line.state,
                line.attempts,
                line.due if line.state == "waiting" else None,
                line.proof,
                line.proof_due,
                line.resends,
            )
