"""Bells: one process tells another that there is work, so that nobody polls.

A bell is a named pipe with one byte in it. Ringing never blocks and never fails: a bell that nobody
hears loses nothing, for whoever it rings for looks into the ledger every few seconds anyway.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

_PAUSE_S = 0.05
"""Seconds in which rings are heard as one: a sender may ring a thousand times a second."""


class Bell:
    """A bell at a path. Any process may ring it; one listens."""

    def __init__(self, path: Path) -> None:
        """Make the pipe where there is none."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_fifo():
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)

    def ring(self) -> None:
        """Wake the listener, if there is one and it was not rung for already."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return  # nobody listens now
        try:
            os.write(descriptor, b"!")
        except BlockingIOError:
            return  # rung so often that the pipe is full
        finally:
            os.close(descriptor)

    def listen(self) -> Ear:
        """Begin to hear the bell."""
        return Ear(self._path)


class Ear:
    """The listening end of a bell."""

    def __init__(self, path: Path) -> None:
        """Open the pipe for both directions, so that it stays open when the last ringer goes."""
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._closed, self._closing = os.pipe()

    def run(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` after each ring (several at once count as one) until ``close``."""
        while True:
            ready, _, _ = select.select([self._pipe, self._closed], [], [])
            if self._closed in ready:
                break
            os.read(self._pipe, 4096)
            heard()
            if select.select([self._closed], [], [], _PAUSE_S)[0]:
                break
        for descriptor in (self._pipe, self._closed):
            os.close(descriptor)

    def close(self) -> None:
        """End ``run``."""
        os.close(self._closing)
