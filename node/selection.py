"""Chooses the series that an engine runs on, and says of every other why not.

Descriptions lie and first slices mislead, so every condition is judged over all slices, and a
candidate must form one regular volume besides. Pure: works on header facts alone. The trace it
returns is what ``ai-node why`` prints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from node.bundle import Wanted
from node.dicom.geometry import FARTHEST, Geometry, Tolerance, arrange
from node.dicom.headers import number, optional
from node.domain.condition import DERIVED, Condition, SeriesFacts, judge
from node.domain.errors import HeaderError
from node.domain.study import Fact, Series, Study


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The series taken for a role; ``reasons`` are what held, and what was odd but accepted."""

    role: str
    series: Series
    geometry: Geometry
    score: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What one series is worth to one role.

    ``label`` names the series without its description, which may hold anything. ``accepted``
    says that it fits; ``words`` then say whether it was chosen, and otherwise every condition
    and geometry rule that failed.
    """

    role: str
    series_uid: str
    label: str
    accepted: bool
    score: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """One choice per role; or none at all, and ``refusal`` says why in one sentence."""

    chosen: Mapping[str, Choice] = field(default_factory=dict)
    trace: tuple[SeriesVerdict, ...] = ()
    refusal: str = ""


def select(study: Study, wanted: Sequence[Wanted]) -> Selection:
    """The best series for every role, each series at most once.

    Best is the highest sum of scores; equal scores go to more slices, then to the lower Series
    Number, then to the lower Series Instance UID.
    """
    examined = [_examine(series, want) for want in wanted for series in study.series]
    ranked = {want.role: _ranked(want.role, examined) for want in wanted}
    chosen = _assign(ranked)
    if not chosen:
        trace = tuple(one.verdict for one in examined)
        return Selection(trace=trace, refusal=_refusal(study, wanted, examined))
    trace = tuple(_told(one, chosen[one.verdict.role]) for one in examined)
    return Selection(chosen={role: _choice(one) for role, one in chosen.items()}, trace=trace)


@dataclass(frozen=True, slots=True, eq=False)
class _Examined:
    """A series before a role: the verdict, and what is needed to take it."""

    series: Series
    verdict: SeriesVerdict
    geometry: Geometry | None
    reasons: tuple[str, ...]


def _examine(series: Series, want: Wanted) -> _Examined:
    geometry, refusal = _arranged(series, want.tolerance)
    facts = SeriesFacts(
        tuple(instance.facts for instance in series.instances), _derived(series, geometry)
    )
    score = 0.0
    failed: list[str] = []
    held: list[str] = []
    for condition in want.accepts:
        if geometry is None and _needs_volume(condition):
            continue  # the geometry's own words already say why
        verdict = judge(condition, facts)
        if condition.score and verdict.ok:
            score += condition.score
            held.append(f"{condition.score:+g}: {verdict.words}")
        elif not condition.score:
            (held if verdict.ok else failed).append(verdict.words)
    failed += [refusal] if refusal else []
    accepted = not failed
    verdict_ = SeriesVerdict(
        role=want.role,
        series_uid=series.uid,
        label=_label(series),
        accepted=accepted,
        score=score,
        words=tuple(failed),
    )
    notes = geometry.notes if geometry is not None else ()
    return _Examined(series, verdict_, geometry if accepted else None, (*held, *notes))


def _arranged(series: Series, tolerance: Tolerance) -> tuple[Geometry | None, str]:
    try:
        return arrange(series.instances, tolerance), ""
    except HeaderError as error:
        return None, str(error)


def _derived(series: Series, geometry: Geometry | None) -> dict[str, Fact]:
    derived: dict[str, Fact] = {"slices": float(len(series.instances))}
    thickest = _thickness(series)
    if thickest is not None:
        derived["thickness"] = thickest
    if geometry is not None:
        k, j, i = geometry.grid.spacing
        derived |= {
            "orientation": geometry.orientation,
            "slice_spacing": k,
            "pixel_spacing": max(j, i),
            "coverage": k * geometry.grid.shape[0],
        }
    return derived


def _thickness(series: Series) -> float | None:
    try:
        values = [optional(one, "SliceThickness", 0, FARTHEST) for one in series.instances]
    except HeaderError:
        return None
    return max((value for value in values if value is not None), default=None)


def _needs_volume(condition: Condition) -> bool:
    if condition.any_of:
        return any(_needs_volume(member) for member in condition.any_of)
    return condition.fact in DERIVED and condition.fact not in ("slices", "thickness")


def _label(series: Series) -> str:
    series_number, modality = _series_number(series), series.text("Modality")[:16]
    name = f"series {series_number:g}" if math.isfinite(series_number) else "series without number"
    modality = modality if modality.isalnum() else "no modality"
    n = len(series.instances)
    return f"{name} ({modality}, {n} instance{'s' * (n != 1)})"


def _series_number(series: Series) -> float:
    """For order and label only: one that is odd sorts last, and refuses nothing."""
    try:
        return number(series.instances[0], "SeriesNumber", -(2**31), 2**31)
    except HeaderError:
        return math.inf


def _ranked(role: str, examined: Sequence[_Examined]) -> list[_Examined]:
    def rank(one: _Examined) -> tuple[float, int, float, str]:
        slices = len(one.series.instances)
        return (-one.verdict.score, -slices, _series_number(one.series), one.series.uid)

    fitting = (one for one in examined if one.verdict.role == role and one.verdict.accepted)
    return sorted(fitting, key=rank)


def _assign(ranked: Mapping[str, Sequence[_Examined]]) -> dict[str, _Examined] | None:
    """The best combination in which no series serves two roles; None when there is none."""
    # With r roles, others can take at most r - 1 of a role's candidates: its first r are enough.
    choices = [candidates[: len(ranked)] for candidates in ranked.values()]
    best: tuple[tuple[float, tuple[int, ...]], tuple[_Examined, ...]] | None = None
    for places in itertools.product(*(range(len(candidates)) for candidates in choices)):
        taken = tuple(candidates[at] for candidates, at in zip(choices, places, strict=True))
        if len({one.series.uid for one in taken}) < len(taken):
            continue
        cost = (-math.fsum(one.verdict.score for one in taken), places)
        if best is None or cost < best[0]:
            best = (cost, taken)
    return None if best is None else dict(zip(ranked, best[1], strict=True))


def _choice(one: _Examined) -> Choice:
    if one.geometry is None:
        raise ValueError("a series without geometry was chosen")
    return Choice(one.verdict.role, one.series, one.geometry, one.verdict.score, one.reasons)


def _told(one: _Examined, chosen: _Examined) -> SeriesVerdict:
    verdict = one.verdict
    if not verdict.accepted:
        return verdict
    if one is chosen:
        words = ("chosen", *one.reasons)
    else:
        words = (f"fits, but {chosen.verdict.label} was chosen: {_preference(one, chosen)}",)
    return SeriesVerdict(
        verdict.role, verdict.series_uid, verdict.label, True, verdict.score, words
    )


def _preference(one: _Examined, chosen: _Examined) -> str:
    mine, its = one.verdict.score, chosen.verdict.score
    if its != mine:
        return f"score {its:g} against {mine:g}"
    here, there = len(one.series.instances), len(chosen.series.instances)
    if here != there:
        return f"equal score {its:g}, {there} slices against {here}"
    return f"equal score {its:g} and slices, first by series number"


def _refusal(study: Study, wanted: Sequence[Wanted], examined: Sequence[_Examined]) -> str:
    if not study.series or not wanted:
        return "the study has no series" if wanted else "the engine asks for no series"
    for want in wanted:
        verdicts = [one.verdict for one in examined if one.verdict.role == want.role]
        if not any(verdict.accepted for verdict in verdicts):
            nearest = min(verdicts, key=lambda verdict: len(verdict.words))
            n = len(verdicts)
            return (
                f"no series fits {want.role!r} ({n} examined); nearest was {nearest.label}: "
                f"{'; '.join(nearest.words)}"
            )
    roles = ", ".join(repr(want.role) for want in wanted)
    return f"too few series fit: {roles} need one series each, and some fit only the same one"
