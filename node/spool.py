"""The spool: everything that was received or made, on disk before anybody is told so.

::

    incoming/      acknowledged, not yet in the ledger; one Part 10 file each
    studies/       in the ledger; <study>/<instance>.dcm, named by digests
    results/       <job>/<name>.dcm, frozen before the first delivery; job.json says whose
    reports/       storage commitment reports that the ledger does not know yet; JSON
    quarantine/    kept, but never used: unreadable, or the same UID with other bytes

A file is written under a temporary name, fsynced, renamed, and its directory fsynced; only then
is the sender told. File names are made here, never taken from the wire.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isal.isal_zlib import crc32

from node.dicom import part10
from node.domain.errors import DigestMismatch, SpoolError, SpoolFull
from node.domain.proof import CommitmentReport, FailedInstance
from node.domain.stage import Reached, Stage, unobserved
from node.domain.study import Arrival, Instance
from node.draft import TEMPORARY, Draft, Folder, sync_directory

if TYPE_CHECKING:
    from node.dicom.scp import Received

_NOTE = "job.json"
_BLOCK = 1 << 18
"""Bytes that are collected for one write: it goes on while the sender makes the next ones."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A result object on disk: what is delivered are these bytes and no others."""

    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    path: Path
    sha256: str


class Spool:
    """A directory that keeps objects. Safe to use from several threads."""

    def __init__(
        self,
        root: Path,
        clock: Callable[[], float],
        reached: Reached = unobserved,
        watermark: int = 0,
        fsync: bool = True,
    ) -> None:
        """Open or make the spool under ``root``; ``clock`` gives seconds since the epoch.

        Nothing more is received while the disk has less than ``watermark`` bytes free, so that
        results and the ledger still have room. ``fsync`` is False only in benchmarks.
        """
        self.root = root
        self._clock = clock
        self._reached = reached
        self._watermark = watermark
        self._counter = itertools.count()
        self._run = secrets.token_hex(4)
        for name in ("incoming", "studies", "results", "reports", "quarantine"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._incoming = Folder(root / "incoming", fsync)
        self._blocks: list[memoryview] = []
        sync_directory(root)

    def begin(self, received: Received) -> Arriving:
        """Begin to keep an object whose data set is still to come. Raises SpoolFull, SpoolError."""
        self._check_room()
        now = self._clock()
        name = f"{int(now * 1e6):016d}-{self._run}-{next(self._counter):08d}.dcm"
        arrival = Arrival(
            sop_instance_uid=received.sop_instance_uid,
            sop_class_uid=received.sop_class_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            sha256="",
            peer=received.peer,
            calling_ae=received.calling_ae,
            called_ae=received.called_ae,
            address=received.address,
            received_at=now,
            path=self._incoming.path / name,
        )
        return Arriving(arrival, Draft(self._incoming, name), self._blocks, self._reached)

    def keep(self, received: Received) -> Arrival:
        """Make a received object durable. Raises SpoolFull or SpoolError; then nothing is kept."""
        arriving = self.begin(received)
        arriving.write(memoryview(received.dataset))
        return arriving.finish()

    def keep_report(self, report: CommitmentReport) -> Path:
        """Make a storage commitment report durable. Raises SpoolFull or SpoolError."""
        name = f"{int(self._clock() * 1e6):016d}-{self._run}-{next(self._counter):08d}.json"
        path = self.root / "reports" / name
        _write(path, json.dumps(asdict(report)).encode())
        return path

    def reports(self) -> tuple[Path, ...]:
        """The reports that are kept, oldest first; whoever has entered one removes it."""
        return tuple(sorted((self.root / "reports").glob("*.json")))

    def arrivals(self) -> Iterator[Path]:
        """What is acknowledged and not yet in the ledger, oldest first."""
        yield from sorted(
            path for path in (self.root / "incoming").iterdir() if path.suffix == ".dcm"
        )

    def sweep(self, folder: str) -> int:
        """Remove what was never acknowledged (temporary files of a process that died).

        Only whoever writes into a folder of the spool may sweep it.
        """
        stale = [path for path in (self.root / folder).rglob(f"*{TEMPORARY}") if path.is_file()]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def shelf(self, instance: Instance) -> Path:
        """Where an instance lies once the ledger knows it."""
        study = hashlib.sha256(instance.study_uid.encode()).hexdigest()[:32]
        return self.root / "studies" / study / f"{_digest(instance.key)[:32]}.dcm"

    def shelve(self, arrival: Path, shelf: Path) -> None:
        """Move an arrival to its shelf. Repeating it after a crash is harmless."""
        shelf.parent.mkdir(parents=True, exist_ok=True)
        arrival.replace(shelf)

    def aside(self, arrival: Path) -> Path:
        """Where an arrival lies once it is kept aside."""
        return self.root / "quarantine" / arrival.name

    def quarantine(self, arrival: Path, reason: str) -> Path:
        """Keep an arrival aside, with the reason beside it."""
        place = self.aside(arrival)
        place.with_suffix(".txt").write_text(reason + "\n")
        arrival.replace(place)
        return place

    def release(self, place: Path) -> Path:
        """Put what was kept aside back among the arrivals. Raises SpoolError when it is gone."""
        arrival = self.root / "incoming" / place.name
        try:
            place.replace(arrival)
        except OSError as error:
            raise SpoolError(f"{place.name} cannot be released: {error.strerror}") from error
        sync_directory(arrival.parent)
        place.with_suffix(".txt").unlink(missing_ok=True)
        return arrival

    def discard(self, place: Path) -> None:
        """Remove what was kept aside, for good."""
        place.unlink(missing_ok=True)
        place.with_suffix(".txt").unlink(missing_ok=True)

    def verify(self, path: Path, sha256: str) -> bytes:
        """A result's bytes. Raises DigestMismatch when they are not what was frozen."""
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DigestMismatch(f"{path.name} on disk is not what was frozen; it is not sent")
        return content

    def freeze(self, job: str, kind: str, content: bytes, uids: tuple[str, str]) -> Frozen:
        """Keep a finished object; ``uids`` are its SOP Instance and SOP Class UID."""
        path = self.root / "results" / job / f"{kind}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
        sync_directory(path.parent.parent)
        return Frozen(uids[0], uids[1], kind, path, hashlib.sha256(content).hexdigest())

    def note(self, job: str, content: bytes) -> None:
        """Keep what a job's frozen results are, once they all are. Raises SpoolError."""
        _write(self.root / "results" / job / _NOTE, content)

    def noted(self, job: str) -> bytes | None:
        """What ``note`` kept of a job; None when its results are not all frozen."""
        try:
            return (self.root / "results" / job / _NOTE).read_bytes()
        except FileNotFoundError:
            return None

    def noted_jobs(self) -> tuple[str, ...]:
        """Every job whose results are all frozen."""
        return tuple(sorted(path.parent.name for path in self.root.glob(f"results/*/{_NOTE}")))

    def drop(self, job: str) -> bool:
        """Remove whatever a job has frozen. False when there is nothing."""
        folder = self.root / "results" / job
        if not folder.is_dir():
            return False
        # The note first: without it nothing takes the rest for results.
        (folder / _NOTE).unlink(missing_ok=True)
        shutil.rmtree(folder)
        return True

    def remove(self, files: Sequence[Path]) -> None:
        """Remove studies and results for good, with the folders that become empty."""
        for path in files:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in files}:
            (folder / _NOTE).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something that came since, or is gone
                folder.rmdir()

    def unshelve(self) -> int:
        """Give everything back to the indexer, for a ledger that lost it. Repeating is harmless.

        Names begin with the time of receipt, so the order of arrival is kept.
        """
        count = 0
        for path in sorted(self.shelved()):
            received = int(path.stat().st_mtime * 1e6)
            name = f"{received:016d}-{self._run}-{next(self._counter):08d}.dcm"
            path.replace(self.root / "incoming" / name)
            count += 1
        sync_directory(self.root / "incoming")
        return count

    def shelved(self) -> Iterator[Path]:
        """Every instance on its shelf."""
        return (self.root / "studies").glob("*/*.dcm")

    def kept_aside(self) -> Iterator[tuple[Path, str]]:
        """What is in quarantine, each with the reason beside it."""
        for path in sorted((self.root / "quarantine").glob("*.dcm")):
            reason = path.with_suffix(".txt")
            yield path, reason.read_text().strip() if reason.is_file() else "not known any more"

    def horizon(self, now: float) -> float:
        """Until when all that has arrived is in the ledger: before the oldest that is not.

        While arrivals wait, nobody knows which studies are silent.
        """
        oldest = next(self.arrivals(), None)
        if oldest is None or not oldest.name[:16].isdigit():
            return now
        return min(now, int(oldest.name[:16]) / 1e6)

    def _check_room(self) -> None:
        if not self._watermark:
            return
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize < self._watermark:
            raise SpoolFull("the disk has less room than [scp] watermark_mb: free some")


class Arriving:
    """A received object while its data set comes. Every method raises SpoolFull or SpoolError."""

    def __init__(
        self, arrival: Arrival, draft: Draft, blocks: list[memoryview], reached: Reached
    ) -> None:
        """Made by ``Spool.begin``; ``blocks`` are memory that nobody uses now."""
        self._arrival = arrival
        self._draft = draft
        self._reached = reached
        self._blocks = blocks
        self._crc32 = 0
        # The envelope goes first and has the checksum of what is still to come.
        self._envelope = part10.envelope(arrival, part10.UNKNOWN_CRC)
        self._block = blocks.pop() if blocks else memoryview(bytearray(_BLOCK))
        self._block[: len(self._envelope)] = self._envelope
        self._filled = len(self._envelope)
        self._flushed = 0

    def write(self, fragment: memoryview) -> None:
        """The next bytes of the data set, written whenever a block is full."""
        self._crc32 = crc32(fragment, self._crc32)
        while fragment:
            part = fragment[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == len(self._block):
                self._flush()
            fragment = fragment[len(part) :]

    def look(self) -> AbstractContextManager[memoryview]:
        """The data set as far as it has come; it must have begun."""
        self._flush()
        return self._draft.look(len(self._envelope))

    def finish(self) -> Arrival:
        """Make the object durable, under its name, and say what it is."""
        arrival = self._arrival
        self._reached(Stage.RECEIVED, arrival.sop_instance_uid)
        envelope = part10.sealed(self._envelope, self._crc32)
        if self._flushed:
            self._draft.put(envelope, 0)
        else:
            self._block[: len(envelope)] = envelope
        self._flush()
        self._draft.publish(lambda stage: self._reached(stage, arrival.sop_instance_uid))
        self._give_back()
        self._reached(Stage.BYTES_DURABLE, arrival.sop_instance_uid)
        return arrival

    def discard(self) -> None:
        """Leave nothing of it. Does nothing after ``finish``."""
        self._give_back()
        self._draft.discard()

    def _flush(self) -> None:
        self._draft.put(self._block[: self._filled], self._flushed)
        self._flushed, self._filled = self._flushed + self._filled, 0

    def _give_back(self) -> None:
        if self._block:
            self._blocks.append(self._block)
            self._block = memoryview(b"")


def read_report(path: Path) -> CommitmentReport:
    """What ``Spool.keep_report`` kept. Raises SpoolError when it is damaged."""
    try:
        fields = json.loads(path.read_bytes())
        return CommitmentReport(
            transaction_uid=str(fields["transaction_uid"]),
            committed=tuple(str(uid) for uid in fields["committed"]),
            failed=tuple(FailedInstance(**failure) for failure in fields["failed"]),
            calling_ae=str(fields["calling_ae"]),
        )
    except (ValueError, TypeError, LookupError) as error:
        raise SpoolError(f"the report {path.name} is damaged: remove it") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Durable and atomic, or not at all."""
    draft = Draft(Folder(path.parent), path.name)
    draft.put(content, 0)
    draft.publish(lambda stage: None)
