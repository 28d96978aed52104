"""A failure is told with the stage in which it happened, so that somebody knows where to look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from node.domain.errors import InferenceError


@contextmanager
def blamed(stage: str) -> Iterator[None]:
    """Whatever fails inside becomes an InferenceError that begins with the stage.

    One that is more than that stays what it is: a full device is tried again, a broken model not.
    """
    try:
        yield
    except InferenceError as error:
        raise type(error)(f"{stage}: {error}") from error
    except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise InferenceError(f"{stage}: {type(error).__name__}: {error}") from error
