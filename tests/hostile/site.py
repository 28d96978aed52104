"""A real node under attack: associations in, and where each acknowledged object ended up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from pydicom import dcmread
from pynetdicom import build_context
from pynetdicom.association import Association

from node.config import load
from node.daemon import Node
from node.dicom import contexts
from node.dicom.requestor import associated
from node.domain.peer import Network, Peer
from node.domain.stage import Stage
from node.ledger.quarantine import Entry
from node.site import Watcher
from tests.acceptance.hospital import AE_TITLE, MODALITY, Lookout, Plan, small_study, tiny_engine
from tests.dicom.callers import answer_to, store_request
from tests.hostile.corpus import Hostile, encoded

SUCCESS, NO_ANSWER = 0x0000, -1
REFUSALS = {0xA900, 0xC000, 0x0117, 0x0122}
"""What the node may answer to a data set that it does not take."""


@dataclass
class Report:
    """What was answered to each object, and how long the node took to answer an echo after it."""

    answers: dict[str, int] = field(default_factory=dict)
    echoes: list[float] = field(default_factory=list)

    @property
    def acknowledged(self) -> set[str]:
        """SOP Instance UIDs of what was answered success."""
        return {uid for uid, status in self.answers.items() if status == SUCCESS}

    def __str__(self) -> str:
        """The figures in one line."""
        counted = Counter(f"{status:#06x}" for status in self.answers.values())
        slowest = max(self.echoes, default=0.0)
        return f"{len(self.answers)} inputs, {dict(counted)}, slowest echo {slowest:.3f} s"


@dataclass(frozen=True)
class Fortress:
    """A running node with its lookout."""

    node: Node
    lookout: Lookout

    def attack(self, inputs: Iterable[Hostile]) -> Report:
        """Send each input over an association that allows it, and a C-ECHO after each."""
        report = Report()
        by_context: dict[tuple[str, str], None] = {}
        listed = list(inputs)
        for one in listed:
            by_context[one.sop_class_uid, one.syntax] = None
        offers = list(by_context)
        for begin in range(0, len(offers), contexts.MOST_CONTEXTS - 1):
            part = offers[begin : begin + contexts.MOST_CONTEXTS - 1]
            chosen = [one for one in listed if (one.sop_class_uid, one.syntax) in part]
            self._attack(chosen, part, report)
        return report

    def settle(self) -> None:
        """Wait until everything before now is in the ledger or in quarantine.

        The spool is a queue: when an object that is sent now has been entered, all are.
        """
        (last, *_) = small_study()
        last.SOPInstanceUID = f"1.2.826.0.3.{self.lookout.seen.count(Stage.INDEXED)}"
        last.StudyInstanceUID = f"1.2.826.0.4.{self.lookout.seen.count(Stage.INDEXED)}"
        last.SeriesInstanceUID = last.StudyInstanceUID + ".1"
        syntax = str(last.file_meta.TransferSyntaxUID)
        content = encoded(last, syntax)
        final = Hostile("last", syntax, str(last.SOPClassUID), str(last.SOPInstanceUID), content)
        assert self.attack([final]).acknowledged
        entered = str(last.StudyInstanceUID)
        assert self.lookout.wait_for(lambda: self._instances(entered) == 1, 240.0)
        # The last batch is put away file by file; what it took with it is done when nothing waits.
        assert self.lookout.wait_for(lambda: not list(self.node.spool.arrivals()), 10.0)

    def usable(self, uid: str) -> bool:
        """Whether the ledger has an instance of that UID, and its file says the same."""
        with self.node.ledger.read() as books:
            found = [
                instance
                for study in books.arrivals.find(uid)
                for instance in books.arrivals.study(study).instances
                if instance.sop_instance_uid == uid
            ]
        return any(self._says(instance.path, uid) for instance in found)

    def aside(self, uid: str) -> list[Entry]:
        """What the quarantine holds of that UID."""
        with self.node.ledger.read() as books:
            return [row for row in books.quarantine.rows() if row.sop_instance_uid == uid]

    def events(self) -> Counter[str]:
        """How many events there are of each kind."""
        with self.node.ledger.read() as books:
            return Counter(event.kind for event in books.events.walk())

    def _says(self, path: Path, uid: str) -> bool:
        tags = ["SOPInstanceUID"]
        return bool(
            dcmread(path, stop_before_pixels=True, specific_tags=list(tags)).SOPInstanceUID == uid
        )

    def _instances(self, study_uid: str) -> int:
        with self.node.ledger.read() as books:
            return len(books.arrivals.study(study_uid).instances)

    def _attack(self, inputs: list[Hostile], offers: list[tuple[str, str]], report: Report) -> None:
        numbers = {offer: 2 * at + 1 for at, offer in enumerate(offers)}
        waiting = list(inputs)
        while waiting:
            before = len(waiting)
            with ExitStack() as stack:
                association = stack.enter_context(self.calling(offers))
                while waiting and association.is_established:
                    one = waiting.pop(0)
                    number = numbers[one.sop_class_uid, one.syntax]
                    report.answers[one.sop_instance_uid] = _stored(association, one, number)
                    report.echoes.append(self._echo(association))
            assert len(waiting) < before

    @contextmanager
    def calling(self, offers: list[tuple[str, str]]) -> Iterator[Association]:
        """An association with a context for each SOP class and transfer syntax, in this order."""
        peer = Peer("node", AE_TITLE, "127.0.0.1", self.node.port)
        proposed = [build_context(uid, syntax) for uid, syntax in offers]
        proposed.append(contexts.plain(contexts.VERIFICATION))
        with associated(Network(MODALITY), peer, proposed) as association:
            yield association

    def _echo(self, association: Association) -> float:
        """Seconds that the node takes to answer: here, or on a new association where this ended."""
        started = perf_counter()
        if association.is_established:
            assert association.send_c_echo().get("Status") == SUCCESS
        else:
            with self.calling([]) as another:
                assert another.send_c_echo().get("Status") == SUCCESS
        return perf_counter() - started


def _stored(association: Association, one: Hostile, number: int) -> int:
    request = store_request(one.sop_class_uid, one.sop_instance_uid, one.content)
    answer = answer_to(association, request, number)
    return NO_ANSWER if answer is None else int(answer.Status)


@contextmanager
def fortress(directory: Path) -> Iterator[Fortress]:
    """A node whose studies never complete, so that only receiving and reading are at work."""
    lookout = Lookout()
    plan = Plan(tiny_engine(directory / "engine"), 104, quiet_period_s=3600.0)
    config = load(plan.write(directory))
    with Node(config, Watcher(reached=lookout.reached)) as node:
        yield Fortress(node, lookout)
