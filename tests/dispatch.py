"""A courier with its disk, a clock that stands still, and a PACS that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from node.courier import Courier, Persistence
from node.domain.errors import ContextRejected, PeerUnreachable, StatusError
from node.domain.event import EventKind
from node.domain.job import BackOff, DeliveryState, Job, JobState
from node.domain.peer import Network, Receipt
from node.domain.proof import CommitmentReport, FailedInstance, Proof, ProofPlan
from node.domain.study import Instance
from node.ledger import Ledger
from node.ledger.deliveries import DeliveryRow, ResultRow
from node.spool import Spool

NETWORK = Network("AINODE")
JOB = Job("j" * 32, "1.2", "r", "engine", "d", "c", JobState.DONE, 1, 0.0)
BACK_OFF = BackOff(5.0, 2.0, 60.0)


@dataclass
class Pacs:
    """A destination that answers by the script, then well, and remembers what it took.

    The script has one word for each C-STORE: ``take``, ``full``, ``down``, ``silent`` (the
    association ends without a word), or any other, which is a refusal's reason. ``up`` answers
    C-ECHO, ``finds`` and ``commits`` say how it answers for its objects.
    """

    script: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    up: bool = True
    finds: str = "well"
    commits: str = "never"
    wish: ProofPlan | None = None
    echoes: int = 0
    associations: int = 0
    transactions: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        self.associations += 1
        for path in files:
            uid = path.stem
            what = self.script.pop(0) if self.script else "take"
            if what == "down" or not self.up:
                raise PeerUnreachable("no route to the PACS")
            if what == "silent":
                return
            if what == "take":
                self.taken.append(uid)
                self.kept.add(uid)
            self.meanwhile()
            yield Receipt(uid, what == "take", 0xA700, what, retryable=what == "full")

    def probe(self, network: Network) -> None:
        self.echoes += 1
        if not self.up:
            raise PeerUnreachable("no route to the PACS")

    def prover(self) -> Pacs | None:
        return self if self.wish else None

    @property
    def plan(self) -> ProofPlan:
        assert self.wish is not None
        return self.wish

    def ask(
        self,
        files: Sequence[Path],
        transaction_uid: str,
        keep: Callable[[CommitmentReport], object],
        network: Network,
    ) -> None:
        self._answers(self.commits)
        self.transactions.append(transaction_uid)
        uids = [path.stem for path in files]
        if self.commits == "at once":
            keep(self.report(transaction_uid, uids))

    def report(self, transaction_uid: str, uids: Sequence[str]) -> CommitmentReport:
        """What it would report on a transaction now."""
        return CommitmentReport(
            transaction_uid,
            tuple(uid for uid in uids if uid in self.kept),
            tuple(FailedInstance(uid, 0x0112) for uid in uids if uid not in self.kept),
            "PACS",
        )

    def look(self, files: Sequence[Path], network: Network) -> frozenset[str]:
        self._answers(self.finds)
        return frozenset(path.stem for path in files) & self.kept

    def _answers(self, how: str) -> None:
        if how == "down" or not self.up:
            raise PeerUnreachable("no route to the PACS")
        if how == "refused":
            raise ContextRejected("the PACS does not offer this")
        if how == "failure":
            raise StatusError("the PACS answered with a failure", 0xC000)
        if how == "busy":
            raise StatusError("the PACS is out of resources", 0xA700)


@dataclass
class World:
    """One node's disk, a clock, and a PACS."""

    spool: Spool
    ledger: Ledger
    pacs: Pacs
    now: float = 0.0

    def courier(self, attempts: int = 0, trip_after: int = 1000) -> Courier:
        """A new courier, as after a restart."""
        patience = Persistence(attempts, BACK_OFF, trip_after)
        return Courier("pacs", self.pacs, NETWORK, self.ledger, self.spool, patience)

    def step(self, attempts: int = 0, trip_after: int = 1000) -> bool:
        """One step of a courier that has just started."""
        return self.courier(attempts, trip_after).step(lambda: self.now)

    def settle(self, until: float, trip_after: int = 3) -> None:
        """Work as the courier's loop does, until a time."""
        while True:
            while self.step(trip_after=trip_after):
                pass
            due = self.courier(trip_after=trip_after).next_due()
            if due is None or due > until:
                self.now = until
                return
            assert due > self.now, "a courier that is never done"
            self.now = due

    def rows(self) -> tuple[DeliveryRow, ...]:
        """Every delivery."""
        with self.ledger.read() as books:
            return books.deliveries.of_job(JOB.id)

    def states(self) -> list[DeliveryState]:
        """Where every delivery stands."""
        return [row.state for row in self.rows()]

    def proofs(self) -> list[Proof]:
        """How far every proof has come."""
        return [row.proof for row in self.rows()]

    def words(self, kind: EventKind) -> list[str]:
        """The words of every event of a kind."""
        with self.ledger.read() as books:
            return [event.words for event in books.events.walk() if event.kind == kind]


@cache
def _empty_ledger() -> bytes:
    """A ledger with its tables; making them takes longer than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        Ledger.open(path).close()
        return path.read_bytes()


def fresh_ledger(path: Path) -> Ledger:
    """An empty ledger at a path."""
    path.write_bytes(_empty_ledger())
    return Ledger.open(path)


def make_world(path: Path, results: int = 2) -> World:
    """A world in which so many results wait."""
    spool = Spool(path / "spool", lambda: 0.0)
    world = World(spool, fresh_ledger(path / "ledger.sqlite"), Pacs())
    instance = Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "s", 0.0, Path("a"), "1.1")
    with world.ledger.write() as books:
        books.arrivals.record(instance)
        books.jobs.add(JOB)
    for number in range(results):
        add_result(world, f"1.9.{number}")
    return world


def add_result(world: World, uid: str) -> None:
    """One more result that waits."""
    frozen = world.spool.freeze(JOB.id, uid, b"result", (uid, "1.8"))
    row = ResultRow(uid, JOB.id, "1.8", frozen.kind, frozen.path, frozen.sha256)
    with world.ledger.write() as books:
        books.deliveries.add(row, ["pacs"], world.now)
