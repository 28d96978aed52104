"""A file that is not there yet: written under a temporary name, and there at once or not at all.

Durable means: the bytes are fsynced, then renamed to their name, then the folder is fsynced. Only
after all three does ``publish`` return, and only then may anybody be told.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.domain.errors import SpoolError, SpoolFull
from node.domain.stage import Stage

TEMPORARY = ".part"
"""The end of a temporary name."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Folder:
    """A folder whose entries are made durable. Safe to use from several threads.

    One fsync serves everybody who renamed before it began, so that many associations at the same
    time cost hardly more than one.
    """

    def __init__(self, path: Path, sync: bool = True) -> None:
        """``sync`` is False only where a benchmark measures what durability costs."""
        self.path = path
        self.durable = sync
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._begun = 0
        self._done = 0

    def sync(self) -> None:
        """Make every rename into this folder durable that came before. Raises OSError."""
        if not self.durable:
            return
        with self._lock:
            needed = self._begun + 1
        with self._turn:
            if self._done >= needed:
                return
            with self._lock:
                self._begun += 1
            sync_directory(self.path)
            self._done = self._begun


class Draft:
    """One file of a folder while it is written. Every method raises SpoolFull or SpoolError."""

    def __init__(self, folder: Folder, name: str) -> None:
        """Create it under its temporary name."""
        self._folder = folder
        self._path = folder.path / name
        self._temporary = folder.path / (name + TEMPORARY)
        self._descriptor = -1
        flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC
        with self._explained():
            self._descriptor = os.open(self._temporary, flags, 0o666)

    def put(self, content: bytes | memoryview, at: int) -> None:
        """Write bytes at an offset."""
        try:
            written = os.pwrite(self._descriptor, content, at)
            while written < len(content):
                more = os.pwrite(self._descriptor, memoryview(content)[written:], at + written)
                written += more
        except OSError as error:
            raise self._failed(error) from error

    @contextmanager
    def look(self, begin: int) -> Iterator[memoryview]:
        """What was written from an offset on, to be read only."""
        with self._explained():
            size = os.fstat(self._descriptor).st_size
            mapped = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        with mapped, memoryview(mapped) as everything, everything[begin:] as view:
            yield view

    def publish(self, reached: Callable[[Stage], object]) -> None:
        """Make it durable under its name; every step on the way is told."""
        with self._explained():
            reached(Stage.BYTES_WRITTEN)
            if self._folder.durable:
                os.fsync(self._descriptor)
            reached(Stage.BYTES_SYNCED)
            self._close()
            self._temporary.replace(self._path)
            reached(Stage.BYTES_NAMED)
            self._folder.sync()

    def discard(self) -> None:
        """Leave nothing of it. Does nothing once it is published."""
        if self._descriptor >= 0:
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the operating system in our words; nothing is left behind then."""
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SpoolError:
        with suppress(OSError):
            self.discard()
            self._temporary.unlink(missing_ok=True)
        kind = SpoolFull if error.errno in _FULL else SpoolError
        return kind(
            f"the spool could not write {self._path.parent.name}/{self._path.name}: "
            f"{error.strerror}"
        )


def sync_directory(path: Path) -> None:
    """Make the entries of a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
