"""TOML tables become frozen dataclasses, and every wrong key is told at once with its line.

What a table may hold is said by the fields of its dataclass alone; pydantic compares the two, and
this file turns what it says into plain words. It knows no kinds: a family's registry is handed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from node.document import Table, Where
from node.domain.errors import ConfigError, Fault

T = TypeVar("T")

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "string": "text",
    "path": "text (a path)",
    "bool": "true or false",
    "tuple": "an array",
    "list": "an array",
    "set": "an array",
    "frozen_set": "an array",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "dataclass": "a table",
}
"""What pydantic's error types (up to their last word) want, in a reader's words."""

_SHOULD = re.compile(r"^\w+ should")
"""How pydantic begins a rule: "Input should be greater than 0"."""

_UNKNOWN = frozenset({"unexpected_keyword_argument", "extra_forbidden"})
_MISSING = frozenset({"missing", "missing_argument", "missing_keyword_only_argument"})


def build(cls: type[T], table: Table, where: Where) -> T:
    """The table as an instance of a (pydantic or standard) dataclass or model.

    No value is converted: text is not a number, 1.0 is not a whole number. Raises ConfigError with
    one fault for every wrong key: unknown, missing, of a wrong type or out of range. A standard
    dataclass must carry ``__pydantic_config__ = {"extra": "forbid"}`` for its unknown keys to be
    told.
    """
    adapter: TypeAdapter[T] = _adapter(cls)  # type: ignore[arg-type]  # a class is hashable
    try:
        # Strict JSON rules: arrays become tuples and text becomes paths, but "1" is no number.
        return adapter.validate_json(json.dumps(table, default=_as_text), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    schema = adapter.json_schema()
    faults = _faults(details, table, where, schema)
    raise ConfigError(tuple(sorted(faults, key=lambda fault: fault.line)))


@cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    # Making one takes longer than building a hundred tables.
    return TypeAdapter(cls)


def construct(registry: Mapping[str, type[T]], table: Table, where: Where) -> T:
    """The member of a family that the table's ``kind`` names, built from its other keys.

    Raises ConfigError as ``build`` does, and when ``kind`` is missing or unknown.
    """
    kind = table.get("kind")
    if kind is None:
        raise ConfigError((where.at("kind").fault(f"is missing; known kinds: {_list(registry)}"),))
    if not isinstance(kind, str):
        message = f"expected text, got {_got(kind)}; known kinds: {_list(registry)}"
        raise ConfigError((where.at("kind").fault(message),))
    if kind not in registry:
        message = f"there is no kind {kind!r}{meant(kind, registry)}; known kinds: "
        raise ConfigError((where.at("kind").fault(message + _list(registry)),))
    rest = {key: value for key, value in table.items() if key != "kind"}
    return build(registry[kind], rest, where)


def gather(builds: Iterable[Callable[[], T]], known: Iterable[Fault] = ()) -> tuple[T, ...]:
    """The outcome of every build, in order; one ConfigError with the faults of all when any fails.

    ``known`` are faults found by other means. Of several faults at one place the first is told.
    """
    built: list[T] = []
    faults = {(fault.file, fault.path): fault for fault in known}
    for attempt in builds:
        try:
            built.append(attempt())
        except ConfigError as error:
            for fault in error.faults:
                faults.setdefault((fault.file, fault.path), fault)
    if faults:
        in_order = sorted(faults.values(), key=lambda fault: (fault.file, fault.line))
        raise ConfigError(tuple(in_order))
    return tuple(built)


def meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'port'?`` when a known word is close, else nothing."""
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _faults(
    details: Iterable[ErrorDetails], table: Table, where: Where, schema: Mapping[str, Any]
) -> Iterator[Fault]:
    """One fault for each wrong place, in the order in which pydantic met them."""
    expected: dict[Where, list[str]] = {}
    for detail in details:
        place = where.down(_real_steps(detail, table))
        expected.setdefault(place, []).append(_message(detail, schema))
    for place, messages in expected.items():
        # Another arm of the union went further in, and says more.
        if not any(other.inside(place) for other in expected):
            yield place.fault(_joined(messages))


def _joined(messages: list[str]) -> str:
    """The arms of a union fail one by one: ``expected a or b, got c``."""
    arms = [message.removeprefix("expected ").rpartition(", got ") for message in messages]
    if len(arms) > 1 and all(wanted and got == arms[0][2] for wanted, _, got in arms):
        wanted = " or ".join(dict.fromkeys(arm[0] for arm in arms))
        return f"expected {wanted}, got {arms[0][2]}"
    return "; ".join(dict.fromkeys(messages))


def _real_steps(detail: ErrorDetails, table: Table) -> list[str | int]:
    """The location without the names of union arms, which are in no file."""
    steps: list[str | int] = []
    here: object = table
    for position, step in enumerate(detail["loc"], 1):
        last = position == len(detail["loc"])
        if isinstance(here, Mapping) and (step in here or (last and detail["type"] in _MISSING)):
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            continue
        steps.append(step)
    return steps


def _message(detail: ErrorDetails, schema: Mapping[str, Any]) -> str:
    """The error in plain words: what stands there, and what belongs there."""
    kind, value = detail["type"], detail["input"]
    if kind in _MISSING:
        return "is missing, and it has no default"
    if kind in _UNKNOWN:
        key = str(detail["loc"][-1])
        known = known_keys(schema, detail["loc"][:-1])
        return f"unknown key{meant(key, known)} (known: {_list(known)})"
    if kind in ("literal_error", "enum"):
        expected = str(detail.get("ctx", {}).get("expected", ""))
        close = meant(value, _quoted(expected)) if isinstance(value, str) else ""
        return f"expected {expected}, got {_got(value)}{close}"
    wanted = _EXPECTED.get(kind.rsplit("_", 1)[0]) or _EXPECTED.get(kind.split("_", 1)[0])
    if wanted and kind.endswith(("_type", "_parsing", "_from_float", "_exact_type")):
        return f"expected {wanted}, got {_got(value)}"
    if kind in ("value_error", "assertion_error"):
        return detail["msg"].partition(", ")[2]
    # "Tuple should have at least 1 item after validation, not 0"
    rule = _SHOULD.sub("must", detail["msg"].partition(" after validation")[0])
    return f"{rule[0].lower()}{rule[1:]}, got {_got(value)}"


def known_keys(schema: Mapping[str, Any], steps: Iterable[str | int] = ()) -> tuple[str, ...]:
    """The keys that a table at a place may have, from the JSON Schema of the root table."""
    nodes = list(_resolved(schema, schema))
    for step in steps:
        inner = [inner for node in nodes for inner in _children(node, step)]
        # The name of a union arm leads nowhere: it stays at the same place.
        nodes = [node for child in inner for node in _resolved(child, schema)] or nodes
    return tuple(dict.fromkeys(key for node in nodes for key in node.get("properties", {})))


def _resolved(node: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema node itself and everything that it refers to or is composed of."""
    yield node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        yield from _resolved(root["$defs"][name], root)
    for composed in ("anyOf", "oneOf", "allOf"):
        for arm in node.get(composed, ()):
            yield from _resolved(arm, root)


def _children(node: Mapping[str, Any], step: str | int) -> Iterator[Mapping[str, Any]]:
    if isinstance(step, int):
        fixed = node.get("prefixItems", ())
        candidate = fixed[step] if step < len(fixed) else node.get("items")
    else:
        candidate = node.get("properties", {}).get(step, node.get("additionalProperties"))
    if isinstance(candidate, Mapping):
        yield candidate


def _got(value: object) -> str:
    """A value as a reader of TOML would call it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"text {value!r}"
    if isinstance(value, Mapping):
        return "a table"
    return "an array" if isinstance(value, list) else str(value)


def _list(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _quoted(expected: str) -> list[str]:
    """The alternatives in pydantic's ``'a', 'b' or 'c'``."""
    return expected.split("'")[1::2]


def _as_text(value: object) -> str:
    """TOML's dates and times, which JSON has not."""
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"a TOML file holds no {type(value).__name__}")
