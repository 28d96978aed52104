"""Brings what the receiver spooled into the ledger.

The spool's ``incoming`` folder holds exactly what was acknowledged and is not yet entered, so an
indexer that died starts again where it stopped, and a lost ledger fills again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import structlog

from node.assembly import Assembly, arrive
from node.dicom.headers import read_instance
from node.dicom.part10 import read_arrival
from node.domain.errors import HeaderError
from node.domain.stage import Reached, Stage, unobserved
from node.domain.study import Instance
from node.ledger import Books, Ledger
from node.ledger.arrivals import Recorded
from node.spool import Spool

_log = structlog.get_logger()

_BATCH = 64
"""Arrivals per transaction: one fsync of the ledger serves all of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An arrival's file and what it holds."""

    file: Path
    instance: Instance


@dataclass(frozen=True, slots=True)
class Indexer:
    """Enters arrivals, in batches. One at a time may run on a spool."""

    spool: Spool
    ledger: Ledger
    clock: Callable[[], float]
    reached: Reached = unobserved

    def step(self) -> int:
        """Enter up to one batch of arrivals. Returns how many files it dealt with."""
        files = list(islice(self.spool.arrivals(), _BATCH))
        entries = [entry for file in files if (entry := self._read(file)) is not None]
        with self.ledger.write() as books:
            outcomes = [self._enter(books, entry) for entry in entries]
        for entry, recorded in zip(entries, outcomes, strict=True):
            self._put_away(entry, recorded)
        return len(files)

    def _read(self, file: Path) -> Entry | None:
        try:
            instance = read_instance(read_arrival(file))
        except HeaderError as error:
            self._quarantine(file, str(error), study_uid="")
            return None
        return Entry(file, replace(instance, path=self.spool.shelf(instance)))

    def _enter(self, books: Books, entry: Entry) -> Recorded:
        instance = entry.instance
        recorded = books.arrivals.record(instance)
        if recorded is not Recorded.CONFLICT:
            row = books.arrivals.row(instance.study_uid)
            before = (
                Assembly(instance.study_uid, row.opened_at, row.last_at)
                if row
                else Assembly(instance.study_uid)
            )
            after = arrive(before, instance.received_at, new=recorded is Recorded.NEW)
            books.arrivals.set_times(
                instance.study_uid, after.opened_at, after.last_at, instance.peer
            )
        return recorded

    def _put_away(self, entry: Entry, recorded: Recorded) -> None:
        if recorded is Recorded.CONFLICT:
            reason = (
                "the same SOP Instance UID is here with other bytes or in another study; "
                "the first stays, this one is kept aside"
            )
            self._quarantine(entry.file, reason, entry.instance.study_uid)
        else:
            self.spool.shelve(entry.file, entry.instance.path)
            self.reached(Stage.INDEXED, entry.instance.sop_instance_uid)

    def _quarantine(self, file: Path, reason: str, study_uid: str) -> None:
        place = self.spool.quarantine(file, reason)
        _log.warning("quarantined", file=place.name, reason=reason)
        with self.ledger.write() as books:
            books.events.note(
                self.clock(), "quarantined", f"{place.name}: {reason}", study_uid=study_uid
            )
