"""The spool: everything that was received or made, on disk before anybody is told so.

::

    incoming/      acknowledged, not yet in the ledger; one Part 10 file each
    studies/       in the ledger; <study>/<instance>.dcm, named by digests
    results/       <job>/<name>.dcm, frozen before the first delivery
    quarantine/    kept, but never used: unreadable, or the same UID with other bytes

A file is written under a temporary name, fsynced, renamed, and its directory fsynced; only then
is the sender told. File names are made here, never taken from the wire.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.dicom import part10
from node.domain.errors import DigestMismatch, SpoolError, SpoolFull
from node.domain.stage import Reached, Stage, unobserved
from node.domain.study import Arrival, Instance

if TYPE_CHECKING:
    from node.dicom.scp import Received

_TEMPORARY = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        self, root: Path, clock: Callable[[], float], reached: Reached = unobserved
    ) -> None:
        """Open or make the spool under ``root``; ``clock`` gives seconds since the epoch."""
        self.root = root
        self._clock = clock
        self._reached = reached
        self._counter = itertools.count()
        self._run = secrets.token_hex(4)
        for name in ("incoming", "studies", "results", "quarantine"):
            (root / name).mkdir(parents=True, exist_ok=True)
        _sync_directory(root)

    def keep(self, received: Received) -> Arrival:
        """Make a received object durable. Raises SpoolFull or SpoolError; then nothing is kept."""
        now = self._clock()
        name = f"{int(now * 1e6):016d}-{self._run}-{next(self._counter):08d}.dcm"
        arrival = Arrival(
            sop_instance_uid=received.sop_instance_uid,
            sop_class_uid=received.sop_class_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            sha256=hashlib.sha256(received.dataset).hexdigest(),
            peer=received.peer,
            calling_ae=received.calling_ae,
            called_ae=received.called_ae,
            address=received.address,
            received_at=now,
            path=self.root / "incoming" / name,
        )
        written = self._observed(Stage.BYTES_WRITTEN, arrival.sop_instance_uid)
        _write(arrival.path, (part10.envelope(arrival), received.dataset), written)
        self._reached(Stage.BYTES_DURABLE, arrival.sop_instance_uid)
        return arrival

    def arrivals(self) -> Iterator[Path]:
        """What is acknowledged and not yet in the ledger, oldest first."""
        yield from sorted(
            path for path in (self.root / "incoming").iterdir() if path.suffix == ".dcm"
        )

    def sweep(self) -> int:
        """Remove what was never acknowledged (temporary files of a process that died)."""
        stale = [path for path in self.root.rglob(f"*{_TEMPORARY}") if path.is_file()]
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

    def quarantine(self, arrival: Path, reason: str) -> Path:
        """Keep an arrival aside, with the reason beside it."""
        place = self.root / "quarantine" / arrival.name
        place.with_suffix(".txt").write_text(reason + "\n")
        arrival.replace(place)
        return place

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
        _write(path, (content,), lambda: None)
        _sync_directory(path.parent.parent)
        return Frozen(uids[0], uids[1], kind, path, hashlib.sha256(content).hexdigest())

    def _observed(self, stage: Stage, subject: str) -> Callable[[], None]:
        return lambda: self._reached(stage, subject)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, parts: Sequence[bytes | memoryview], written: Callable[[], None]) -> None:
    """Durable and atomic, or not at all. Calls ``written`` before the first fsync."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with temporary.open("wb", buffering=0) as stream:
            for part in parts:
                _write_all(stream.fileno(), part)
            written()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kind = SpoolFull if error.errno in _FULL else SpoolError
        raise kind(
            f"the spool could not write {path.parent.name}/{path.name}: {error.strerror}"
        ) from error


def _write_all(descriptor: int, part: bytes | memoryview) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
