"""The node as a caller: C-ECHO, C-FIND, C-MOVE, C-STORE and storage commitment, with typed errors.

All waits come from the Network. A peer that is down raises PeerUnreachable; one that answers a
failure raises StatusError, or, for C-STORE, gives a receipt that says so in words.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import evt
from pynetdicom.association import Association

from node.dicom import commitment, contexts
from node.dicom.commitment import STORAGE_COMMITMENT, Reference
from node.dicom.contexts import Label, Way
from node.dicom.matching import FindQuery, Match, fits, identifier_of, match_of
from node.dicom.requestor import associated, gone
from node.dicom.statuses import verdict
from node.dicom.wire import read_alone
from node.domain.errors import (
    ContextRejected,
    HeaderError,
    PeerUnreachable,
    StatusError,
    may_pass,
)
from node.domain.peer import Network, Peer, Receipt
from node.domain.proof import CommitmentReport

__all__ = [
    "Echo",
    "FindQuery",
    "Match",
    "MoveResult",
    "Offer",
    "echo",
    "find",
    "kept",
    "move",
    "request_commitment",
    "store",
]

_RESULT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
)
_LOOK = "look into its log"
_MOVE_PATIENCE = 10
"""A peer may move a whole study, even from tape, before it says a word."""

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    struct.error,
    InvalidDicomError,
)
"""What pydicom and the pixel decoders raise for a file that they cannot read or decode."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A SOP class that we proposed; ``answer`` is the accepted syntax, or why it was rejected."""

    sop_class_uid: str
    name: str
    accepted: bool
    answer: str


@dataclass(frozen=True, slots=True)
class Echo:
    """A peer that answers: the round trip in milliseconds, and what it would accept of us."""

    latency_ms: float
    offers: tuple[Offer, ...]


def echo(network: Network, peer: Peer) -> Echo:
    """C-ECHO, and what the peer accepts of the services and results that we need.

    Raises PeerUnreachable, PeerRejected, ContextRejected, StatusError.
    """
    wanted = (
        contexts.VERIFICATION,
        *_RESULT_CLASSES,
        contexts.STUDY_ROOT_FIND,
        contexts.STUDY_ROOT_MOVE,
    )
    with associated(network, peer, [contexts.plain(uid) for uid in wanted]) as association:
        offers = tuple(_offer(association, uid) for uid in wanted)
        if not offers[0].accepted:
            raise ContextRejected(f"{peer.name} accepts no Verification, so it cannot be tested")
        started = perf_counter()
        answer = association.send_c_echo()
        latency_ms = (perf_counter() - started) * 1000
        status = _status(answer, peer, "C-ECHO")
    if status != 0:
        raise StatusError(f"{peer.name} answered C-ECHO with {status:#06x}: {_LOOK}", status)
    return Echo(latency_ms, offers)


def _offer(association: Association, uid: str) -> Offer:
    for context in association.accepted_contexts:
        if context.abstract_syntax == uid:
            syntax = contexts.name_of(context.transfer_syntax[0])
            return Offer(uid, contexts.name_of(uid), accepted=True, answer=syntax)
    rejected = (c.status for c in association.rejected_contexts if c.abstract_syntax == uid)
    return Offer(uid, contexts.name_of(uid), accepted=False, answer=next(rejected, "no answer"))


def find(network: Network, peer: Peer, query: FindQuery) -> tuple[Match, ...]:
    """C-FIND, Study Root, STUDY level; each study once.

    Raises PeerUnreachable, PeerRejected, ContextRejected, StatusError.
    """
    model = contexts.STUDY_ROOT_FIND
    with associated(network, peer, [contexts.plain(model)]) as association:
        answers = association.send_c_find(identifier_of(query), model)
        found = (match_of(identifier) for identifier in _pending(answers, peer))
        return tuple(
            {match.study_uid: match for match in found if match and fits(match, query)}.values()
        )


def _pending(
    answers: Iterator[tuple[Dataset, Dataset | None]], peer: Peer
) -> Iterator[Dataset | None]:
    """The identifiers of the pending answers. Raises StatusError when the last one is a failure."""
    for answer, identifier in answers:
        status = _status(answer, peer, "C-FIND")
        if status in (0xFF00, 0xFF01):
            yield identifier
        elif status != 0:
            raise StatusError(f"{peer.name} answered C-FIND with {status:#06x}: {_LOOK}", status)


def kept(network: Network, peer: Peer, references: Sequence[Reference]) -> frozenset[str]:
    """The SOP Instance UIDs that a peer has, of those referred to: C-FIND at IMAGE level.

    Raises PeerUnreachable, PeerRejected, ContextRejected, StatusError.
    """
    model = contexts.STUDY_ROOT_FIND
    found: set[str] = set()
    with associated(network, peer, [contexts.plain(model)]) as association:
        for number, reference in enumerate(references):
            if gone(association):
                raise PeerUnreachable(f"{peer.name} ended the association between two C-FINDs")
            answers = association.send_c_find(_image_of(reference), model, msg_id=number + 1)
            # A peer that ignores a key answers with other objects too.
            found.update(str(d.get("SOPInstanceUID", "")) for d in _pending(answers, peer) if d)
    return frozenset(reference.sop_instance_uid for reference in references) & found


def _image_of(reference: Reference) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    identifier.StudyInstanceUID = reference.study_uid
    identifier.SeriesInstanceUID = reference.series_uid
    identifier.SOPInstanceUID = reference.sop_instance_uid
    return identifier


def request_commitment(
    network: Network,
    peer: Peer,
    request: Dataset,
    keep: Callable[[CommitmentReport], object],
    report_wait_s: float,
) -> None:
    """N-ACTION: have a peer commit to what ``commitment.request_of`` lists (PS3.4 J.3.2).

    A report that comes on this association within ``report_wait_s`` seconds goes to ``keep``. A
    peer that has this transaction already counts as asked. Raises PeerUnreachable, PeerRejected,
    ContextRejected, StatusError.
    """
    with associated(network, peer, [contexts.plain(STORAGE_COMMITMENT)]) as association:
        association.bind(
            evt.EVT_N_EVENT_REPORT,
            lambda event: (commitment.on_event_report(event, keep), None),
        )
        reported = _served(association)
        answer, _ = association.send_n_action(
            request,
            commitment.REQUEST_COMMITMENT,
            STORAGE_COMMITMENT,
            commitment.STORAGE_COMMITMENT_INSTANCE,
        )
        status = _status(answer, peer, "N-ACTION")
        if status not in (0x0000, commitment.DUPLICATE_TRANSACTION):
            words = commitment.failure_words(status)
            raise StatusError(f"{peer.name} refused storage commitment: {words}", status)
        reported.wait(report_wait_s)


def _served(association: Association) -> threading.Event:
    """Set once a request of the peer's on this association was answered.

    The library answers an N-EVENT-REPORT in a thread of its own and then takes it that its reactor
    runs again; here there is none, and whoever waited for it to stand still would wait for ever.
    """
    done, serve = threading.Event(), association._serve_request

    def answered(message: Any, context_id: int) -> None:
        try:
            serve(message, context_id)
        finally:
            read_alone(association)
            done.set()

    association._serve_request = answered  # type: ignore[method-assign, assignment]
    return done


@dataclass(frozen=True, slots=True)
class MoveResult:
    """The sub-operations of a C-MOVE: C-STOREs from the peer to the destination."""

    completed: int
    failed: int
    warning: int


def move(network: Network, peer: Peer, study_uid: str, destination_ae: str) -> MoveResult:
    """C-MOVE of a study, Study Root, to an AE title that the peer must know with host and port.

    Returns when the peer says that it is done, with what failed counted. Raises PeerError.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = study_uid
    status, result = 0xFF00, MoveResult(0, 0, 0)
    with associated(network, peer, [contexts.plain(contexts.STUDY_ROOT_MOVE)]) as association:
        association.dimse_timeout = network.answer_timeout_s * _MOVE_PATIENCE
        for answer, _ in association.send_c_move(
            identifier, destination_ae, contexts.STUDY_ROOT_MOVE
        ):
            status = _status(answer, peer, "C-MOVE")
            result = _counted(answer)
    # 0xB000: done, and something failed; the counts say what.
    if status not in (0x0000, 0xB000):
        raise StatusError(f"{peer.name}: {_move_reason(status, destination_ae)}", status)
    return result


def _counted(answer: Dataset) -> MoveResult:
    return MoveResult(
        int(answer.get("NumberOfCompletedSuboperations") or 0),
        int(answer.get("NumberOfFailedSuboperations") or 0),
        int(answer.get("NumberOfWarningSuboperations") or 0),
    )


def _move_reason(status: int, destination_ae: str) -> str:
    if status == 0xA801:
        return (
            f"it does not know the move destination {destination_ae}: enter this AE title there "
            "with our host and port"
        )
    if status == 0xA702:
        return f"it could not send to {destination_ae}: check host and port that it has for it"
    return f"it answered C-MOVE with {status:#06x}: {_LOOK}"


def _status(answer: Dataset, peer: Peer, request: str) -> int:
    """The status of an answer. Raises PeerUnreachable when there was none."""
    if "Status" not in answer:
        raise PeerUnreachable(
            f"{peer.name} did not answer {request}: it broke off the association or took too long"
        )
    return int(answer.Status)


def store(network: Network, peer: Peer, files: Sequence[Path]) -> Iterator[Receipt]:
    """C-STORE of Part 10 files over one association, one receipt each, in order.

    A file travels as the bytes it has. Only when the peer does not accept its transfer syntax are
    its values written in an uncompressed one. Raises PeerUnreachable or PeerRejected, and OSError
    when a file cannot be read for now; the receipts that were given by then stand.
    """
    letters = [_letter(path) for path in files]
    labels = [letter.label for letter in letters if letter.label]
    if not labels:
        yield from (letter.refused(letter.fault) for letter in letters)
        return
    with ExitStack() as stack:
        try:
            association = stack.enter_context(associated(network, peer, contexts.proposals(labels)))
        except ContextRejected as error:
            yield from (letter.refused(letter.fault or str(error)) for letter in letters)
            return
        for number, letter in enumerate(letters):
            # Message ID is a 16-bit number.
            yield _stored(association, peer, letter, number % 0xFFFF + 1)


@dataclass(frozen=True, slots=True)
class _Letter:
    """A file to send, with its label or what is wrong with it."""

    path: Path
    label: Label | None = None
    fault: str = ""

    def refused(self, reason: str) -> Receipt:
        uid = self.label.sop_instance_uid if self.label else ""
        return Receipt(uid, accepted=False, reason=reason)


def _letter(path: Path) -> _Letter:
    try:
        return _Letter(path, contexts.read_label(path))
    except HeaderError as error:
        return _Letter(path, fault=str(error))


def _stored(association: Association, peer: Peer, letter: _Letter, message_id: int) -> Receipt:
    if letter.label is None:
        return letter.refused(letter.fault)
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }
    way = contexts.way(letter.label, accepted)
    if way is None:
        return letter.refused(_no_context(letter.label, peer))
    try:
        sendable = letter.path if way is Way.AS_IT_IS else _recoded(letter.path, way)
    except _UNREADABLE as error:
        return letter.refused(
            f"{_no_context(letter.label, peer)}, and it could not be changed "
            f"({type(error).__name__})"
        )
    return _sent(association, peer, letter, sendable, message_id)


def _no_context(label: Label, peer: Peer) -> str:
    return (
        f"{peer.name} accepts no {contexts.name_of(label.sop_class_uid)} in "
        f"{contexts.name_of(label.transfer_syntax_uid)}: ask its administrator to enable it"
    )


def _recoded(path: Path, way: Way) -> Dataset:
    dataset = dcmread(path)
    if way is Way.DECOMPRESSED:
        # It stays the same object: only its encoding changes.
        dataset.decompress(generate_instance_uid=False)
    return dataset


def _sent(
    association: Association, peer: Peer, letter: _Letter, sendable: Path | Dataset, message_id: int
) -> Receipt:
    if gone(association):
        raise PeerUnreachable(f"{peer.name} ended the association before everything was sent")
    try:
        answer = association.send_c_store(sendable, msg_id=message_id)
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise
        return letter.refused(f"the file could not be encoded ({type(error).__name__})")
    status = _status(answer, peer, "C-STORE")
    meaning = verdict(status)
    uid = letter.label.sop_instance_uid if letter.label else ""
    return Receipt(uid, meaning.accepted, status, meaning.reason, meaning.retryable)
