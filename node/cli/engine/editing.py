"""Changes ``[[engine]]`` tables of a configuration file, and leaves everything else as it is.

What a person has written around the tables (comments, order, empty lines) stays; the file is
replaced at once, with its owner and mode, and only if nobody has changed it meanwhile.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Comment, Item, Table, Whitespace

from node.domain.errors import ConfigError, Fault, NodeError

Values = Mapping[str, Any]


class ConfigurationStays(NodeError):
    """The configuration file could not be replaced; it is as it was."""


def with_engine(text: str, values: Values) -> str:
    """The text with one more ``[[engine]]`` table, behind the last one."""
    document = _parsed(text)
    table = tomlkit.table()
    for key, value in values.items():
        table.add(key, value)
    engines = document.get("engine")
    if engines is None:
        document.append("engine", tomlkit.aot())
        engines = document["engine"]
    engines = _tables(engines)
    if engines:
        # What stands behind the last table is the heading of what follows.
        behind = _cut(engines[-1])
        engines[-1].add(tomlkit.nl())
        engines.append(table)
        _put(engines[-1], behind)
    else:
        engines.append(table)
    return tomlkit.dumps(document)


def with_values(text: str, index: int, values: Values) -> str:
    """The text with other values in the ``[[engine]]`` table of an index, counted from 0."""
    document = _parsed(text)
    table = _tables(document["engine"])[index]
    behind = _cut(table)
    for key, value in values.items():
        table[key] = value
    _put(table, behind)
    return tomlkit.dumps(document)


def without_engine(text: str, index: int) -> str:
    """The text without the ``[[engine]]`` table of an index; what stands behind it stays."""
    document = _parsed(text)
    engines = _tables(document["engine"])
    behind = _cut(engines[index])
    if index:
        above = _cut(engines[index - 1])
        # The empty line between the two goes with the table, what was written there does not.
        _put(engines[index - 1], [one for one in above if isinstance(one, Comment)] and above)
        _put(engines[index - 1], behind)
    elif len(engines) == 1:
        before = _before(document, engines)
        document.remove("engine")
        _put(before, behind)
    if len(engines) > 1:
        del engines[index]
    return tomlkit.dumps(document)


def _before(document: tomlkit.TOMLDocument, engines: AoT) -> Table:
    """The table that stands before the engines. Raises ConfigError where there is none."""
    items = [item for _, item in document.body]
    place = next(number for number, item in enumerate(items) if item is engines)
    for item in reversed(items[:place]):
        if isinstance(item, AoT) and item:
            return item[-1]
        if isinstance(item, Table):
            return item
    message = "nothing stands before the [[engine]] table; take it away by hand"
    raise ConfigError((Fault("engine", message),))


def difference(before: str, after: str, path: Path) -> str:
    """What is different, as ``diff -u`` shows it."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(path), f"{path} (new)", lineterm="", n=1
    )
    return "\n".join(lines)


def replace_file(path: Path, before: str, after: str) -> None:
    """Exchange a file's text, with its owner and mode, at once. Raises ConfigurationStays."""
    place = path.resolve()
    try:
        status = place.stat()
        descriptor, name = mkstemp(prefix=f".{place.name}-", dir=place.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(after)
                file.flush()
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
                _own(file.fileno(), status)
                os.fsync(file.fileno())
            _refuse_changed(place, before)
            Path(name).replace(place)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationStays(
            f"{place} cannot be replaced: {error.strerror or error}. Nothing was changed; run the "
            f"command as the owner of the file"
        ) from error


def _own(descriptor: int, status: os.stat_result) -> None:
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _refuse_changed(path: Path, before: str) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        if file.read() != before:
            raise ConfigurationStays(
                f"{path} was changed by somebody else meanwhile; nothing was written. Try again"
            )


def _parsed(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError((Fault("engine", f"the file cannot be edited: {error}"),)) from error


def _tables(engines: object) -> AoT:
    if isinstance(engines, AoT):
        return engines
    message = "the engines do not stand in [[engine]] tables, so they cannot be edited: write such"
    raise ConfigError((Fault("engine", message),))


def _cut(table: Table) -> list[Item]:
    """Take away what stands behind a table's last value, from the first empty line on."""
    body = _last(table).value.body
    trivia = len(body)
    while trivia and body[trivia - 1][0] is None and _is_trivia(body[trivia - 1][1]):
        trivia -= 1
    blank = next(
        (at for at in range(trivia, len(body)) if isinstance(body[at][1], Whitespace)), len(body)
    )
    behind = [item for _, item in body[blank:]]
    del body[blank:]
    return behind


def _put(table: Table, behind: list[Item]) -> None:
    for item in behind:
        _last(table).value.body.append((None, item))


def _last(table: Table) -> Table:
    """The table itself, or the last of the tables in it, behind which everything stands."""
    inner = [item for _, item in table.value.body if isinstance(item, Table)]
    return _last(inner[-1]) if inner else table


def _is_trivia(item: Item) -> bool:
    return isinstance(item, Comment | Whitespace)
