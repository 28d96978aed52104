"""How far a computation is when it has several parts: told as one that never goes back.

What is done of what is to do is a fraction; both numbers may change, but it never falls.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with what is done, and with what there is to do: blocks, or parts of equal worth."""


def share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """For part ``number`` of ``count`` that count the same, whatever blocks each of them has."""
    if progress is None or count == 1:
        return progress
    return lambda done, total: progress(number * total + done, count * total)


def rising(progress: Progress | None) -> Progress | None:
    """Tells the most that was reached, where a part has to begin again."""
    if progress is None:
        return None
    reached = (0, 1)

    def told(done: int, total: int) -> None:
        nonlocal reached
        if done * reached[1] >= reached[0] * total:
            reached = (done, total)
        progress(*reached)

    return told
