"""The archive's side of storage commitment (PS3.4 Annex J): what was asked, and what it reports."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.association import Association

from node.dicom import contexts
from node.dicom.commitment import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from node.dicom.wire import tuning

_NO_SUCH_INSTANCE = 0x0112
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for commitment: by whom, and for which (SOP class, SOP instance) pairs."""

    ae_title: str
    transaction_uid: str
    pairs: tuple[tuple[str, str], ...]


def asked_of(information: Dataset, ae_title: str) -> Asked:
    """The request in an N-ACTION's Action Information."""
    return Asked(
        ae_title.strip(),
        str(information.TransactionUID),
        tuple(
            (str(entry.ReferencedSOPClassUID), str(entry.ReferencedSOPInstanceUID))
            for entry in information.ReferencedSOPSequence
        ),
    )


def report_on(asked: Asked, held: Collection[str], refused: Collection[str]) -> Dataset:
    """Event Information: what of a request is held and not refused, and what failed."""
    information = Dataset()
    information.TransactionUID = asked.transaction_uid
    failed = []
    information.ReferencedSOPSequence = []
    for pair in asked.pairs:
        entry = Dataset()
        entry.ReferencedSOPClassUID, entry.ReferencedSOPInstanceUID = pair
        if pair[1] in held and pair[1] not in refused:
            information.ReferencedSOPSequence.append(entry)
        else:
            entry.FailureReason = 0x0110 if pair[1] in held else _NO_SUCH_INSTANCE
            failed.append(entry)
    if failed:
        information.FailedSOPSequence = failed
    return information


def tell(association: Association, information: Dataset) -> int | None:
    """Send a report on an open association; the status of the answer, None without one."""
    kind = 2 if "FailedSOPSequence" in information else 1
    with suppress(RuntimeError):  # the association has ended meanwhile
        answer, _ = association.send_n_event_report(
            information, kind, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        return int(answer.Status) if "Status" in answer else None
    return None


def tell_at(place: tuple[str, int], called: str, calling: str, information: Dataset) -> int | None:
    """Send a report on an association of our own, in the role of SCP (PS3.7 D.3.3.4)."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _PATIENCE_S
    entity.connection_timeout = _PATIENCE_S
    association = entity.associate(
        *place,
        contexts=[contexts.plain(STORAGE_COMMITMENT)],
        ae_title=called,
        ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
        evt_handlers=[tuning(_PATIENCE_S)],
    )
    if not association.is_established:
        return None
    try:
        return tell(association, information)
    finally:
        association.release()
