"""Storage commitment: asked by N-ACTION, answered on the same association or on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.events import Event

from node.dicom import commitment, scu
from node.dicom.commitment import (
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    on_event_report,
    read_reference,
    report_of,
    request_of,
)
from node.domain.errors import (
    ContextRejected,
    HeaderError,
    PeerUnreachable,
    SpoolFull,
    StatusError,
)
from node.domain.peer import Network
from node.domain.proof import CommitmentReport, FailedInstance
from node.testing.archive import Archive, Faults
from node.testing.series import save
from tests.dicom.callers import archive_at, images

NETWORK = Network("NODE", connect_timeout_s=2.0, answer_timeout_s=5.0)
MR = "1.2.840.10008.5.1.4.1.1.4"
UIDS = [str(image.SOPInstanceUID) for image in images(2)]


@dataclass
class Desk:
    """A ``keep`` that remembers, and fails when it is told to."""

    reports: list[CommitmentReport] = field(default_factory=list)
    full: bool = False

    def keep(self, report: CommitmentReport) -> None:
        if self.full:
            raise SpoolFull("no space left")
        self.reports.append(report)


@contextmanager
def receiver(desk: Desk) -> Iterator[int]:
    """Our own port, as far as reports are concerned; its number."""
    entity = AE("NODE")
    context = build_context(STORAGE_COMMITMENT)
    context.scu_role = context.scp_role = True
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=[context],
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda e: (on_event_report(e, desk.keep), None))],
    )
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        entity.shutdown()


@pytest.fixture
def stored(archive: Archive) -> Archive:
    for image in images(2):
        archive.hold(image)
    return archive


def ask(archive: Archive, files: list[Path], desk: Desk, wait_s: float = 5.0) -> None:
    request = request_of("2.25.7", [read_reference(path) for path in files])
    scu.request_commitment(NETWORK, archive_at(archive), request, desk.keep, wait_s)


def test_a_report_on_the_same_association_is_kept_and_acknowledged(
    stored: Archive, tmp_path: Path
) -> None:
    stored.faults, desk = Faults(reports="same"), Desk()
    ask(stored, save(images(2), tmp_path), desk)
    assert desk.reports == [CommitmentReport("2.25.7", tuple(UIDS), (), "ARCHIVE")]
    assert stored.wait_for(lambda archive: archive.answers == [0x0000], 5.0)


def test_a_report_on_another_association_is_kept_and_acknowledged(
    stored: Archive, tmp_path: Path
) -> None:
    desk = Desk()
    with receiver(desk) as port:
        stored.destinations["NODE"] = ("127.0.0.1", port)
        ask(stored, save(images(2), tmp_path), desk, wait_s=0.1)
        assert stored.wait_for(lambda archive: archive.answers == [0x0000], 5.0)
    assert desk.reports == [CommitmentReport("2.25.7", tuple(UIDS), (), "ARCHIVE")]


def test_what_is_missing_or_refused_is_reported_with_its_reason(
    archive: Archive, tmp_path: Path
) -> None:
    archive.hold(images(1)[0])
    archive.faults, desk = Faults(reports="same", uncommitted=frozenset(UIDS[:1])), Desk()
    ask(archive, save(images(2), tmp_path), desk)
    (report,) = desk.reports
    assert report.committed == ()
    assert report.failed == (FailedInstance(UIDS[0], 0x0110), FailedInstance(UIDS[1], 0x0112))


def test_a_report_that_cannot_be_made_durable_is_not_acknowledged(
    stored: Archive, tmp_path: Path
) -> None:
    stored.faults = Faults(reports="same")
    ask(stored, save(images(2), tmp_path), Desk(full=True))
    assert stored.wait_for(lambda archive: archive.answers == [0x0213], 5.0)


def test_no_report_in_time_is_no_error(stored: Archive, tmp_path: Path) -> None:
    stored.faults, desk = Faults(reports="later"), Desk()
    ask(stored, save(images(1), tmp_path), desk, wait_s=0.05)
    assert (desk.reports, len(stored.asked)) == ([], 1)


def test_the_same_transaction_twice_counts_as_asked(stored: Archive, tmp_path: Path) -> None:
    stored.faults = Faults(commitment_status=commitment.DUPLICATE_TRANSACTION)
    ask(stored, save(images(1), tmp_path), Desk(), wait_s=0.05)


def test_a_refused_request_says_why(stored: Archive, tmp_path: Path) -> None:
    stored.faults = Faults(commitment_status=0x0213)
    with pytest.raises(StatusError, match="refused storage commitment: it is out of resources"):
        ask(stored, save(images(1), tmp_path), Desk())


def test_an_archive_without_storage_commitment_says_so(stored: Archive, tmp_path: Path) -> None:
    stored.faults = Faults(unsupported=frozenset({STORAGE_COMMITMENT}))
    with pytest.raises(ContextRejected):
        ask(stored, save(images(1), tmp_path), Desk())


def test_read_back_finds_what_is_there_and_nothing_else(stored: Archive, tmp_path: Path) -> None:
    references = [read_reference(path) for path in save(images(3), tmp_path)]
    assert scu.kept(NETWORK, archive_at(stored), references) == frozenset(UIDS)


def test_read_back_does_not_believe_an_archive_that_ignores_the_key(
    stored: Archive, tmp_path: Path
) -> None:
    stored.faults = Faults(ignored=frozenset({"SOPInstanceUID"}))
    references = [read_reference(path) for path in save(images(3), tmp_path)]
    assert scu.kept(NETWORK, archive_at(stored), references[2:]) == frozenset()


def test_read_back_tells_a_refusal_from_an_empty_answer(stored: Archive, tmp_path: Path) -> None:
    stored.faults = Faults(find_status=0xC000)
    references = [read_reference(path) for path in save(images(1), tmp_path)]
    with pytest.raises(StatusError):
        scu.kept(NETWORK, archive_at(stored), references)


def test_a_file_that_cannot_be_referred_to_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no DICOM")
    with pytest.raises(HeaderError, match=r"notes\.txt cannot be referred to"):
        read_reference(path)


@dataclass
class _Told:
    """A report as pynetdicom hands it over."""

    event_type: int
    event_information: Dataset
    request: Any
    assoc: Any = field(default_factory=lambda: _Assoc())


@dataclass
class _Assoc:
    remote: dict[str, str] = field(default_factory=lambda: {"ae_title": "ARCHIVE"})


@dataclass
class _Request:
    AffectedSOPClassUID: str = STORAGE_COMMITMENT


def told(information: Dataset, event_type: int = 1, sop_class: str = STORAGE_COMMITMENT) -> int:
    event: Any = _Told(event_type, information, _Request(sop_class))
    return on_event_report(event, Desk().keep)


def test_what_is_no_storage_commitment_report_is_refused_with_the_right_status() -> None:
    good = Dataset()
    good.TransactionUID = "2.25.7"
    assert told(good) == 0x0000
    assert told(good, event_type=3) == 0x0113
    assert told(good, sop_class=MR) == 0x0118
    assert told(Dataset()) == 0x0115


@given(st.text(max_size=70))
def test_a_report_names_uids_or_is_refused(text: str) -> None:
    information = Dataset()
    information.TransactionUID = text
    try:
        report = report_of(information, "ARCHIVE")
    except HeaderError:
        return
    assert set(report.transaction_uid) <= set("0123456789.")
    assert report.transaction_uid


def test_an_archive_that_ends_the_association_while_asked_is_unreachable(tmp_path: Path) -> None:
    def abort(event: Event) -> tuple[int, None]:
        event.assoc.abort()
        return 0x0000, None

    entity = AE("ARCHIVE")
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=[build_context(STORAGE_COMMITMENT)],
        evt_handlers=[(evt.EVT_N_ACTION, abort)],
    )
    assert server is not None
    archive = Archive(port=server.server_address[1])
    try:
        with pytest.raises(PeerUnreachable):
            ask(archive, save(images(1), tmp_path), Desk())
    finally:
        server.shutdown()
        entity.shutdown()


def test_an_archive_may_take_the_role_of_scp_towards_us() -> None:
    """PS3.7 D.3.3.4: without the role we could never be told on another association."""
    desk = Desk()
    information = Dataset()
    information.TransactionUID = "2.25.7"
    with receiver(desk) as port:
        association = AE("ARCHIVE").associate(
            "127.0.0.1",
            port,
            contexts=[build_context(STORAGE_COMMITMENT)],
            ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
        )
        (context,) = association.accepted_contexts
        assert context.as_scp
        status, _ = association.send_n_event_report(
            information, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        association.release()
    assert status.Status == 0x0000
    assert [report.transaction_uid for report in desk.reports] == ["2.25.7"]
