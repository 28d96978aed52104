"""Everything a PACS or the way to it can do wrong: what was made arrives, or is held in words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE, build_context, evt

from node.courier import Courier, Persistence
from node.destinations.store import Store
from node.dicom.commitment import STORAGE_COMMITMENT, on_event_report
from node.dicom.contexts import STUDY_ROOT_FIND, VERIFICATION
from node.domain.event import EventKind
from node.domain.job import DELIVERED, BackOff, DeliveryState
from node.domain.peer import Network, Peer
from node.domain.study import Instance
from node.ledger import Ledger
from node.ledger.deliveries import DeliveryRow, ResultRow
from node.spool import Spool
from node.testing.archive import Archive, Faults
from tests.acceptance.faulty import Fault, Pdu, Proxy
from tests.dicom.callers import images
from tests.dispatch import JOB, fresh_ledger

MR = "1.2.840.10008.5.1.4.1.1.4"
RESULTS = 2
PROOFLESS = Store("pacs", proof="none")
FIND = Store("pacs", proof="find", proof_delay_s=1.0, proof_timeout_s=50.0)
COMMITMENT = Store(
    "pacs", proof="commitment", proof_delay_s=1.0, proof_timeout_s=50.0, report_wait_s=0.1
)


@dataclass
class Site:
    """A courier, an archive, and the way between them. The clock goes as fast as is needed."""

    archive: Archive
    proxy: Proxy
    spool: Spool
    ledger: Ledger
    host: str = "127.0.0.1"
    now: float = 1000.0
    digests: dict[str, str] = field(default_factory=dict)

    def make_results(self) -> None:
        """Freeze real objects and enter their deliveries."""
        with self.ledger.write() as books:
            books.arrivals.record(
                Instance("1.2.3.1", "1.1", "1.2.3", "1.2", "a", "s", 0.0, Path("a"), "1.1")
            )
            books.jobs.add(JOB)
            for number, image in enumerate(images(RESULTS)):
                stream = DicomBytesIO()
                image.save_as(stream, enforce_file_format=True)
                uids = (str(image.SOPInstanceUID), str(image.SOPClassUID))
                frozen = self.spool.freeze(JOB.id, f"r{number}", stream.getvalue(), uids)
                row = ResultRow(uids[0], JOB.id, uids[1], frozen.kind, frozen.path, frozen.sha256)
                books.deliveries.add(row, ["pacs"], self.now)
                self.digests[uids[0]] = hashlib.sha256(image.PixelData).hexdigest()

    def work(self, store: Store, seconds: float) -> None:
        """Let the courier work for so many seconds of its clock, anew at each step."""
        until = self.now + seconds
        peer = Peer("pacs", "ARCHIVE", self.host, self.proxy.port)
        network = Network("NODE", {"pacs": peer}, connect_timeout_s=0.3, answer_timeout_s=0.4)
        persistence = Persistence(0, BackOff(5.0, 2.0, 60.0), 3)
        while True:
            courier = Courier("pacs", store, network, self.ledger, self.spool, persistence)
            while courier.step(lambda: self.now):
                pass
            due = courier.next_due()
            if due is None or due > until:
                return
            self.now = max(due, self.now)

    def rows(self) -> tuple[DeliveryRow, ...]:
        """Where everything stands."""
        with self.ledger.read() as books:
            return books.deliveries.of_job(JOB.id)

    def states(self) -> list[DeliveryState]:
        """Where everything stands, in short."""
        return [row.state for row in self.rows()]

    def alarms(self) -> int:
        """How often a person was called."""
        with self.ledger.read() as books:
            return sum(event.kind == EventKind.ALARM for event in books.events.walk())

    def all_arrived_once(self) -> bool:
        """Whether the archive holds each result once, with the pixels that were made."""
        held = [
            (str(h.dataset.SOPInstanceUID), hashlib.sha256(h.dataset.PixelData).hexdigest())
            for h in self.archive.instances
        ]
        return sorted(held) == sorted(self.digests.items())


@pytest.fixture(scope="module")
def running() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@pytest.fixture
def site(tmp_path: Path, running: Archive) -> Iterator[Site]:
    running.forget()
    running.faults = Faults()
    ledger = fresh_ledger(tmp_path / "ledger.sqlite")
    with Proxy(running.port) as proxy:
        made = Site(running, proxy, Spool(tmp_path / "spool", lambda: 0.0), ledger)
        made.make_results()
        yield made
    ledger.close()


TO_ARCHIVE: Final = "to archive"
NETWORK_FAULTS = {
    "takes the connection and closes it": Fault(door="close"),
    "takes the connection and resets it": Fault(door="reset"),
    "takes the connection and is silent": Fault(door="silent"),
    "is another server": Fault(door="babble"),
    "never gets the association request": Fault(direction=TO_ARCHIVE, nth=1, act="hang"),
    "gets half of the association request": Fault(direction=TO_ARCHIVE, nth=1, act="half"),
    "is silent after the association request": Fault(pdu=Pdu.ASSOCIATE_AC, nth=1, act="hang"),
    "answers with half an acceptance": Fault(pdu=Pdu.ASSOCIATE_AC, nth=1, act="half"),
    "answers with a garbled acceptance": Fault(pdu=Pdu.ASSOCIATE_AC, nth=1, act="garble"),
    "closes at the first C-STORE": Fault(direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=1),
    "resets at the data set": Fault(direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=2, act="reset"),
    "gets half a data set": Fault(direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=2, act="half"),
    "goes half open in a data set": Fault(direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=2, act="hang"),
    "closes between two results": Fault(direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=3),
    "loses its response, closing": Fault(pdu=Pdu.DATA, nth=1),
    "loses its response, resetting": Fault(pdu=Pdu.DATA, nth=1, act="reset"),
    "loses its response in silence": Fault(pdu=Pdu.DATA, nth=1, act="hang"),
    "loses half its response": Fault(pdu=Pdu.DATA, nth=1, act="half"),
    "garbles its response": Fault(pdu=Pdu.DATA, nth=1, act="garble"),
    "loses its second response": Fault(pdu=Pdu.DATA, nth=2, act="reset"),
    "is slow to answer": Fault(pdu=Pdu.DATA, nth=1, act="delay", seconds=0.1),
    "takes data in tiny pieces": Fault(
        direction=TO_ARCHIVE, pdu=Pdu.DATA, nth=2, act="trickle", seconds=0.001
    ),
    "never hears the release": Fault(direction=TO_ARCHIVE, pdu=Pdu.RELEASE_RQ, nth=1, act="hang"),
    "does not answer the release": Fault(pdu=Pdu.RELEASE_RP, nth=1, act="hang"),
    "resets at the release": Fault(pdu=Pdu.RELEASE_RP, nth=1, act="reset"),
}


@pytest.mark.parametrize("name", NETWORK_FAULTS)
def test_after_a_fault_of_the_network_everything_has_arrived_once(site: Site, name: str) -> None:
    site.proxy.fault, site.proxy.bad = NETWORK_FAULTS[name], 2
    site.work(PROOFLESS, seconds=200.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS, [row.reason for row in site.rows()]
    assert site.all_arrived_once()
    assert site.proxy.struck > 0 or site.proxy.fault.door != "open"
    assert site.proxy.connections <= 12


def test_a_pacs_that_is_down_for_days_gets_everything_when_it_is_back(site: Site) -> None:
    site.proxy.stop()
    site.work(PROOFLESS, seconds=600.0)
    assert site.states() == [DeliveryState.WAITING] * RESULTS
    assert all("takes no connection" in row.reason for row in site.rows())
    site.proxy.start()
    site.work(PROOFLESS, seconds=100.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS
    assert site.all_arrived_once()


def test_a_pacs_whose_name_is_unknown_is_waited_for_in_words(site: Site) -> None:
    site.host = "pacs.invalid"
    site.work(PROOFLESS, seconds=10.0)
    assert site.states() == [DeliveryState.WAITING] * RESULTS
    assert "pacs.invalid is unknown" in site.rows()[0].reason
    site.host = "127.0.0.1"
    site.work(PROOFLESS, seconds=100.0)
    assert site.all_arrived_once()


@pytest.mark.parametrize(
    "faults",
    [Faults(refuse=True), Faults(abort_at=1), Faults(abort_at=2), Faults(statuses={1: 0xA700})],
    ids=["rejects the association", "aborts at the first", "aborts at the second", "is full"],
)
def test_after_a_bad_day_of_the_pacs_everything_has_arrived_once(
    site: Site, faults: Faults
) -> None:
    site.archive.faults = faults
    site.work(PROOFLESS, seconds=20.0)
    site.archive.faults = Faults()
    site.work(PROOFLESS, seconds=200.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS
    assert site.all_arrived_once()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_a_delivery(site: Site, status: int) -> None:
    site.archive.faults = Faults(statuses={1: status})
    site.work(PROOFLESS, seconds=100.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS
    assert (site.rows()[0].status, bool(site.rows()[0].reason)) == (status, True)
    assert site.all_arrived_once()


def test_a_pacs_that_has_it_already_counts_as_delivered(site: Site) -> None:
    for image in images(RESULTS):
        site.archive.hold(image)
    site.archive.faults = Faults(statuses={1: 0x0111, 2: 0x0111})
    site.work(PROOFLESS, seconds=100.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS
    assert site.all_arrived_once()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0x0110, "processing failure"),
        (0x0117, "SOP Instance UID invalid"),
        (0x0122, "does not store this SOP class"),
        (0x0124, "does not allow us to store"),
        (0x0211, "no storage server"),
        (0x1234, "unknown status 0x1234"),
        (0xA800, "unknown status 0xa800"),
        (0xA900, "does not match its SOP class"),
        (0xC000, "cannot understand"),
        (0xCFFF, "cannot understand"),
    ],
)
def test_a_refusal_is_held_in_words_and_holds_nothing_else_up(
    site: Site, status: int, words: str
) -> None:
    site.archive.faults = Faults(statuses={1: status})
    site.work(PROOFLESS, seconds=500.0)
    assert site.states() == [DeliveryState.HELD, DeliveryState.SENT]
    assert words in site.rows()[0].reason
    assert site.rows()[0].status == status
    assert site.archive.stored == [site.rows()[1].result.sop_instance_uid]


def test_a_pacs_that_accepts_no_such_object_holds_it_in_words(site: Site) -> None:
    site.archive.faults = Faults(unsupported=frozenset({MR}))
    site.work(PROOFLESS, seconds=100.0)
    assert site.states() == [DeliveryState.HELD] * RESULTS
    assert all("ask its administrator to enable it" in row.reason for row in site.rows())


def test_a_pacs_without_c_echo_is_found_again(site: Site) -> None:
    site.archive.faults = Faults(unsupported=frozenset({VERIFICATION}))
    site.proxy.stop()
    site.work(PROOFLESS, seconds=100.0)
    site.proxy.start()
    site.work(PROOFLESS, seconds=100.0)
    assert site.all_arrived_once()


def lost(site: Site) -> None:
    site.archive.faults = Faults(unkept=frozenset({1}))


def never_kept(site: Site) -> None:
    site.archive.faults = Faults(unkept=frozenset(range(100)))


def no_find(site: Site) -> None:
    site.archive.faults = Faults(unsupported=frozenset({STUDY_ROOT_FIND}))


def find_fails(site: Site) -> None:
    site.archive.faults = Faults(find_status=0xC000)


def nothing(site: Site) -> None:
    """A good day."""


@dataclass(frozen=True)
class Ending:
    """What a plan of proof comes to on a day of the archive."""

    store: Store
    day: Callable[[Site], None]
    state: DeliveryState
    alarms: int = 0


def no_commitment(site: Site) -> None:
    site.archive.faults = Faults(unsupported=frozenset({STORAGE_COMMITMENT}))


def refuses_commitment(site: Site) -> None:
    site.archive.faults = Faults(commitment_status=0x0110)


def reports_at_once(site: Site) -> None:
    site.archive.faults = Faults(reports="same")


def never_reports(site: Site) -> None:
    site.archive.faults = Faults(reports="later")


def does_not_commit(site: Site) -> None:
    uids = frozenset(site.digests)
    site.archive.faults = Faults(reports="same", uncommitted=uids)


PROOFS = {
    "finds it": Ending(FIND, nothing, DeliveryState.VERIFIED),
    "accepted one and lost it": Ending(FIND, lost, DeliveryState.VERIFIED),
    "accepts and never keeps": Ending(FIND, never_kept, DeliveryState.SENT, RESULTS),
    "has no C-FIND": Ending(FIND, no_find, DeliveryState.SENT, RESULTS),
    "has no C-FIND, as agreed": Ending(
        Store("pacs", proof_delay_s=1.0), no_find, DeliveryState.SENT
    ),
    "fails at C-FIND": Ending(FIND, find_fails, DeliveryState.SENT, RESULTS),
    "commits at once": Ending(COMMITMENT, reports_at_once, DeliveryState.COMMITTED),
    "never reports": Ending(COMMITMENT, never_reports, DeliveryState.VERIFIED),
    "does not commit": Ending(COMMITMENT, does_not_commit, DeliveryState.VERIFIED),
    "refuses to commit": Ending(COMMITMENT, refuses_commitment, DeliveryState.VERIFIED),
    "has no storage commitment": Ending(COMMITMENT, no_commitment, DeliveryState.VERIFIED),
}


@pytest.mark.parametrize("name", PROOFS)
def test_what_was_accepted_is_proven_or_raises_an_alarm(site: Site, name: str) -> None:
    ending = PROOFS[name]
    ending.day(site)
    site.work(ending.store, seconds=500.0)
    assert site.states() == [ending.state] * RESULTS
    assert site.alarms() == ending.alarms
    assert site.all_arrived_once() or ending.day is never_kept


def test_a_report_that_comes_on_our_own_port_when_it_is_late_still_counts(site: Site) -> None:
    site.archive.faults = Faults(reports="later")
    site.work(COMMITMENT, seconds=500.0)
    assert site.states() == [DeliveryState.VERIFIED] * RESULTS
    with _listening(site.spool) as port:
        site.archive.destinations["NODE"] = ("127.0.0.1", port)
        site.archive.report()
    assert site.archive.answers == [0x0000]
    site.work(COMMITMENT, seconds=1.0)
    assert site.states() == [DeliveryState.COMMITTED] * RESULTS


@contextmanager
def _listening(spool: Spool) -> Iterator[int]:
    """Our own port, as far as reports are concerned."""
    entity = AE("NODE")
    context = build_context(STORAGE_COMMITMENT)
    context.scu_role = context.scp_role = True
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=[context],
        evt_handlers=[
            (evt.EVT_N_EVENT_REPORT, lambda e: (on_event_report(e, spool.keep_report), None))
        ],
    )
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        entity.shutdown()


@pytest.mark.parametrize("act", ["close", "reset", "hang", "half", "garble"])
def test_a_proof_survives_faults_of_the_network(site: Site, act: str) -> None:
    site.work(FIND, seconds=0.0)
    assert site.states() == [DeliveryState.SENT] * RESULTS
    site.proxy.fault = Fault(pdu=Pdu.DATA, nth=1, act=act)  # type: ignore[arg-type]
    site.proxy.bad = 2
    site.work(FIND, seconds=100.0)
    assert site.proxy.struck == 2
    assert site.states() == [DeliveryState.VERIFIED] * RESULTS
    assert site.archive.stored == list(site.digests)


def test_more_than_twenty_failure_modes_are_tried() -> None:
    assert len(NETWORK_FAULTS) >= 20
    assert set(DELIVERED) | {DeliveryState.HELD} <= set(DeliveryState)
