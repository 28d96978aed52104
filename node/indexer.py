"""Brings what the receiver spooled into the ledger.

The spool's ``incoming`` folder holds exactly what was acknowledged and is not yet entered, so an
indexer that died starts again where it stopped, and a lost ledger fills again. What must not be
used leaves it too, for the quarantine: an acknowledged object is in the ledger or in its book.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import structlog

from node.assembly import Assembly, arrive
from node.dicom.part10 import read_arrival
from node.domain.errors import HeaderError, NodeError, SandboxError
from node.domain.stage import Reached, Stage, unobserved
from node.domain.study import Arrival, Instance
from node.ledger import Books, Ledger
from node.ledger.arrivals import Recorded
from node.ledger.quarantine import Entry, Kind, State
from node.sandbox import InProcess
from node.spool import Spool

_log = structlog.get_logger()

_BATCH = 64
"""Arrivals per transaction: one fsync of the ledger serves all of them."""

_REASONS = {
    Recorded.CONFLICT: (
        Kind.CONFLICT,
        "the same SOP Instance UID is here with other bytes or in another study; "
        "the first stays, this one is kept aside",
    ),
    Recorded.OTHER_PATIENT: (
        Kind.PATIENT,
        "its study or series is here with another patient (name, ID, issuer or birth date); "
        "the first stays, this one is kept aside",
    ),
}


class Reader(Protocol):
    """Reads the headers of spooled files: in this process, or where it can do no harm."""

    def read(self, files: Sequence[Path]) -> Sequence[Instance | NodeError]:
        """What the first of the files hold, in order; at least one.

        HeaderError is the object's fault, another may pass. Raises SandboxError when none can be
        read now.
        """


@dataclass(frozen=True, slots=True)
class Indexer:
    """Enters arrivals, in batches. One at a time may run on a spool."""

    spool: Spool
    ledger: Ledger
    clock: Callable[[], float]
    reached: Reached = unobserved
    reader: Reader = field(default_factory=InProcess)

    def step(self) -> int:
        """Enter up to one batch of arrivals. Returns how many files it dealt with.

        Files that cannot be read for now stay where they are, and do not hold up the others.
        """
        arrivals = self.spool.arrivals()
        try:
            while files := list(islice(arrivals, _BATCH)):
                if dealt := self._take_in(files):
                    return dealt
        except SandboxError as error:
            _log.error("arrivals not read", reason=str(error))
        return 0

    def _take_in(self, files: Sequence[Path]) -> int:
        known = list(zip(files, self.reader.read(files), strict=False))
        readings = [(file, reading) for file, reading in known if _settled(reading)]
        if len(readings) < len(known):
            waiting = next(str(reading) for _, reading in known if not _settled(reading))
            _log.error("arrivals not read", count=len(known) - len(readings), reason=waiting)
        if not readings:
            return 0
        with self.ledger.write() as books:
            outcomes = [(file, self._enter(books, file, reading)) for file, reading in readings]
        return sum(self._put_away(file, outcome) for file, outcome in outcomes)

    def _enter(
        self, books: Books, file: Path, reading: Instance | NodeError
    ) -> Instance | Entry | None:
        """The instance as the ledger has it now, or the quarantine's entry.

        None when the quarantine has the same bytes already.
        """
        if isinstance(reading, NodeError):
            return self._set_aside(books, file, self._aside(file, str(reading)))
        instance = replace(reading, path=self.spool.shelf(reading))
        recorded = books.arrivals.record(instance)
        if recorded in _REASONS:
            kind, reason = _REASONS[recorded]
            entry = replace(self._aside(file, reason), kind=kind, study_uid=instance.study_uid)
            return self._set_aside(books, file, entry)
        row = books.arrivals.row(instance.study_uid)
        before = (
            Assembly(instance.study_uid, row.opened_at, row.last_at)
            if row
            else Assembly(instance.study_uid)
        )
        new = recorded is Recorded.NEW and instance.is_image
        after = arrive(before, instance.received_at, new=new)
        books.arrivals.set_times(instance.study_uid, after.opened_at, after.last_at, instance.peer)
        return instance

    def _aside(self, file: Path, reason: str) -> Entry:
        return Entry(self.spool.aside(file), Kind.UNREADABLE, reason, self.clock())

    def _set_aside(self, books: Books, file: Path, entry: Entry) -> Entry | None:
        arrival = _provenance(file)
        if arrival is not None:
            entry = replace(entry, sop_instance_uid=arrival.sop_instance_uid)
            earlier = books.quarantine.find(entry.sop_instance_uid)
            if any(_holds(known, entry, arrival) for known in earlier):
                return None
        number = books.quarantine.add(entry)
        if number is not None:
            words = f"number {number}: {entry.reason}"
            books.events.note(entry.at, "quarantined", words, study_uid=entry.study_uid)
            _log.warning("quarantined", number=number, kind=entry.kind, reason=entry.reason)
        return entry

    def _put_away(self, file: Path, outcome: Instance | Entry | None) -> bool:
        """Move a file to where the ledger says it is; False when it must be tried again."""
        try:
            if outcome is None:
                file.unlink()
                _log.info("quarantined before", file=file.name)
            elif isinstance(outcome, Entry):
                self.spool.quarantine(file, outcome.reason)
                self.reached(Stage.QUARANTINED, outcome.sop_instance_uid)
            else:
                self.reached(Stage.ENTERED, outcome.sop_instance_uid)
                self.spool.shelve(file, outcome.path)
                self.reached(Stage.INDEXED, outcome.sop_instance_uid)
        except OSError as error:
            # Entering it again changes nothing but its place.
            _log.error("arrival not moved", file=file.name, reason=error.strerror)
            return False
        return True


def _settled(reading: Instance | NodeError) -> bool:
    """Whether more is known of a file than that it cannot be read now."""
    return isinstance(reading, Instance | HeaderError)


def _provenance(file: Path) -> Arrival | None:
    """What our own envelope says of an object; None when it is damaged or gone."""
    with suppress(HeaderError, OSError):
        return read_arrival(file)
    return None


def _holds(known: Entry, entry: Entry, arrival: Arrival) -> bool:
    """Whether another entry's file has the same bytes: a peer that sends again fills no disk."""
    if known.state is not State.OPEN or known.path == entry.path:
        return False
    # Entered in this batch, it has not been moved yet.
    places = (known.path, arrival.path.with_name(known.path.name))
    return any((kept := _provenance(at)) and kept.sha256 == arrival.sha256 for at in places)
