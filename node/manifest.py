"""``engine.toml``: everything that the node must know of an engine, and all that it will believe.

The table is closed: a key that is not here is an error, a step that is not in the registry does
not exist, and nothing in it is code. So a package from a stranger can be read, shown and refused
without running anything of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from node.config import Document, Table, Where, build, construct, gather
from node.dicom.geometry import ORDINARY, Tolerance
from node.domain.condition import Condition
from node.domain.condition import faults as condition_faults
from node.domain.errors import ConfigError, Fault
from node.findings import Label
from node.steps import MASKS, STEPS, MaskStep, Step
from node.windows import Window

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Word = Annotated[str, Field(min_length=1, max_length=64)]
"""Text that goes into LO attributes: at most 64 characters (PS3.5 Table 6.2-1)."""
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$", max_length=40)]


@dataclass(frozen=True, slots=True)
class Identity:
    """``[engine]``: who the engine is, and which file is its network."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Name
    """What configurations call it: lower-case letters, digits and hyphens, as its folder."""
    title: Word
    """What people call it."""
    version: Word
    """Written into every result; another model wants another version."""
    manufacturer: Word
    """Who answers for it."""
    licence: Annotated[str, Field(min_length=1)]
    """Licence of the model, as an SPDX expression where there is one."""
    model: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    """File name of the network in the engine's folder."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of that file, hexadecimal."""
    task: Literal["segmentation"] = "segmentation"
    """What the network answers."""
    clinical_use: bool = False
    """Whether its maker has released it for clinical use."""
    description: str = ""
    """One or two sentences for whoever chooses an engine."""


@dataclass(frozen=True, slots=True)
class SeriesRole:
    """``[[series]]``: a part that some series of the study plays. The first role is the reference:
    findings lie on the grid of its series.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    role: Name
    """What this file calls it, e.g. ``flair``."""
    accepts: Annotated[tuple[Condition, ...], Field(min_length=1)]
    """What a series must be, and what speaks for it."""


@dataclass(frozen=True, slots=True)
class Input:
    """``[[input]]``: a tensor of the network and what goes into its channels."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tensor: Annotated[str, Field(min_length=1)]
    """Its name in the network."""
    roles: Annotated[tuple[str, ...], Field(min_length=1)]
    """The roles whose volumes are its channels, in order."""


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """``[output]``: the tensor that holds the answer."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tensor: Annotated[str, Field(min_length=1)]
    """Its name in the network."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """What makes probabilities of it; none: it holds probabilities."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """``[operating_point]``: where sensitivity and specificity were balanced, and why there."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability from which a voxel counts; the same as that of the threshold step."""
    note: str = ""
    """How it was chosen."""

    def __str__(self) -> str:
        threshold = "" if self.threshold is None else f"threshold {self.threshold:g}"
        return "; ".join(part for part in (threshold, self.note) if part)


@dataclass(frozen=True, slots=True)
class Reports:
    """``[reports]``: what the engine is best reported with; the configuration decides."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    outputs: tuple[str, ...] = ("seg", "sr")
    """Kinds of output, in order."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """``[[pre]]``: a step before the network, and the roles whose volumes take it."""

    step: Step
    roles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """The tables that stand in the file as they are used."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    engine: Identity
    series: Annotated[tuple[SeriesRole, ...], Field(min_length=1)]
    window: Window
    inputs: Annotated[tuple[Input, ...], Field(alias="input", min_length=1)]
    output: NetworkOutput
    findings: Annotated[tuple[Label, ...], Field(alias="finding", min_length=1)]
    tolerance: Tolerance = ORDINARY
    operating_point: OperatingPoint = OperatingPoint()
    reports: Reports = Reports()


@dataclass(frozen=True, kw_only=True)
class _Sheet(_Plain):
    """The whole file; the tables of steps wait for their registries."""

    pre: tuple[dict[str, Any], ...] = ()
    post: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Manifest(_Plain):
    """A manifest without faults. Arrays of tables have singular names in TOML: ``[[input]]``."""

    pre: tuple[Preparation, ...]
    post: tuple[MaskStep, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role, the reference first."""
        return tuple(series.role for series in self.series)


@dataclass(frozen=True, slots=True)
class _Roles:
    """What a ``[[pre]]`` table has beside the options of its step."""

    roles: tuple[str, ...] = ()


def understand(document: Document) -> Manifest:
    """The manifest in a document. Raises ConfigError with every fault of the file at once."""
    faults: dict[Fault, None] = {}
    sheet = _attempt(partial(build, _Sheet, document.table, document.where), faults)
    pre = _attempt(
        partial(gather, [partial(_preparation, *row) for row in _rows(document, "pre")]), faults
    )
    post = _attempt(
        partial(gather, [partial(construct, MASKS, *row) for row in _rows(document, "post")]),
        faults,
    )
    faults.update(dict.fromkeys(_rule_faults(document)))
    if faults or sheet is None or pre is None or post is None:
        raise ConfigError(tuple(sorted(faults, key=lambda fault: fault.line)))
    plain = {field.name: getattr(sheet, field.name) for field in fields(_Plain)}
    return Manifest(**plain, pre=_for_all(pre, sheet), post=post)


def _attempt(attempt: Callable[[], T], faults: dict[Fault, None]) -> T | None:
    """What it builds, or None and its faults among the others."""
    try:
        return attempt()
    except ConfigError as error:
        faults.update(dict.fromkeys(error.faults))
        return None


def _preparation(table: Table, where: Where) -> Preparation:
    options = {key: value for key, value in table.items() if key != "roles"}
    own = {key: value for key, value in table.items() if key == "roles"}
    faults: dict[Fault, None] = {}
    roles = _attempt(partial(build, _Roles, own, where), faults)
    step = _attempt(partial(construct, STEPS, options, where), faults)
    if roles is None or step is None:
        raise ConfigError(tuple(faults))
    return Preparation(step, roles.roles)


def _for_all(pre: tuple[Preparation, ...], sheet: _Sheet) -> tuple[Preparation, ...]:
    """A step that names no role is for all of them."""
    every = tuple(series.role for series in sheet.series)
    return tuple(Preparation(one.step, one.roles or every) for one in pre)


def _rows(document: Document, family: str) -> Iterator[tuple[Table, Where]]:
    """The tables of an array of tables, each with its place; what has another shape is no row."""
    tables = document.table.get(family)
    for index, table in enumerate(tables if isinstance(tables, list) else ()):
        if isinstance(table, dict):
            yield table, document.where.at(family).item(index)


def _rule_faults(document: Document) -> Iterator[Fault]:
    """What one table alone cannot show to be wrong. Reads the file as it stands, so that these
    faults come out together with those of the tables.
    """
    for series, where in _rows(document, "series"):
        yield from _condition_faults(series, where.at("accepts"))
    for family, key in (
        ("series", "role"), ("input", "tensor"), ("finding", "label"), ("finding", "name"),
    ):  # fmt: skip
        yield from _repeated(document, family, key)
    yield from _role_faults(document)
    yield from _threshold_faults(document)
    yield from _activation_faults(document)


def _condition_faults(series: Table, where: Where) -> Iterator[Fault]:
    accepts = series.get("accepts")
    for index, table in enumerate(accepts if isinstance(accepts, list) else ()):
        place = where.item(index)
        try:
            condition = build(Condition, table, place)
        except ConfigError:
            continue
        yield from (place.fault(message) for message in condition_faults(condition))


def _repeated(document: Document, family: str, key: str) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for table, where in _rows(document, family):
        value, place = table.get(key), where.at(key)
        if value is None:
            continue
        if str(value) in seen:
            line = seen[str(value)]
            yield place.fault(f"another [[{family}]] has {value!r} already (line {line})")
        seen.setdefault(str(value), place.line)


def _role_faults(document: Document) -> Iterator[Fault]:
    """Roles that are named but not defined, and those that are defined but feed no tensor."""
    defined = {str(table.get("role")): where for table, where in _rows(document, "series")}
    fed = dict(_named_roles(document, "input"))
    for role, where in (*_named_roles(document, "pre"), *fed.items()):
        if role not in defined:
            known = ", ".join(defined) or "none"
            yield where.fault(f"no [[series]] has the role {role!r} (known: {known})")
    for role, where in defined.items():
        if fed and role not in fed:
            yield where.at("role").fault(f"no [[input]] takes the role {role!r}")


def _named_roles(document: Document, family: str) -> Iterator[tuple[str, Where]]:
    for table, where in _rows(document, family):
        named = table.get("roles")
        for index, role in enumerate(named if isinstance(named, list) else ()):
            yield str(role), where.at("roles").item(index)


def _threshold_faults(document: Document) -> Iterator[Fault]:
    """The operating point that results state is the one that the steps apply."""
    point = document.table.get("operating_point")
    stated = point.get("threshold") if isinstance(point, Mapping) else None
    applied = [
        table.get("value", 0.5)
        for table, _ in _rows(document, "post")
        if table.get("kind") == "threshold"
    ]
    if stated is not None and applied and stated not in applied:
        where = document.where.at("operating_point").at("threshold")
        yield where.fault(f"is {stated}, but the threshold step applies {applied[0]}")


def _activation_faults(document: Document) -> Iterator[Fault]:
    """The window makes the probabilities, but one place says how: the output."""
    window, output = document.table.get("window"), document.table.get("output")
    if not isinstance(window, Mapping) or not isinstance(output, Mapping):
        return
    where = document.where.at("window")
    if "logits" in window:
        yield where.at("logits").fault("is said by [output].activation; leave it out here")
    if output.get("activation") == "sigmoid" and window.get("exclusive"):
        yield where.at("exclusive").fault(
            "channels that exclude one another have activation softmax, not sigmoid"
        )
