"""What the node writes to standard error: structured lines, and never a header's value.

An exception that nobody foresaw may carry a value in its text (``invalid literal for float(): ...``
quotes what it was given), and so may its traceback's locals. So of such an exception the type and
the places are written, and the text only of our own errors, which are written for readers.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import structlog

from node.config import LoggingSection
from node.domain.errors import NodeError

_QUOTING = ("pydicom", "pynetdicom")
"""Libraries whose log messages quote header values or the text of exceptions. Whatever of theirs
matters, our own errors say."""


def configure(section: LoggingSection) -> None:
    """Structured lines on standard error; JSON where nobody looks on."""
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", module="highdicom")
    level = getattr(logging, section.level.upper())
    text = section.format == "text" or (section.format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            exception_without_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A line is one write: several processes share standard error.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    quieten()


def quieten() -> None:
    """What other libraries log goes to standard error too, under the same rule."""
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    root = logging.getLogger()
    if not any(isinstance(one, _Others) for one in root.handlers):
        root.addHandler(_Others(logging.WARNING))


def guard() -> None:
    """An exception that ends this process is written as every other is. Only for a program."""
    sys.excepthook = _last_words


class _Others(logging.Handler):
    """Writes what other libraries log."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(Plain("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


class Plain(logging.Formatter):
    """Lines of the standard library's logging, with exceptions as ``told`` tells them."""

    def formatException(self, ei: object) -> str:  # noqa: N802 - the library's name
        """The exception of a record."""
        error = ei[1] if isinstance(ei, tuple) else None
        return told(error) if isinstance(error, BaseException) else ""


def exception_without_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Processor: ``exc_info`` becomes ``exception``, as ``told`` tells it."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        event["exception"] = told(error)
    return event


def told(error: BaseException) -> str:
    """An exception and its causes: types, places, and the words of our own errors."""
    return "; caused by ".join(
        f"{_name(one)} at {' < '.join(_places(one)) or 'unknown place'}" for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(16):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _name(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name} ({error})" if isinstance(error, NodeError) else name


def _places(error: BaseException) -> list[str]:
    """The innermost first, at most ten."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(frames)][:10]


def _last_words(kind: type[BaseException], error: BaseException, _at: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("ended by an error that nobody foresaw", exc_info=error)
