"""TOML files, with the line of every key.

``tomllib`` keeps no positions, and a wrong key without its line sends a person searching; so the
text is read a second time for the places of its keys. The configuration and the engine manifests
are both read here.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from node.domain.errors import ConfigError, Fault

Table = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file: ``path`` is dotted with list indices, e.g. ``peer[1].port``.

    ``lines`` maps every path of the file to its line (from 1). ``Where()`` is the place of a table
    that came from no file.
    """

    file: str = ""
    path: str = ""
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    def at(self, key: str) -> Where:
        """The place of a key of this table."""
        return replace(self, path=f"{self.path}.{key}" if self.path else key)

    def item(self, index: int) -> Where:
        """The place of an element of this array, counted from 0."""
        return replace(self, path=f"{self.path}[{index}]")

    def down(self, steps: Iterable[str | int]) -> Where:
        """The place several keys and indices further in."""
        where = self
        for step in steps:
            where = where.item(step) if isinstance(step, int) else where.at(step)
        return where

    def inside(self, other: Where) -> bool:
        """Whether this place lies within another one of the same file."""
        rest = self.path.removeprefix(other.path)
        return rest != self.path and rest.startswith((".", "["))

    @property
    def line(self) -> int:
        """The line of this place, or of the table around it when the key is absent; 0 unknown."""
        path = self.path
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0)

    def fault(self, message: str) -> Fault:
        """What is wrong here."""
        return Fault(self.path or "(whole file)", message, self.line, self.file)


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file as read: its root table, and where that stands."""

    table: Table
    where: Where


def read(path: Path, remedy: str = "`ai-node init DIR` writes a commented one") -> Document:
    """Read a TOML file with the lines of its keys.

    Raises ConfigError when it is absent (``remedy`` says what to do then), cannot be read, or is
    not TOML; the fault names the line and the column.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        message = f"there is no such file; {remedy}"
    except OSError as error:
        message = f"the file cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8 text (byte {error.start}); save it as UTF-8"
    raise ConfigError((Fault("(whole file)", message, 0, str(path)),))


def parse(text: str, file: str = "") -> Document:
    """The same for text in memory; ``file`` only names it in faults."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((_syntax_fault(str(error), text, file),)) from None
    return Document(table, Where(file, "", _Index(text).lines()))


def _syntax_fault(message: str, text: str, file: str) -> Fault:
    """tomllib tells the place inside its message only."""
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    if found:
        reason, line, column = found[1], int(found[2]), found[3]
    else:
        reason, line, column = message, text.rstrip("\n").count("\n") + 1, "the end"
    return Fault("(TOML)", f"not valid TOML at column {column}: {reason}", line, file)


_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<text>\"{3}(?:\\.|[^\\])*?\"{3}\"{0,2}|'{3}.*?'{3}'{0,2}
        |"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    |(?P<mark>[][{},=.])
    |(?P<bare>[^][{},=.\s\#"']+)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


class _Index:
    """The lines of all keys of a text that ``tomllib`` has accepted."""

    def __init__(self, text: str) -> None:
        self._tokens = tuple(_tokens(text))
        self._next = 0
        self._lines: dict[str, int] = {"": 1}
        self._counts: dict[str, int] = {}

    def lines(self) -> Mapping[str, int]:
        """Line of every path, from 1."""
        prefix = ""
        while self._skip_newlines():
            if self._accept("["):
                prefix = self._header()
            else:
                self._pair(prefix)
        return self._lines

    def _header(self) -> str:
        """``[a.b]`` or ``[[a.b]]`` after its first bracket: the path of the table it opens."""
        line = self._peek().line
        repeated = self._accept("[")
        *parents, last = self._key()
        path = ""
        for key in parents:
            path = self._latest(_join(path, key))
        path = _join(path, last)
        self._lines.setdefault(path, line)
        if repeated:
            self._counts[path] = self._counts.get(path, 0) + 1
        path = self._latest(path)
        self._lines[path] = line
        while self._accept("]"):
            pass
        return path

    def _latest(self, path: str) -> str:
        """Where a header's key is an array of tables, its last element is meant."""
        return f"{path}[{self._counts[path] - 1}]" if path in self._counts else path

    def _pair(self, prefix: str) -> None:
        line = self._peek().line
        path = prefix
        for key in self._key():
            path = _join(path, key)
            self._lines.setdefault(path, line)
        self._accept("=")
        self._value(path)

    def _key(self) -> list[str]:
        keys = [_unquoted(self._take())]
        while self._accept("."):
            keys.append(_unquoted(self._take()))
        return keys

    def _value(self, path: str) -> None:
        if self._accept("["):
            self._array(path)
        elif self._accept("{"):
            self._inline(path)
        else:
            while self._next < len(self._tokens) and not self._at_end_of_scalar():
                self._next += 1

    def _at_end_of_scalar(self) -> bool:
        token = self._peek()
        return token.kind == "newline" or (token.kind == "mark" and token.text in ",]}")

    def _array(self, path: str) -> None:
        index = 0
        while self._skip_newlines() and not self._accept("]"):
            self._lines[f"{path}[{index}]"] = self._peek().line
            self._value(f"{path}[{index}]")
            index += 1
            self._skip_newlines()
            self._accept(",")

    def _inline(self, path: str) -> None:
        while self._skip_newlines() and not self._accept("}"):
            self._pair(path)
            self._skip_newlines()
            self._accept(",")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _accept(self, mark: str) -> bool:
        if self._next >= len(self._tokens):
            return False
        token = self._peek()
        accepted = token.kind == "mark" and token.text == mark
        self._next += accepted
        return accepted

    def _skip_newlines(self) -> bool:
        """Whether anything is left after the blank lines."""
        while self._next < len(self._tokens) and self._peek().kind == "newline":
            self._next += 1
        return self._next < len(self._tokens)


def _tokens(text: str) -> Iterator[_Token]:
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or ""
        if kind != "blank":
            yield _Token(kind, found.group(), bisect_right(starts, found.start()))


def _unquoted(token: _Token) -> str:
    if token.kind != "text":
        return token.text
    return str(tomllib.loads(f"key = {token.text}")["key"])


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
