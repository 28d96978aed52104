"""A MONAI bundle's configuration, resolved as far as that needs no code of anybody's.

MONAI builds Python objects of such a file and runs its expressions. Here a component stays a name
with options, a reference is followed, and of expressions only those of ``expression`` are read.
Values are resolved when they are asked for: what the network's input does not depend on (lists of
files, training, the saving of results) is never looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.domain.errors import ImportRefused
from node.monai.expression import NotUnderstood, evaluate
from node.monai.parcel import Parcel

MOST_VALUES = 100_000
"""Values that are resolved of one bundle: more than any has, and an end to circles."""
DEEPEST = 60
"""References and tables in one another."""

Table = Mapping[str, Any]

_CLASS = "_target_"  # MONAI's key for the class of a component
_OWN = {_CLASS, "_disabled_", "_requires_", "_desc_", "_mode_"}
_REFERENCE = re.compile(r"@\w+(?:(?:::|#)\w+)*")
_RELATIVE = re.compile(r"(?<=[@%])(?:::|#)+")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that stays unknown: the text that stands in the file, and why it was not read."""

    text: str
    why: str

    def __str__(self) -> str:
        return f"{self.text!r} ({self.why})"


@dataclass(frozen=True, slots=True)
class Component:
    """An object that MONAI would build: its class as it is written, and its options.

    ``place`` says where it stands, as ``preprocessing::transforms::3``.
    """

    name: str
    place: str
    options: Mapping[str, Any]

    @property
    def short(self) -> str:
        """The class's own name, for classes of MONAI however they are written."""
        module, _, name = self.name.rpartition(".")
        return name if not module or module.split(".")[0] == "monai" else self.name

    def __str__(self) -> str:
        return f"{self.place}: {self.short}"


@dataclass(eq=False)
class Workflow:
    """A configuration file of a bundle, and the others beside it that it may quote."""

    name: str
    table: Table
    parcel: Parcel
    _left: int = field(default=MOST_VALUES, repr=False)
    _quoted: dict[str, Table] = field(default_factory=dict, repr=False)

    def has(self, place: str) -> bool:
        """Whether there is a value at a place."""
        return not isinstance(self._raw(self.table, place), Unknown)

    def at(self, place: str) -> Any:
        """The value at a place such as ``inferer::roi_size``, resolved.

        Plain values, lists, tables and ``Component``; ``Formula`` for a function; ``Unknown`` for
        what is not read or is not there; None for a component that is disabled.
        """
        return self._followed(place, ())

    def _followed(self, place: str, trail: tuple[str, ...]) -> Any:
        if place in trail:
            return Unknown(f"@{place}", "it refers to itself")
        raw = self._raw(self.table, place)
        if isinstance(raw, Unknown) and "::" in place:
            return self._below(place, trail)
        return self._resolved(raw, place, (*trail, place))

    def _below(self, place: str, trail: tuple[str, ...]) -> Any:
        """A value inside of one that itself is a reference or an expression."""
        outer, _, key = place.rpartition("::")
        found = self._followed(outer, (*trail, place))
        if isinstance(found, Component):
            found = found.options
        return found if isinstance(found, Unknown) else _entry(found, key, place)

    def _raw(self, table: Any, place: str) -> Any:
        found = table
        for key in place.split("::") if place else ():
            found = _entry(found, key, place)
        return found

    def _resolved(self, raw: Any, place: str, trail: tuple[str, ...]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ImportRefused(f"{self.name}: more than {MOST_VALUES} values; is it a circle?")
        if len(trail) > DEEPEST or place.count("::") > DEEPEST:
            return Unknown(f"@{place}", "too many references or tables in one another")
        if isinstance(raw, str):
            return self._text(raw, place, trail)
        if isinstance(raw, Mapping):
            return self._mapping(raw, place, trail)
        if isinstance(raw, list):
            return list(self._listed(raw, place, trail))
        return raw

    def _text(self, raw: str, place: str, trail: tuple[str, ...]) -> Any:
        text = _absolute(raw, place)
        if text.startswith("%"):
            return self._macro(text, place, trail)
        if text.startswith("$"):
            return self._expression(text, trail)
        if _REFERENCE.fullmatch(text):
            return self._followed(text[1:].replace("#", "::"), trail)
        return raw

    def _expression(self, text: str, trail: tuple[str, ...]) -> Any:
        def look_up(reference: str) -> Any:
            found = self._followed(reference, trail)
            if isinstance(found, Unknown):
                raise NotUnderstood(f"@{reference} is {found.why}")
            return found

        try:
            return evaluate(text[1:], look_up)
        except NotUnderstood as error:
            return Unknown(text, str(error))

    def _macro(self, text: str, place: str, trail: tuple[str, ...]) -> Any:
        """What ``%key`` or ``%other.json::key`` quotes: that very text, resolved where it stands.

        MONAI reads such a path from where it was started, which is the bundle's folder.
        """
        path, found, key = _split(text[1:])
        if not path:
            quoted = self._raw(self.table, key)
        else:
            table = self._other(path)
            quoted = table if isinstance(table, Unknown) else self._raw(table, key if found else "")
        if isinstance(quoted, Unknown):
            return Unknown(text, quoted.why)
        return self._resolved(quoted, place, (*trail, text))

    def _other(self, path: str) -> Table | Unknown:
        plain = path.removeprefix("./")
        for name in (plain, f"configs/{plain}"):
            if name in self.parcel.files:
                if name not in self._quoted:
                    self._quoted[name] = read_table(self.parcel, name)
                return self._quoted[name]
        return Unknown(path, f"there is no file {path} in the bundle")

    def _mapping(self, raw: Table, place: str, trail: tuple[str, ...]) -> Any:
        if _CLASS not in raw:
            return {key: self._inner(raw, key, place, trail) for key in raw}
        if _disables(self._inner(raw, "_disabled_", place, trail)):
            return None
        options = {key: self._inner(raw, key, place, trail) for key in raw if key not in _OWN}
        name = self._inner(raw, _CLASS, place, trail)
        return Component(str(name), place, options)

    def _inner(self, raw: Table, key: str, place: str, trail: tuple[str, ...]) -> Any:
        return self._resolved(raw.get(key), f"{place}::{key}" if place else str(key), trail)

    def _listed(self, raw: list[Any], place: str, trail: tuple[str, ...]) -> Iterator[Any]:
        for index, one in enumerate(raw):
            value = self._resolved(one, f"{place}::{index}", trail)
            if value is not None or one is None:
                yield value


def _entry(found: Any, key: str, place: str) -> Any:
    if isinstance(found, Component):
        found = found.options
    if isinstance(found, Mapping) and key in found:
        return found[key]
    if isinstance(found, list) and key.isdecimal() and len(key) < 10 and int(key) < len(found):
        return found[int(key)]
    return Unknown(f"@{place}", f"there is nothing at {place}")


def _absolute(text: str, place: str) -> str:
    """``@::a`` is a's neighbour, ``@::::a`` that of the table around, and so on."""

    def written_out(match: re.Match[str]) -> str:
        level = len(match.group().replace("::", "#"))
        outer = place.split("::")[:-level]
        return "::".join([*outer, ""])

    return _RELATIVE.sub(written_out, text) if text[:1] in {"@", "%", "$"} else text


def _split(text: str) -> tuple[str, str, str]:
    """File, separator and key of a macro; a text without a file is a key."""
    match = re.match(r"(.*?\.(?:json|ya?ml))(?:(::|#)(.*))?$", text, re.IGNORECASE)
    if match is None:
        return "", "::", text.replace("#", "::")
    return match[1], match[2] or "", (match[3] or "").replace("#", "::")


def _disables(value: Any) -> bool:
    """As MONAI reads it: a text must say true."""
    return value.strip().lower() == "true" if isinstance(value, str) else value is True


def read_table(parcel: Parcel, name: str) -> Table:
    """A JSON or YAML file of a bundle. Raises ImportRefused."""
    text = parcel.text(name)
    parse = _yaml(name) if name.endswith((".yaml", ".yml")) else json.loads
    try:
        table = parse(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{name} cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise ImportRefused(f"{name} is no table of keys and values")
    return table


def _yaml(name: str) -> Callable[[str], Any]:
    try:
        import yaml
    except ImportError:
        raise ImportRefused(
            f"{name} is YAML, which needs PyYAML: install dicom-ai-node[convert], or write the "
            f"file again as JSON"
        ) from None

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None

    return parse
