"""A proposal for an engine package: what an import has understood of a trained model.

Every import ends here, so that all of them write the manifest in the same order and mark what they
have guessed in the same way. A guess is not a fault: the data scientist reads it, corrects it or
takes the mark away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUESSED = "# guessed"
"""The mark behind every value that the model itself does not state."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A value that the model does not state; ``why`` is written behind it."""

    value: Any
    why: str = ""


Rows = Mapping[str, Any]
"""The keys of a TOML table in their order; a value may be a ``Guess``."""


@dataclass(frozen=True, slots=True)
class Block:
    """One table of the manifest: ``[name]``, or ``[[name]]`` where ``many``.

    ``comment`` is written above it.
    """

    name: str
    rows: Rows
    many: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An engine package that does not exist yet.

    ``files`` are the package's files by name and where each lies now; ``texts`` are those that are
    written anew. ``notes`` say what the reader has to know or do before the engine can be enabled.
    """

    name: str
    blocks: Sequence[Block]
    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def manifest(self) -> str:
        """The text of ``engine.toml``."""
        return "\n".join("\n".join(_lines(block)) + "\n" for block in self.blocks)

    def guesses(self) -> tuple[str, ...]:
        """Every guessed key with the reason, as ``window.mode: why``."""
        return tuple(
            f"{block.name}.{key}: {value.why}" if value.why else f"{block.name}.{key}"
            for block in self.blocks
            for key, value in block.rows.items()
            if isinstance(value, Guess)
        )


def _lines(block: Block) -> Iterator[str]:
    yield from (f"# {_plain(line)}" for line in block.comment.splitlines())
    yield f"[[{block.name}]]" if block.many else f"[{block.name}]"
    for key, value in block.rows.items():
        if isinstance(value, Guess):
            why = f": {_plain(value.why)}" if value.why else ""
            yield f"{key} = {toml(value.value)}  {GUESSED}{why}"
        else:
            yield f"{key} = {toml(value)}"


def _plain(words: str) -> str:
    """Words as a comment may hold them: a model's own names could begin a line of the manifest."""
    return "".join(sign if sign.isprintable() else " " for sign in words)


def toml(value: Any) -> str:
    """A value as TOML writes it: text, numbers, truth, lists and inline tables."""
    if isinstance(value, str):
        whole = value.encode(errors="replace").decode()  # JSON has halves of characters
        return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(one) for one in value)}]"
    return repr(value)
