"""Puts the fragments of P-DATA-TF PDUs together to messages, one message at a time.

C-STORE goes its own short way. Of every other message only a bounded number of bytes is kept, and
the library serves it when it is complete. While a message is served nothing is read, so a peer
that sends faster than we keep is held back by TCP and by nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.dicom import command as commands
from node.dicom.command import C_STORE_RQ, Command, Malformed

LONGEST_COMMAND = 16384
"""Bytes of a command set. The longest lists of a C-MOVE or N-GET stay under 4,000."""
LONGEST_OTHER = 1 << 20
"""Bytes of a data set that is no object: a query or a storage commitment report."""
MOST_FRAGMENTS = 64
"""Fragments in one PDU. One is usual, two occur."""

_PDV = struct.Struct(">IBB")
_IS_COMMAND, _IS_LAST = 1, 2


class Store(Protocol):
    """One C-STORE under way."""

    def write(self, fragment: memoryview) -> None:
        """The next bytes of the data set. Raises Malformed."""

    def finish(self) -> bytes:
        """The whole data set is here. The PDU that answers."""

    def discard(self) -> None:
        """It will not be finished."""


@dataclass(frozen=True, slots=True)
class Service:
    """What serves a message. Each may raise Malformed."""

    store: Callable[[int, Command], Store]
    """Begins a C-STORE under a presentation context."""
    other: Callable[[int, list[bytes]], None]
    """Serves a complete message, given as its fragments, each with its message control header."""
    answer: Callable[[bytes], None]
    """Sends a PDU."""


class Course(Protocol):
    """Told where a message begins and ends, and how many bytes it has brought."""

    received: int

    def begin(self) -> None:
        """The first fragment is here."""

    def end(self) -> None:
        """The last fragment is here."""


class Intake:
    """The messages of one association."""

    def __init__(self, service: Service, course: Course) -> None:
        """No message is under way."""
        self._service = service
        self._course = course
        self._context_id: int | None = None
        self._command = bytearray()
        self._fragments: list[bytes] = []
        self._size = 0
        self._store: Store | None = None

    def take(self, pdu: memoryview) -> None:
        """The variable field of one P-DATA-TF PDU (PS3.8 9.3.5). Raises Malformed."""
        at, count = 0, 0
        while at < len(pdu):
            if at + _PDV.size > len(pdu) or count == MOST_FRAGMENTS:
                raise Malformed("a P-DATA-TF PDU is no list of fragments")
            length, context_id, control = _PDV.unpack_from(pdu, at)
            end = at + 4 + length
            if length < 2 or end > len(pdu):
                raise Malformed("a fragment does not fit into its PDU")
            self._fragment(context_id, control, pdu[at + _PDV.size : end])
            at, count = end, count + 1

    def close(self) -> None:
        """The association is over: nothing of half a message stays."""
        if self._store is not None:
            self._store.discard()
            self._store = None

    def _fragment(self, context_id: int, control: int, content: memoryview) -> None:
        if self._context_id is None:
            self._context_id = context_id
            self._course.begin()
        elif context_id != self._context_id:
            raise Malformed("a message changes its presentation context")
        self._course.received += len(content)
        last = bool(control & _IS_LAST)
        if control & _IS_COMMAND:
            self._command_fragment(content, last)
        else:
            self._dataset_fragment(content, last)

    def _command_fragment(self, content: memoryview, last: bool) -> None:
        if self._store is not None or self._fragments:
            raise Malformed("a command set comes where the data set should go on")
        self._command += content
        if len(self._command) > LONGEST_COMMAND:
            raise Malformed(f"a command set is longer than {LONGEST_COMMAND} bytes")
        if last:
            self._begin(bytes(self._command))
            self._command.clear()

    def _begin(self, content: bytes) -> None:
        command, context_id = commands.read(content), self._context_id or 0
        if command.field == C_STORE_RQ:
            if command.message_id < 0:
                raise Malformed("a C-STORE request has no Message ID")
            self._store = self._service.store(context_id, command)
        else:
            self._fragments = [bytes((_IS_COMMAND | _IS_LAST,)) + content]
            self._size = 0
        if not command.has_dataset:
            self._end()

    def _dataset_fragment(self, content: memoryview, last: bool) -> None:
        if self._store is not None:
            self._store.write(content)
        elif self._fragments:
            self._size += len(content)
            if self._size > LONGEST_OTHER:
                raise Malformed(f"a data set is longer than {LONGEST_OTHER} bytes")
            self._fragments.append(bytes((_IS_LAST if last else 0,)) + bytes(content))
        else:
            raise Malformed("a data set comes without a command set")
        if last:
            self._end()

    def _end(self) -> None:
        store, fragments, context_id = self._store, self._fragments, self._context_id or 0
        self._store, self._fragments, self._context_id = None, [], None
        self._course.end()
        if store is not None:
            self._service.answer(store.finish())
        else:
            self._service.other(context_id, fragments)
