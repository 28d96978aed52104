"""What is different in another configuration, in words, and what of it a running node can take up.

A reload (SIGHUP) shows the difference before it does anything. Elements of arrays of tables are
told apart by name, so that one more peer is one more peer and not a change of all behind it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from node.config import Config, Entry

HIDDEN = "(hidden)"
_SECRET = re.compile(r"password|passphrase|secret|token|credential", re.IGNORECASE)
_PASSWORD_OF_URL = re.compile(r"(?<=://)[^/@]*@")

_LIVE = (
    # Peers and where results go are looked up each time.
    re.compile(r"peer .+"),
    re.compile(r"destination (?P<name>.+?)\.(?!kind$).+"),
    re.compile(r"trigger .+\.(quiet_period_s|deadline_s)"),
    re.compile(r"logging\.level"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value is another one; None: it is not in that configuration.

    ``path`` is ``section.key``, or ``peer NAME.key`` for a table of an array.
    """

    path: str
    before: str | None
    after: str | None

    @property
    def words(self) -> str:
        """The change in one line, e.g. ``peer pacs.port: 104 becomes 11112``."""
        if self.before is None:
            return f"{self.path}: {self.after} is new"
        if self.after is None:
            return f"{self.path}: {self.before} is gone"
        return f"{self.path}: {self.before} becomes {self.after}"


@dataclass(frozen=True, slots=True)
class Reloadable:
    """Changes that a running node takes up, and those for which it must start anew."""

    now: tuple[Change, ...]
    restart: tuple[Change, ...]


def difference(old: Config, new: Config) -> tuple[Change, ...]:
    """Every key that differs, in the order of the file; values of secrets are hidden.

    A secret that changed is still told, as ``(hidden) becomes (hidden)``.
    """
    before, after = _keys(old), _keys(new)
    return tuple(
        Change(path, _shown(path, before.get(path)), _shown(path, after.get(path)))
        for path in dict.fromkeys((*before, *after))
        if before.get(path) != after.get(path)
    )


def reloadable(changes: Sequence[Change]) -> Reloadable:
    """What can be applied at once: peers, destinations' options, quiet periods, logging level.

    A destination that is new or gone wants a restart, for its courier is a loop of its own.
    """
    kinds = [change.path for change in changes if _is_kind(change)]
    entered = tuple(path.removesuffix("kind") for path in kinds)
    now = [
        change
        for change in changes
        if any(live.fullmatch(change.path) for live in _LIVE)
        and not (change.path.startswith("destination ") and change.path.startswith(entered))
    ]
    return Reloadable(tuple(now), tuple(change for change in changes if change not in now))


def keys_digests(config: Config, salt: str) -> dict[str, str]:
    """A digest for each key, by which a later start can tell which keys changed meanwhile."""
    return {path: _digest(salt + value) for path, value in _keys(config).items()}


def digest(config: Config) -> str:
    """One digest for the whole configuration (sha256, hexadecimal)."""
    return _digest(json.dumps(_keys(config)))


def changed_keys(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """The paths at which two answers of ``keys_digests`` differ."""
    paths = dict.fromkeys((*before, *after))
    return tuple(path for path in paths if before.get(path) != after.get(path))


def _is_kind(change: Change) -> bool:
    return change.path.startswith("destination ") and change.path.endswith(".kind")


def _keys(config: Config) -> dict[str, str]:
    return dict(_walk("", config))


def _walk(path: str, value: object) -> Iterator[tuple[str, str]]:
    for name, member in _members(value):
        place = f"{path}.{name}" if path else name
        if isinstance(member, Mapping) or is_dataclass(member):
            yield from _walk(place, member)
        elif _is_array(member):
            yield from _array(place, member)
        else:
            yield place, _plain(member)


def _members(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Entry):
        yield "kind", value.kind
        yield from value.table.items()
    elif isinstance(value, Mapping):
        yield from value.items()
    elif is_dataclass(value):
        for field in fields(value):
            yield field.name, getattr(value, field.name)


def _array(path: str, tables: object) -> Iterator[tuple[str, str]]:
    assert isinstance(tables, tuple)  # noqa: S101 - as ``_is_array`` found it
    for table in tables:
        name = getattr(table, "name", "") or getattr(table, "package", "")
        # "peers" is [[peer]] in the file, and so on.
        yield from _walk(f"{path.removesuffix('s')} {name}", table)


def _is_array(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value, default=str, ensure_ascii=False)


def _shown(path: str, value: str | None) -> str | None:
    if value is None:
        return None
    if _SECRET.search(path.rpartition(".")[2]):
        return HIDDEN
    return _PASSWORD_OF_URL.sub(f"{HIDDEN}@", value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
