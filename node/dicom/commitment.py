"""Storage commitment: the peer's word that it keeps what we sent (PS3.4 Annex J).

We ask by N-ACTION and the peer answers later by N-EVENT-REPORT, on the association on which we
asked or on one that it opens to our own port. Both ways end in ``on_event_report``, which has the
report made durable before it is acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event

from node.dicom.wire import is_uid
from node.domain.errors import HeaderError, SpoolError
from node.domain.proof import CommitmentReport, FailedInstance

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT = 1
"""Action Type ID of the request (PS3.4 J.3.2.1)."""

DUPLICATE_TRANSACTION = 0x0131
"""The peer has this very request already (PS3.3 C.14.1.1)."""

_COMPLETE, _WITH_FAILURES = 1, 2
_NO_SUCH_EVENT_TYPE = 0x0113
_INVALID_ARGUMENT = 0x0115
_NO_SUCH_CLASS = 0x0118
_RESOURCE_LIMITATION = 0x0213

_REASONS = {
    0x0110: "processing failure",
    0x0112: "it does not have the object",
    0x0119: "it has another SOP class under this UID",
    0x0122: "it does not commit to this SOP class",
    DUPLICATE_TRANSACTION: "it saw the transaction UID twice",
    0x0213: "it is out of resources",
}
_UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    EOFError,
    OSError,
    struct.error,
    InvalidDicomError,
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reference:
    """The four UIDs by which a peer finds an object again."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


def read_reference(path: Path) -> Reference:
    """The reference to a Part 10 file, without its pixels. Raises HeaderError."""
    keywords = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
        return Reference(*(str(dataset[keyword].value) for keyword in keywords))
    except _UNREADABLE as error:
        raise HeaderError(
            f"{path.name} cannot be referred to: its UIDs cannot be read ({type(error).__name__})"
        ) from error


def failure_words(reason: int) -> str:
    """A Failure Reason (0008,1197) in words."""
    return _REASONS.get(reason, f"failure reason {reason:#06x}")


def request_of(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Action Information: what to commit to (PS3.4 Table J.3-1)."""
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [_referenced(reference) for reference in references]
    return request


def _referenced(reference: Reference) -> Dataset:
    entry = Dataset()
    entry.ReferencedSOPClassUID = reference.sop_class_uid
    entry.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return entry


def on_event_report(event: Event, keep: Callable[[CommitmentReport], object]) -> int:
    """The status that answers an N-EVENT-REPORT; 0x0000 only once ``keep`` has returned.

    ``event`` is pynetdicom's EVT_N_EVENT_REPORT. ``keep`` makes the report durable and raises
    SpoolError when it cannot; then the peer is told, and may report again.
    """
    request = cast(N_EVENT_REPORT, event.request)
    if str(request.AffectedSOPClassUID) != STORAGE_COMMITMENT:
        return _NO_SUCH_CLASS
    if event.event_type not in (_COMPLETE, _WITH_FAILURES):
        return _NO_SUCH_EVENT_TYPE
    try:
        report = report_of(event.event_information, event.assoc.remote["ae_title"])
    except HeaderError as error:
        log.warning("unreadable storage commitment report refused", reason=str(error))
        return _INVALID_ARGUMENT
    try:
        keep(report)
    except SpoolError as error:
        log.error("a storage commitment report could not be kept", reason=str(error))
        return _RESOURCE_LIMITATION
    return 0x0000


def report_of(information: Dataset, calling_ae: str) -> CommitmentReport:
    """Event Information as a report (PS3.4 Table J.3-2). Raises HeaderError."""
    try:
        transaction = _uid(information, "TransactionUID")
        return CommitmentReport(
            transaction,
            tuple(
                _uid(entry, "ReferencedSOPInstanceUID")
                for entry in information.get("ReferencedSOPSequence") or ()
            ),
            tuple(
                FailedInstance(
                    _uid(entry, "ReferencedSOPInstanceUID"), int(entry.get("FailureReason") or 0)
                )
                for entry in information.get("FailedSOPSequence") or ()
            ),
            calling_ae.strip(),
        )
    except _UNREADABLE as error:
        raise HeaderError(
            f"the storage commitment report cannot be read ({type(error).__name__})"
        ) from error


def _uid(entry: Dataset, keyword: str) -> str:
    text = str(entry[keyword].value).strip(" \0")
    if not is_uid(text):
        raise HeaderError(f"the storage commitment report has no usable {keyword}")
    return text
