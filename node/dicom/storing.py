"""One object while it arrives: from the C-STORE request to the status that answers it.

Whatever is wrong with a request, its data set comes all the same and has to be read to its end
before the sender listens to an answer. So a refusal is remembered and the rest thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog

from node.dicom import statuses
from node.dicom.command import Command, Malformed, response
from node.dicom.contexts import is_storage
from node.dicom.scan import Refusal, scan
from node.dicom.wire import is_uid
from node.domain.errors import NodeError, SpoolError

log = structlog.get_logger()


class Incoming(Protocol):
    """Where the bytes of one object go while they arrive."""

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes, which are the caller's again afterwards. Raises NodeError."""

    def look(self) -> AbstractContextManager[memoryview]:
        """Everything that was written, to be read only. Raises NodeError."""

    def finish(self) -> object:
        """Make the object durable before this returns. Raises NodeError when it could not."""

    def discard(self) -> None:
        """Leave nothing of it. Does nothing after ``finish``."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A C-STORE request and the presentation context under which it came."""

    command: Command
    context_id: int
    abstract_syntax: str
    transfer_syntax: str


Open = Callable[[Offer], Incoming]
"""Begins to keep what is offered. Raises NodeError when it cannot."""


class Storing:
    """One C-STORE. ``write`` and ``finish`` raise nothing but Malformed."""

    def __init__(self, offer: Offer, open_: Open, peer: str, longest: int) -> None:
        """Look at the request, and begin to keep what it brings unless it is refused.

        ``longest`` is the largest data set that is taken, in bytes.
        """
        self._offer = offer
        self._peer = peer
        self._longest = longest
        self._size = 0
        # Nearly always the first fragment says all that a scan can tell.
        self._suspect = True
        self._incoming: Incoming | None = None
        self._refusal = _refusal(offer)
        if self._refusal is None and offer.command.has_dataset:
            self._attempt(lambda: self._begin(open_))

    def write(self, fragment: memoryview) -> None:
        """The next bytes of the data set."""
        self._size += len(fragment)
        if self._size > self._longest:
            self.discard()
            raise Malformed(f"a data set is longer than {self._longest} bytes")
        incoming = self._incoming
        if incoming is None:
            return
        if self._suspect and self._size == len(fragment):
            self._suspect = self._scanned(fragment) is not None
        self._attempt(lambda: incoming.write(fragment))

    def finish(self) -> bytes:
        """The whole data set is here: keep it. The response PDU."""
        command = self._offer.command
        if self._refusal is None and not self._size:
            self._refusal = Refusal(statuses.CANNOT_UNDERSTAND, "data set is empty")
        incoming = self._incoming
        if incoming is not None and self._refusal is None:
            self._attempt(lambda: self._keep(incoming))
        self.discard()
        refusal = self._refusal
        if refusal is not None:
            log.warning(
                "object refused",
                peer=self._peer,
                status=f"{refusal.status:#06x}",
                reason=refusal.reason,
            )
        return response(
            command,
            self._offer.context_id,
            statuses.SUCCESS if refusal is None else refusal.status,
            "" if refusal is None else refusal.reason,
            (_echoed(command.sop_class_uid), _echoed(command.sop_instance_uid)),
        )

    def discard(self) -> None:
        """It ends here: nothing that was not acknowledged stays."""
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None

    def _begin(self, open_: Open) -> None:
        self._incoming = open_(self._offer)

    def _keep(self, incoming: Incoming) -> None:
        if self._suspect:
            with incoming.look() as dataset:
                self._refusal = self._scanned(dataset)
        if self._refusal is None:
            incoming.finish()

    def _scanned(self, dataset: memoryview) -> Refusal | None:
        command = self._offer.command
        syntax = self._offer.transfer_syntax
        return scan(dataset, syntax, command.sop_class_uid, command.sop_instance_uid)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Take a step; when it fails, remember what to answer and keep nothing."""
        try:
            step()
        except NodeError as error:
            full = isinstance(error, SpoolError)
            status = statuses.OUT_OF_RESOURCES if full else statuses.CANNOT_UNDERSTAND
            self._refusal = Refusal(status, str(error))
        except Exception:
            log.exception("object not kept: a programming error", peer=self._peer)
            self._refusal = Refusal(statuses.PROCESSING_FAILURE, "internal error: see the log")
        if self._refusal is not None:
            self.discard()


def _refusal(offer: Offer) -> Refusal | None:
    """Why an object is not even kept, as far as the command alone can tell."""
    command = offer.command
    if not is_storage(offer.abstract_syntax):
        return Refusal(statuses.UNRECOGNISED_OPERATION, "this context is not for storage")
    if command.sop_class_uid != offer.abstract_syntax:
        return Refusal(
            statuses.CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
        )
    if not is_uid(command.sop_instance_uid):
        return Refusal(statuses.INVALID_INSTANCE, "SOP Instance UID is not digits and dots")
    return None


def _echoed(uid: str) -> str:
    return uid if is_uid(uid) else ""
