"""``engine.toml``: everything that the node must know of an engine, and all that it will believe.

The table is closed: a key that is not here is an error, a step that is not in the registry does
not exist, and nothing in it is code. So a package from a stranger can be read, shown and refused
without running anything of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from node.coherence import rule_faults
from node.config import Document, Table, Where, build, construct, gather
from node.dicom.geometry import ORDINARY, Tolerance
from node.domain.condition import Condition
from node.domain.errors import ConfigError, Fault
from node.findings import Label
from node.rules import rows
from node.sight import Window
from node.steps import MASKS, STEPS, MaskStep, Step

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Word = Annotated[str, Field(min_length=1, max_length=64)]
"""Text that goes into LO attributes: at most 64 characters (PS3.5 Table 6.2-1)."""
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$", max_length=40)]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
"""A file in the engine's folder itself."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""sha256, hexadecimal."""


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
    model: FileName
    """File name of the network in the engine's folder."""
    sha256: Digest
    """Digest of that file, hexadecimal."""
    task: Literal["segmentation"] = "segmentation"
    """What the network answers."""
    clinical_use: bool = False
    """Whether its maker has released it for clinical use."""
    description: str = ""
    """One or two sentences for whoever chooses an engine."""


@dataclass(frozen=True, slots=True)
class Member:
    """``[[member]]``: a further network of an ensemble, beside ``[engine]``'s. It takes the same
    tensors and gives the same one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: FileName
    """File name of the network in the engine's folder."""
    sha256: Digest
    """Digest of that file, hexadecimal."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """``[ensemble]``: how the answers of several networks become one."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    combine: Literal["mean", "vote"] = "mean"
    """``mean``: of what is blended, probabilities or logits (see ``[output]``). ``vote``: the label
    that most networks give a voxel; of equally many votes the lowest label wins, so that the
    background comes before every finding. Probabilities are then the mean of all networks."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """``[cascade]``: another engine looks first, and this one only around what that one found.

    The first engine gets the volumes of the same roles, and its conditions for them hold here, too;
    it is computed by what computes this one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    package: Annotated[str, Field(min_length=1)]
    """The first engine: the name of one whose folder is beside this one's or that is shipped, or
    the path of a folder from this one's (it has a slash)."""
    labels: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()
    """Which of its labels count; none: all of its findings."""
    margin_mm: Annotated[float, Field(ge=0)] = 0.0
    """What is seen around the box of its findings on every side, mm."""
    empty: Literal["refuse", "whole", "nothing"] = "refuse"
    """When it found none: fail in words, look at the whole volume, or find nothing either."""


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
    activated: Literal["blocks", "blended", "source"] = "blocks"
    """Where that happens: to every block before blocks are blended; to the whole volume that was
    blended of raw values; or after that was brought back to the source images' grid."""


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
    """``[[pre]]``: a step before the network, and the roles whose volumes take it: each by itself,
    or, ``joint``, all of them as the channels of one volume.
    """

    step: Step
    roles: tuple[str, ...]
    joint: bool = False


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
    members: Annotated[tuple[Member, ...], Field(alias="member")] = ()
    ensemble: Ensemble = Ensemble()
    cascade: Cascade | None = None
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

    @property
    def networks(self) -> tuple[Member, ...]:
        """Every network of the engine, that of ``[engine]`` first."""
        return (Member(self.engine.model, self.engine.sha256), *self.members)


@dataclass(frozen=True, slots=True)
class _Roles:
    """What a ``[[pre]]`` table has beside the options of its step."""

    roles: tuple[str, ...] = ()
    joint: bool = False


def understand(document: Document) -> Manifest:
    """The manifest in a document. Raises ConfigError with every fault of the file at once."""
    faults: dict[Fault, None] = {}
    sheet = _attempt(partial(build, _Sheet, document.table, document.where), faults)
    pre = _attempt(
        partial(gather, [partial(_preparation, *row) for row in rows(document, "pre")]), faults
    )
    post = _attempt(
        partial(gather, [partial(construct, MASKS, *row) for row in rows(document, "post")]),
        faults,
    )
    faults.update(dict.fromkeys(rule_faults(document)))
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
    named = {field.name for field in fields(_Roles)}
    options = {key: value for key, value in table.items() if key not in named}
    own = {key: value for key, value in table.items() if key in named}
    faults: dict[Fault, None] = {}
    roles = _attempt(partial(build, _Roles, own, where), faults)
    step = _attempt(partial(construct, STEPS, options, where), faults)
    if roles is None or step is None:
        raise ConfigError(tuple(faults))
    return Preparation(step, roles.roles, roles.joint)


def _for_all(pre: tuple[Preparation, ...], sheet: _Sheet) -> tuple[Preparation, ...]:
    """A step that names no role is for all of them."""
    every = tuple(series.role for series in sheet.series)
    return tuple(replace(one, roles=one.roles or every) for one in pre)
