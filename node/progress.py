"""How far a computation is when it has several parts: told as one that never goes back."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the blocks done and the blocks to do."""


def share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """For part ``number`` of ``count`` that have equally many blocks."""
    if progress is None or count == 1:
        return progress
    return lambda done, total: progress(number * total + done, count * total)


class Relay:
    """Tells the first of two parts, and remembers how much that was for the second."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """The first part tells."""
        self._done = done
        if self._progress:
            self._progress(done, total)

    def further(self, done: int, total: int) -> None:
        """The second part tells: now there is more to do than the first part knew."""
        if self._progress:
            self._progress(self._done + done, self._done + total)
