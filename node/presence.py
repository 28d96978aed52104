"""Which parts of the node are there: each holds a lock on a file for as long as it lives.

The kernel gives the lock back when a process ends, however it ends, so nobody has to guess from
old heartbeats whether a worker is dead or only slow.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.domain.errors import NodeError

_TRIES = 250
_BETWEEN_S = 0.02


class AlreadyPresent(NodeError):
    """Another process of this node has this name."""


class Presence:
    """The locks of one node, in a folder on a local disk."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where there is none."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Be present under a name. Raises AlreadyPresent when another is."""
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked_soon(descriptor):
                raise AlreadyPresent(
                    f"a {name} of this node runs already: stop it first, or give this one another "
                    "name or another state folder"
                )
            yield
        finally:
            os.close(descriptor)

    def names(self) -> frozenset[str]:
        """Who is present now."""
        return frozenset(path.name for path in self._folder.iterdir() if _is_held(path))


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not _locked(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _locked_soon(descriptor: int) -> bool:
    # A look takes the lock for an instant, and a process that was killed gives it back in a moment.
    for _ in range(_TRIES):
        if _locked(descriptor):
            return True
        time.sleep(_BETWEEN_S)
    return False


def _locked(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock if nobody has it. A look is a shared lock, so that two lookers see nobody."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
