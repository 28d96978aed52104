"""The node as a caller: C-ECHO, C-FIND, C-MOVE and C-STORE, with typed errors.

All waits come from the Network. A peer that is down raises PeerUnreachable; one that answers a
failure raises StatusError, or, for C-STORE, gives a receipt that says so in words.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.dicom import contexts
from node.dicom.contexts import Label, Way
from node.dicom.matching import FindQuery, Match, fits, identifier_of, match_of
from node.dicom.requestor import Requestor, associated
from node.dicom.statuses import verdict
from node.domain.errors import ContextRejected, HeaderError, PeerUnreachable, StatusError
from node.domain.peer import Network, Peer, Receipt

__all__ = [
    "Echo",
    "FindQuery",
    "Match",
    "MoveResult",
    "Offer",
    "echo",
    "find",
    "move",
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


def _offer(association: Requestor, uid: str) -> Offer:
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
    its values written in an uncompressed one. Raises PeerUnreachable or PeerRejected; the receipts
    that were given by then stand.
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


def _stored(association: Requestor, peer: Peer, letter: _Letter, message_id: int) -> Receipt:
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
    association: Requestor, peer: Peer, letter: _Letter, sendable: Path | Dataset, message_id: int
) -> Receipt:
    try:
        answer = association.send_c_store(sendable, msg_id=message_id)
    except (OSError, ValueError, AttributeError) as error:
        return letter.refused(f"the file could not be encoded ({type(error).__name__})")
    except RuntimeError as error:
        raise PeerUnreachable(f"{peer.name} ended the association while we were sending") from error
    status = _status(answer, peer, "C-STORE")
    meaning = verdict(status)
    uid = letter.label.sop_instance_uid if letter.label else ""
    return Receipt(uid, meaning.accepted, status, meaning.reason, meaning.retryable)
