"""Tells the hospital's audit repository what the event log holds, in order and for as long as it
takes.

How far it has come is a watermark of the ledger, so a repository that is down for days costs
nothing but the wait, and a restart forgets nothing. A batch whose end is in doubt is sent again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO

import structlog
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset

from node.atna import Origin, Subject, message, when
from node.config import Config
from node.domain.event import Event, EventKind
from node.domain.job import BackOff
from node.domain.peer import Peer
from node.ledger import Books, Ledger
from node.syslog import Repository, RepositoryUnreachable, Sender, syslog_message

_log = structlog.get_logger()

CURSOR = "audit syslog"
"""The watermark: the number of the last event that was told, or that has no message."""

_BATCH = 64
_LOOK_S = 2.0
"""Events come from several processes, so the log is looked into this often."""

_TRANSFERS = (EventKind.SENDING, EventKind.SENT, EventKind.DELIVERY)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What may be said: whether with the Patient ID, and whom actors and destinations are."""

    include_patient_id: bool = False
    peers: Mapping[str, Peer] = field(default_factory=dict)


@dataclass(slots=True)
class Reporter:
    """Sends what is new. One at a time may run on a ledger."""

    ledger: Ledger
    repository: Repository
    origin: Origin
    disclosure: Disclosure = Disclosure()
    back_off: BackOff = BackOff(5.0, 2.0, 300.0)
    _failures: int = 0
    _not_before: float = 0.0

    def step(self, clock: Callable[[], float]) -> bool:
        """Tell one batch of events. False when there was none, or the repository is down."""
        now = clock()
        if now < self._not_before:
            return False
        with self.ledger.read() as books:
            told = int(books.pulls.watermark(CURSOR) or 0)
            events = books.events.after(told, _BATCH)
            messages = [text for event in events if (text := self._message(books, event))]
        if not events or not self._delivered(messages, now):
            return False
        with self.ledger.write() as books:
            books.pulls.advance(CURSOR, float(events[-1].id))
        return True

    def next_due(self, now: float) -> float:
        """When to look again (seconds since the epoch)."""
        return max(self._not_before, now + _LOOK_S)

    def _delivered(self, messages: list[bytes], now: float) -> bool:
        if not messages:
            return True
        try:
            self.repository.deliver(messages)
        except RepositoryUnreachable as error:
            self._failures += 1
            self._not_before = now + self.back_off.delay(self._failures)
            _log.warning("audit messages wait", error=str(error), attempt=self._failures)
            return False
        self._failures = 0
        return True

    def _message(self, books: Books, event: Event) -> bytes | None:
        content = message(event, self._subject(books, event), self.origin)
        if content is None:
            return None
        origin = self.origin
        sender = Sender(origin.host, origin.source, origin.process)
        return syslog_message(content, when(event.at), sender)

    def _subject(self, books: Books, event: Event) -> Subject:
        subject = Subject(peer=self.disclosure.peers.get(event.actor))
        if event.kind == EventKind.QUERIED:
            return replace(subject, keys=encoded_keys(event.words))
        if not event.study_uid:
            return subject
        if event.kind in _TRANSFERS:
            results = books.deliveries.results_of(event.job_id)
            classes = tuple((uid, 0) for uid in dict.fromkeys(r.sop_class_uid for r in results))
        else:
            classes = tuple(books.arrivals.classes(event.study_uid).items())
        subject = replace(subject, sop_classes=classes)
        if self.disclosure.include_patient_id:
            return replace(subject, patient_id=books.arrivals.patient_id(event.study_uid))
        return subject


def encoded_keys(words: str) -> bytes:
    """The identifier of a query in Explicit VR Little Endian, from ``Keyword=value; ...``."""
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    for pair in words.split("; "):
        keyword, found, value = pair.partition("=")
        if found:
            setattr(keys, keyword, value)
    stream = BytesIO()
    out = DicomIO(stream)
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, keys)
    return stream.getvalue()


def reporter(config: Config, ledger: Ledger) -> Reporter | None:
    """The reporter that a configuration wants; None where it names no repository."""
    section = config.audit
    if not section.syslog:
        return None
    peers = {peer.name: peer for peer in config.peers}
    called = {entry.name: peers.get(str(entry.table.get("peer"))) for entry in config.destinations}
    known = {name: peer for name, peer in called.items() if peer is not None}
    return Reporter(
        ledger,
        Repository(section.syslog, section.ca, section.cert, section.key),
        Origin(section.application, config.node.ae_title, socket.gethostname(), str(os.getpid())),
        Disclosure(section.include_patient_id, peers | known),
    )
