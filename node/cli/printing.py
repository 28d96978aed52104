"""How commands speak: results on standard output, complaints on standard error, JSON when asked.

With ``--json`` standard output holds one JSON document and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from rich.console import Console, RenderableType

from node.domain.errors import NodeError


def output() -> Console:
    """Standard output as it is now (tests and pipes replace it)."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def complaints() -> Console:
    """Standard error as it is now."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def emit(value: object, as_json: bool, shown: RenderableType | None = None) -> None:
    """Print a result: ``value`` as JSON, else ``shown`` (without it, the value as text).

    Dataclasses become objects, paths and dates text; a mapping is shown as one line per key.
    """
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")
    elif shown is not None:
        output().print(shown)
    else:
        say(_text(value))


def say(text: str) -> None:
    """Print a line as it is, brackets and all."""
    output().print(text)


def local_time(at: float) -> str:
    """Seconds since the epoch as this machine's clock on the wall shows them."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def complain(error: NodeError | str) -> None:
    """Print an error on standard error."""
    complaints().print(str(error))


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        width = max((len(str(key)) for key in value), default=0)
        return "\n".join(f"{key!s:<{width}}  {entry}" for key, entry in value.items())
    return str(value)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
