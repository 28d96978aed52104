"""A node under observation from the first object to the last result, and what must hold then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.hospital import Plan
from tests.chaos.load import Modality, Sample
from tests.chaos.vault import Vault
from tests.chaos.zygote import PATIENCE_S, Body, Order, Zygote

PARTS = ("receiver", "gateway", "worker")
_PROOF = 'proof = "find"\nproof_delay_s = 0.05\n'
_GLANCE_S = 0.02
_RESTARTS = 3
_SETTLED_S = 45.0
"""A loop looks again after 30 s, whatever was lost."""


def configured(engine: Path, archive_port: int, directory: Path, quiet_s: float) -> Path:
    """The configuration of a node under observation; its state goes beside it."""
    path = Plan(engine, archive_port, quiet_period_s=quiet_s).write(directory)
    # More attempts than anybody here makes fail: otherwise a job is given up, as it should be.
    text = path.read_text().replace("[jobs]\n", "[jobs]\nattempts = 20\n")
    path.write_text(text.replace('kind = "store"\n', f'kind = "store"\n{_PROOF}'))
    return path


@dataclass(slots=True)
class Ward:
    """The processes of a node: one, or one per part."""

    zygote: Zygote
    config: Path
    parted: bool = False
    sandboxed: bool = False
    clock: str = ""
    bodies: dict[str, Body] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Where it listens now."""
        return self.bodies["receiver" if self.parted else ""].port

    def start(self, stage: str = "", occurrence: int = 1) -> None:
        """Start what does not run; it dies when the stage is reached for the n-th time."""
        log = str(self.config.with_name("log"))
        for part in PARTS if self.parted else ("",):
            if part not in self.bodies or self.bodies[part].ends(_GLANCE_S / 10):
                doom = (stage, occurrence)
                order = Order(str(self.config), log, part, *doom, self.sandboxed, self.clock)
                self.bodies[part] = self.zygote.start(order)

    def dead(self) -> bool:
        """Whether a process has died, after a glance."""
        share = _GLANCE_S / len(self.bodies)
        return any([body.ends(share) for body in self.bodies.values()])

    def kill(self) -> None:
        """SIGKILL for all that runs."""
        for body in self.bodies.values():
            body.kill()

    close = kill

    def until(self, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        """Look again and again until something holds, a process has died, or time is up.

        The wait for a process to die is the pause between two looks.
        """
        until = time.monotonic() + patience_s
        while not holds():
            if self.dead() or time.monotonic() > until:
                return False
        return True


@dataclass(slots=True)
class Outcome:
    """What came of it. ``faults`` says in words what must not be; empty is good."""

    number: int = 0
    kills: list[str] = field(default_factory=list)
    acknowledged: int = 0
    results: int = 0
    resent: int = 0
    ended: int = 0
    """How often the node ended that nobody had killed."""
    lost_objects: int = 0
    lost_results: int = 0
    ambiguous: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Course:
    """One node, one archive, one modality. ``wanted`` are the results' SOP Instance UIDs."""

    ward: Ward
    vault: Vault
    modality: Modality
    samples: Sequence[Sample]
    wanted: set[str]
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def arrived(self) -> bool:
        """Whether everything was acknowledged and every result has come."""
        return self.modality.done and self.vault.uids >= self.wanted

    @property
    def state(self) -> Path:
        """The node's state folder."""
        return self.ward.config.parent / "state"

    def settle(self) -> None:
        """Let everything come to its end; what ends by itself is started again."""
        for _ in range(_RESTARTS):
            self.ward.start()
            self.modality.send(self.ward.port)
            if self.ward.until(lambda: self.arrived and not self.unfinished, _SETTLED_S):
                break
            self.outcome.ended += self.ward.dead()
        if left := self.unfinished:
            self.outcome.faults.append(f"not finished: {', '.join(left)}")

    @property
    def unfinished(self) -> list[str]:
        """What the ledger says is not at its end."""
        ledger = f"file:{self.state / 'ledger.sqlite'}?mode=ro"
        with closing(sqlite3.connect(ledger, uri=True, timeout=30)) as books:
            return [words for words, query in _OPEN.items() if books.execute(query).fetchone()[0]]

    def judge(self, resends: int) -> None:
        """Compare the cold remains with what was acknowledged and what was expected.

        ``resends`` is how many results may have come twice: those whose acceptance was on its
        way into the ledger when something happened.
        """
        outcome, modality, vault = self.outcome, self.modality, self.vault
        datasets = {u: content for s in self.samples for u, content in s.datasets.items()}
        remains = Remains.of(self.state)
        lost = [uid for uid in modality.acknowledged if not remains.keep(uid, datasets[uid])]
        missing = self.wanted - vault.uids
        outcome.acknowledged = len(modality.acknowledged)
        outcome.results, outcome.resent = len(vault.uids), vault.resent
        outcome.lost_objects, outcome.lost_results = len(lost), len(missing)
        outcome.ambiguous = len(vault.ambiguous)
        checks = {
            f"the modality could not send {len(modality.queue)} objects": modality.done,
            f"acknowledged and lost: {lost}": not lost,
            f"results that never came: {sorted(missing)}": not missing,
            f"one UID, two contents: {sorted(vault.ambiguous)}": not vault.ambiguous,
            "sent and unknown to the ledger": vault.uids <= remains.results,
            "known to the ledger and never sent": remains.results <= vault.uids,
            f"{vault.resent} results sent again, {resends} allowed": vault.resent <= resends,
            f"the ledger is damaged: {remains.soundness}": remains.soundness == "ok",
            f"left among the arrivals: {remains.arrivals}": not remains.arrivals,
            "in the ledger and never sent to us": set(remains.paths) <= set(datasets),
        }
        outcome.faults += [words for words, holds in checks.items() if not holds]


_OPEN = {
    "study open": "SELECT count(*) FROM studies WHERE opened_at IS NOT NULL",
    "job waiting": "SELECT count(*) FROM jobs WHERE state NOT IN ('done', 'refused')",
    "delivery waiting": "SELECT count(*) FROM deliveries WHERE state NOT IN "
    "('committed', 'verified')",
}


@dataclass(frozen=True, slots=True)
class Remains:
    """What a dead node has left on disk."""

    paths: Mapping[str, str]
    results: set[str]
    soundness: str
    arrivals: list[str]

    @classmethod
    def of(cls, state: Path) -> Remains:
        """Read a state folder whose node is dead."""
        with closing(sqlite3.connect(state / "ledger.sqlite")) as books:
            paths = dict(books.execute("SELECT sop_instance_uid, path FROM instances"))
            results = {uid for (uid,) in books.execute("SELECT sop_instance_uid FROM results")}
            (soundness,) = books.execute("PRAGMA integrity_check").fetchone()
        incoming = (state / "spool" / "incoming").iterdir()
        return cls(paths, results, soundness, [path.name for path in incoming])

    def keep(self, uid: str, dataset: bytes) -> bool:
        """Whether the node has an object, byte for byte as it was sent."""
        path = Path(self.paths.get(uid, ""))
        return path.is_file() and path.read_bytes().endswith(dataset)
