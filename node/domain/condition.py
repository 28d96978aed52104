"""What an engine may ask of a series, judged over the header facts of all of its slices.

A manifest states conditions; here they are judged one at a time and answered in words, so that
"why was this series not taken" always has a sentence. Nothing is decided by one slice that
stands for the others.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from node.domain.study import Fact

IDENTITY: tuple[str, ...] = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "FrameOfReferenceUID",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
)
"""Header facts that say whose images these are."""

ACQUISITION: tuple[str, ...] = (
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "BodyPartExamined",
    "Laterality",
    "ImageLaterality",
    "PatientPosition",
    "ViewPosition",
    "ImageType",
    "PresentationIntentType",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "Manufacturer",
    "ManufacturerModelName",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "DiffusionBValue",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "KVP",
    "AcquisitionNumber",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
)
"""Header facts that say how the images were made."""

IMAGE: tuple[str, ...] = (
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
"""Header facts that say what the pixels are and where they lie."""

ORDER: tuple[str, ...] = ("RequestedProcedurePriority", "StudyPriorityID")
"""Header facts that say how urgent the examination is."""

FACTS: tuple[str, ...] = IDENTITY + ACQUISITION + IMAGE + ORDER
"""The closed list of header facts kept of every instance (DICOM keywords, PS3.6)."""

PRIVATE = frozenset(IDENTITY[1:5]) | {"AccessionNumber", "StudyID"}
"""Facts that name a person or an order: kept for identity, but no condition may ask for them,
because its words end up in logs and reports."""

DERIVED: tuple[str, ...] = (
    "slices",
    "orientation",
    "slice_spacing",
    "pixel_spacing",
    "coverage",
    "thickness",
)
"""Facts of a series as a whole.

``slices``: number of instances; ``orientation``: axial, coronal, sagittal or oblique;
``slice_spacing``: between slice centres; ``pixel_spacing``: the larger of the two;
``coverage``: slices times slice spacing; ``thickness``: the largest Slice Thickness.
Lengths in millimetres. All but slices and thickness are known only of a regular volume.
"""

SHOWN = 60
"""Characters of a header value that a sentence shows."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a series must be (``score`` 0), or that speaks for it (``score`` not 0).

    ``fact`` is a DICOM keyword of ``FACTS`` or a name of ``DERIVED``. Whatever tests are given
    must all hold in the same slice; ``over`` says in how many slices. Text compares without
    regard to case; a fact with several values compares as they stand in the header, joined by
    backslashes, except for ``contains`` and ``lacks``, which look at each value. A fact that is
    absent passes only ``lacks``, ``lacks_match`` and ``present = false``. ``any_of`` holds when
    one of its conditions holds; then ``fact`` stays empty. ``reason`` opens the words of a
    refusal.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    fact: str = ""
    equals: str | float | None = None
    one_of: tuple[str, ...] = ()
    matches: str = ""
    """Regular expression, searched for anywhere in the text."""
    lacks_match: str = ""
    """Regular expression that must not be found."""
    contains: str = ""
    """One of the values."""
    lacks: str = ""
    """None of the values."""
    at_least: float | None = None
    at_most: float | None = None
    present: bool | None = None
    over: Literal["every", "any"] = "every"
    score: float = 0.0
    any_of: tuple[Condition, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What conditions are judged on: header facts per slice, and facts of the whole series."""

    slices: Sequence[Mapping[str, Fact]]
    derived: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds, and the sentence that says why."""

    ok: bool
    words: str


def judge(condition: Condition, facts: SeriesFacts) -> Verdict:
    """Whether the condition holds in the series, e.g. "Modality is CT in 28 of 28 slices;
    wanted MR".

    Raises re.error for an expression that ``faults`` would have named.
    """
    verdict = _judge_any(condition, facts) if condition.any_of else _judge_fact(condition, facts)
    if verdict.ok or not condition.reason:
        return verdict
    return Verdict(False, f"{condition.reason} ({verdict.words})")


def faults(condition: Condition) -> list[str]:
    """What is wrong with a condition, each with what to do; empty when nothing is."""
    found = [fault for member in condition.any_of for fault in faults(member)]
    if condition.any_of:
        if condition.fact or _tests(condition):
            found.append("any_of stands alone: move fact and its tests into the group")
        return found
    found += _name_faults(condition.fact)
    if not _tests(condition):
        found.append("nothing is asked: give equals, one_of, matches, at_least, present or other")
    for name, value in (
        ("equals", condition.equals),
        ("at_least", condition.at_least),
        ("at_most", condition.at_most),
        ("score", condition.score),
    ):
        if isinstance(value, float) and not math.isfinite(value):
            found.append(f"{name} is {value}: give a finite number")
    low, high = condition.at_least, condition.at_most
    if low is not None and high is not None and low > high:
        found.append(f"at_least {low:g} is above at_most {high:g}: nothing can pass")
    return found + _expression_faults(condition)


def as_text(value: Fact) -> str:
    """A fact as it stands in the header: values joined by backslashes, numbers without ".0"."""
    return "\\".join(_plain(one) for one in _values(value))


def _name_faults(name: str) -> list[str]:
    known = tuple(one for one in FACTS + DERIVED if one not in PRIVATE)
    if name in known:
        return []
    if name in PRIVATE:
        return [f"{name} identifies the patient or the order; ask for how the images were made"]
    if not name:
        return ["fact is missing: name a DICOM keyword, or give any_of"]
    lowered = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    advice = f"did you mean {lowered[close[0]]}?" if close else f"known: {', '.join(known)}"
    return [f"{name} is not a known fact; {advice}"]


def _expression_faults(condition: Condition) -> list[str]:
    found = []
    for name, pattern in (("matches", condition.matches), ("lacks_match", condition.lacks_match)):
        try:
            re.compile(pattern)
        except re.error as error:
            found.append(f"{name} is not a regular expression: {error}")
    return found


def _judge_any(condition: Condition, facts: SeriesFacts) -> Verdict:
    verdicts = [judge(member, facts) for member in condition.any_of]
    holding = next((verdict for verdict in verdicts if verdict.ok), None)
    if holding is not None:
        return holding
    return Verdict(False, "none of: " + "; or ".join(verdict.words for verdict in verdicts))


def _judge_fact(condition: Condition, facts: SeriesFacts) -> Verdict:
    tests = _tests(condition)
    wanted = " and ".join(words for words, _ in tests)
    if condition.fact in DERIVED:
        value = facts.derived.get(condition.fact, "")
        ok = all(test(value) for _, test in tests)
        return Verdict(ok, f"{condition.fact} is {_shown(value)}; wanted {wanted}")
    values = [one.get(condition.fact, "") for one in facts.slices]
    passing = [all(test(value) for _, test in tests) for value in values]
    if condition.over == "any":
        ok, wanted = any(passing), f"{wanted} in at least one slice"
    else:
        ok = bool(passing) and all(passing)
    # The sentence shows the slices that decided: those that failed, or all when none did.
    told = values if ok else [v for v, passed in zip(values, passing, strict=True) if not passed]
    return Verdict(ok, f"{condition.fact} {_census(told, len(values))}; wanted {wanted}")


def _census(values: Sequence[Fact], total: int) -> str:
    counted = Counter(_shown(value) for value in values).most_common(3)
    told = ", ".join(f"{words} in {n} of {total} slices" for words, n in counted)
    rest = len(values) - sum(n for _, n in counted)
    return f"is {told or 'unknown'}" + (f", other values in {rest}" if rest else "")


Test = Callable[[Fact], bool]


def _tests(condition: Condition) -> list[tuple[str, Test]]:
    """Each test that the condition states, with the words for what it wants."""
    return [*_comparisons(condition), *_searches(condition), *_bounds(condition)]


def _comparisons(condition: Condition) -> Iterable[tuple[str, Test]]:
    equals, one_of, present = condition.equals, condition.one_of, condition.present
    if equals is not None:
        yield _plain(equals), lambda value: _same(value, equals)
    if one_of:
        words = f"one of {', '.join(one_of)}"
        yield words, lambda value: any(_same(value, one) for one in one_of)
    if present is not None:
        yield "a value" if present else "no value", lambda value: present != _absent(value)


def _searches(condition: Condition) -> Iterable[tuple[str, Test]]:
    matches, lacks_match = condition.matches, condition.lacks_match
    contains, lacks = condition.contains, condition.lacks
    if matches:
        words = f"a match of /{matches}/"
        yield words, lambda value: not _absent(value) and _found(matches, value)
    if lacks_match:
        yield f"no match of /{lacks_match}/", lambda value: not _found(lacks_match, value)
    if contains:
        words = f"{contains} among its values"
        yield words, lambda value: any(_same(one, contains) for one in _values(value))
    if lacks:
        words = f"no {lacks} among its values"
        yield words, lambda value: not any(_same(one, lacks) for one in _values(value))


def _bounds(condition: Condition) -> Iterable[tuple[str, Test]]:
    low, high = condition.at_least, condition.at_most
    if low is not None:
        yield f"at least {low:g}", lambda value: _every(value, lambda number: number >= low)
    if high is not None:
        yield f"at most {high:g}", lambda value: _every(value, lambda number: number <= high)


def _every(value: Fact, holds: Callable[[float], bool]) -> bool:
    values = _values(value)
    return bool(values) and all(isinstance(one, int | float) and holds(one) for one in values)


def _found(pattern: str, value: Fact) -> bool:
    return re.search(pattern, as_text(value), re.IGNORECASE) is not None


def _same(value: Fact, wanted: str | float) -> bool:
    if _absent(value):
        return False
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return math.isclose(value, wanted, rel_tol=1e-6)
    return as_text(value).casefold() == _plain(wanted).strip().casefold()


def _values(value: Fact) -> Sequence[str | float]:
    if isinstance(value, tuple):
        return value
    return () if value == "" else (value,)


def _absent(value: Fact) -> bool:
    return all(one == "" for one in _values(value))


def _plain(value: str | float) -> str:
    return value.strip() if isinstance(value, str) else f"{value:.10g}"


def _shown(value: Fact) -> str:
    if _absent(value):
        return "missing"
    # A header may hold control characters; what is shown ends on terminals and in logs.
    text = "".join(one if one.isprintable() else "?" for one in as_text(value)[: SHOWN + 1])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
