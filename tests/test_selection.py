"""Selection: the right series for every role, and words for every series that was not taken."""

from __future__ import annotations

import functools
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.dicom.geometry import Tolerance
from node.domain.condition import Condition
from node.domain.study import Fact, Instance, Study
from node.selection import Selection, SeriesVerdict, Wanted, select
from node.testing.series import CORONAL, SeriesSpec, make, received, save
from tests.dicom.real import real_study

MR = Condition(fact="Modality", equals="MR")
FLAIR = Condition(fact="SeriesDescription", matches="flair")


@functools.cache
def slice_of_flair() -> Instance:
    """One instance of a FLAIR, from which the series of these tests are made."""
    with tempfile.TemporaryDirectory() as directory:
        paths = save(make(SeriesSpec(), np.zeros((1, 4, 4), np.int16)), Path(directory))
        return received(paths)[0]


def series(number: int, slices: int = 5, **facts: Fact) -> list[Instance]:
    """A regular axial MR series with 5 mm between slices, its facts changed as asked."""
    base = slice_of_flair()
    return [
        replace(
            base,
            sop_instance_uid=f"1.2.{number}.{k}",
            series_uid=f"1.2.{number}",
            facts={
                **base.facts,
                "SeriesNumber": float(number),
                "ImagePositionPatient": (0.0, 0.0, 5.0 * k),
                **facts,
            },
        )
        for k in range(slices)
    ]


def study(*members: list[Instance]) -> Study:
    return Study.of("1.2", itertools.chain(*members))


def words_of(selection: Selection, number: int) -> str:
    (verdict,) = (one for one in selection.trace if one.series_uid == f"1.2.{number}")
    return "; ".join(verdict.words)


def test_the_series_that_meets_every_requirement_is_chosen() -> None:
    selection = select(
        study(series(1, SeriesDescription="T1"), series(2), series(3, Modality="CT")),
        [Wanted("flair", (MR, FLAIR))],
    )
    choice = selection.chosen["flair"]
    assert choice.series.uid == "1.2.2"
    assert choice.geometry.grid.shape == (5, 4, 4)
    assert selection.refusal == ""
    assert [verdict.accepted for verdict in selection.trace] == [False, True, False]
    assert words_of(selection, 2).startswith("chosen; Modality is MR in 5 of 5 slices")


def test_every_failing_condition_is_told_and_the_geometry_too() -> None:
    odd = series(7, slices=3, Modality="CT", SeriesDescription="LUNG")
    odd[1] = replace(odd[1], facts={**odd[1].facts, "ImagePositionPatient": (0.0, 0.0, 1.0)})
    selection = select(
        study(odd), [Wanted("flair", (MR, FLAIR, Condition(fact="slices", at_least=10)))]
    )
    assert selection.chosen == {}
    (verdict,) = selection.trace
    assert verdict.label == "series 7 (CT, 3 instances)"
    assert verdict.words == (
        "Modality is CT in 3 of 3 slices; wanted MR",
        "SeriesDescription is LUNG in 3 of 3 slices; wanted a match of /flair/",
        "slices is 3; wanted at least 10",
        verdict.words[-1],
    )
    assert "irregular spacing" in verdict.words[-1]


def test_one_slice_of_another_kind_disqualifies_its_series() -> None:
    mixed = series(1)
    mixed[4] = replace(mixed[4], facts={**mixed[4].facts, "SeriesDescription": "T1"})
    selection = select(study(mixed), [Wanted("flair", (MR, FLAIR))])
    assert selection.chosen == {}
    assert "SeriesDescription is T1 in 1 of 5 slices" in selection.refusal


def test_a_localizer_in_the_series_is_refused_by_its_geometry() -> None:
    mixed = series(1)
    mixed[0] = replace(mixed[0], facts={**mixed[0].facts, "ImageOrientationPatient": CORONAL})
    selection = select(study(mixed), [Wanted("flair", (MR,))])
    assert "mixed orientation: axial in 4, coronal in 1 of 5 instances" in selection.refusal


def test_the_refusal_names_the_role_and_the_nearest_series() -> None:
    selection = select(
        study(series(1, Modality="CT", SeriesDescription="x"), series(2, Modality="CT")),
        [Wanted("flair", (MR, FLAIR))],
    )
    assert selection.refusal == (
        "no series fits 'flair' (2 examined); nearest was series 2 (CT, 5 instances): "
        "Modality is CT in 5 of 5 slices; wanted MR"
    )


def test_a_preference_decides_and_both_sides_are_told() -> None:
    prefer = Condition(fact="ImageType", contains="ORIGINAL", score=2)
    selection = select(
        study(series(1, ImageType=("DERIVED", "PRIMARY")), series(2)),
        [Wanted("flair", (MR, prefer))],
    )
    assert selection.chosen["flair"].series.uid == "1.2.2"
    assert selection.chosen["flair"].score == 2
    assert any(reason.startswith("+2: ImageType") for reason in selection.chosen["flair"].reasons)
    assert words_of(selection, 1) == (
        "fits, but series 2 (MR, 5 instances) was chosen: score 2 against 0"
    )


def test_a_negative_preference_counts_against() -> None:
    avoid = Condition(fact="SeriesDescription", matches="reg", score=-1)
    selection = select(
        study(series(1, SeriesDescription="flair reg"), series(2)), [Wanted("flair", (avoid,))]
    )
    assert selection.chosen["flair"].series.uid == "1.2.2"


@pytest.mark.parametrize(
    ("first", "second", "better", "words"),
    [
        (series(1, 5), series(2, 6), "1.2.2", "equal score 0, 6 slices against 5"),
        (series(3), series(2), "1.2.2", "first by series number"),
        (series(2), series(1, SeriesNumber=9.0), "1.2.2", "first by series number"),
        (series(2, SeriesNumber=""), series(3), "1.2.3", "first by series number"),
        (series(2, SeriesNumber=4.0), series(1, SeriesNumber=4.0), "1.2.1", "equal score 0"),
    ],
)
def test_ties_go_to_slices_then_number_then_uid(
    first: list[Instance], second: list[Instance], better: str, words: str
) -> None:
    selection = select(study(first, second), [Wanted("flair")])
    assert selection.chosen["flair"].series.uid == better
    (other,) = (one for one in selection.trace if one.series_uid != better)
    assert words in other.words[0]


def test_two_roles_do_not_take_the_same_series() -> None:
    wanted = [
        Wanted("any", (MR, Condition(fact="SeriesDescription", matches="flair", score=1))),
        Wanted("flair", (MR, FLAIR)),
    ]
    # "any" would like the FLAIR best, but it is the only one that "flair" can have.
    selection = select(study(series(1), series(2, SeriesDescription="T1")), wanted)
    assert selection.chosen["any"].series.uid == "1.2.2"
    assert selection.chosen["flair"].series.uid == "1.2.1"


def test_one_series_is_not_enough_for_two_roles() -> None:
    selection = select(study(series(1)), [Wanted("a", (MR,)), Wanted("b", (MR,))])
    assert selection.chosen == {}
    assert selection.refusal.startswith("too few series fit: 'a', 'b' need one series each")


def test_the_best_sum_of_scores_wins_over_the_first_roles_wish() -> None:
    def likes(pattern: str, score: float) -> Condition:
        return Condition(fact="SeriesDescription", matches=pattern, score=score)

    wanted = [
        Wanted("a", (likes("one", 2), likes("two", 1))),
        Wanted("b", (likes("one", 5), likes("two", 1))),
    ]
    one, two = series(1, SeriesDescription="one"), series(2, SeriesDescription="two")
    selection = select(study(one, two), wanted)
    assert selection.chosen["a"].series.uid == "1.2.2"
    assert selection.chosen["b"].series.uid == "1.2.1"


@pytest.mark.parametrize(
    ("condition", "ok"),
    [
        (Condition(fact="slices", at_least=5, at_most=5), True),
        (Condition(fact="orientation", equals="axial"), True),
        (Condition(fact="orientation", equals="coronal"), False),
        (Condition(fact="slice_spacing", at_least=4.99, at_most=5.01), True),
        (Condition(fact="pixel_spacing", at_most=1.0), True),
        (Condition(fact="pixel_spacing", at_most=0.9), False),
        (Condition(fact="coverage", at_least=25.0), True),
        (Condition(fact="coverage", at_least=25.1), False),
        (Condition(fact="thickness", equals=5.0), True),
    ],
)
def test_derived_facts_can_be_asked_for(condition: Condition, ok: bool) -> None:
    selection = select(study(series(1)), [Wanted("flair", (condition,))])
    assert bool(selection.chosen) is ok


def test_derived_facts_of_no_volume_are_not_held_against_it_twice() -> None:
    flat = series(1, ImagePositionPatient="")
    spacing = Condition(fact="slice_spacing", at_least=1)
    selection = select(study(flat), [Wanted("flair", (spacing, MR))])
    (verdict,) = selection.trace
    assert len(verdict.words) == 1
    assert verdict.words[0].startswith("ImagePositionPatient is missing in 5 of 5 instances")


def test_each_role_has_its_own_tolerance() -> None:
    jittered = series(1)
    moved = {**jittered[2].facts, "ImagePositionPatient": (0.0, 0.0, 11.0)}
    jittered[2] = replace(jittered[2], facts=moved)
    assert not select(study(jittered), [Wanted("flair")]).chosen
    assert select(study(jittered), [Wanted("flair", (), Tolerance(jitter=0.3))]).chosen


def test_a_bad_number_refuses_the_series_and_not_the_study() -> None:
    selection = select(
        study(series(1, PixelSpacing=("nan", "1")), series(2)), [Wanted("flair", (MR,))]
    )
    assert selection.chosen["flair"].series.uid == "1.2.2"
    assert r"PixelSpacing is 'nan\\1'" in words_of(selection, 1)


@pytest.mark.parametrize("odd", ["nan", "", (1.0, 2.0), "\x1b[2J"])
def test_an_odd_series_number_refuses_nothing(odd: Fact) -> None:
    selection = select(study(series(1, SeriesNumber=odd)), [Wanted("flair", (MR,))])
    assert selection.chosen
    assert selection.trace[0].label == "series without number (MR, 5 instances)"


def test_a_study_without_series_and_an_engine_without_wishes() -> None:
    assert select(Study("1.2", ()), [Wanted("flair")]).refusal == "the study has no series"
    assert select(study(series(1)), []).refusal == "the engine asks for no series"


def test_no_word_tells_the_patient() -> None:
    named = series(1, PatientName="Doe^Jane", PatientID="4711", PixelSpacing="nan", Modality="CT")
    selection = select(study(named), [Wanted("flair", (MR, FLAIR))])
    told = selection.refusal + str(selection.trace)
    assert "Doe" not in told
    assert "4711" not in told


descriptions = st.sampled_from(["flair", "flair reg", "t1", "t2"])
made_series = st.tuples(
    descriptions, st.integers(1, 4), st.sampled_from(["MR", "MR", "CT"]), st.booleans()
)
conditions = st.lists(
    st.sampled_from(
        [
            MR,
            FLAIR,
            Condition(fact="slices", at_least=2),
            Condition(fact="SeriesDescription", matches="reg", score=-1),
            Condition(fact="SeriesDescription", matches="t1", score=3),
            Condition(fact="slices", at_least=3, score=2),
        ]
    ),
    max_size=3,
).map(tuple)


def best_by_force(trace: tuple[SeriesVerdict, ...], roles: list[str]) -> float | None:
    """The highest sum over all ways to give every role another accepted series."""
    fitting = [
        [(one.series_uid, one.score) for one in trace if one.role == role and one.accepted]
        for role in roles
    ]
    sums = [
        sum(score for _, score in taken)
        for taken in itertools.product(*fitting)
        if len({uid for uid, _ in taken}) == len(taken)
    ]
    return max(sums, default=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(made_series, max_size=4), st.lists(conditions, min_size=1, max_size=3), st.randoms()
)
def test_selection_is_the_best_of_all_assignments_whatever_the_order(
    members: list[tuple[str, int, str, bool]],
    accepts: list[tuple[Condition, ...]],
    random: Random,
) -> None:
    instances = [
        instance
        for number, (description, slices, modality, placed) in enumerate(members)
        for instance in series(
            number,
            slices,
            SeriesDescription=description,
            Modality=modality,
            **({} if placed else {"ImagePositionPatient": "nan"}),
        )
    ]
    wanted = [Wanted(f"role {n}", conditions) for n, conditions in enumerate(accepts)]
    roles = [want.role for want in wanted]
    selection = select(Study.of("1.2", instances), wanted)
    best = best_by_force(selection.trace, roles)
    assert len(selection.trace) == len(members) * len(wanted)
    assert bool(selection.chosen) == (best is not None) != bool(selection.refusal)
    assert all(one.words for one in selection.trace if selection.chosen or not one.accepted)
    if best is not None:
        assert list(selection.chosen) == roles
        assert len({choice.series.uid for choice in selection.chosen.values()}) == len(roles)
        assert sum(choice.score for choice in selection.chosen.values()) == pytest.approx(best)
    random.shuffle(instances)
    again = select(Study.of("1.2", instances), wanted)
    assert again.trace == selection.trace
    assert again.refusal == selection.refusal


ENGINE = [
    Wanted(
        "flair",
        (
            MR,
            FLAIR,
            Condition(fact="orientation", equals="axial"),
            Condition(fact="slices", at_least=10),
        ),
    )
]


def test_the_real_flair_is_found_among_its_neighbours(tmp_path: Path) -> None:
    selection = select(real_study("mr_brain_gbm", tmp_path), ENGINE)
    choice = selection.chosen["flair"]
    assert choice.series.text("SeriesDescription") == "FLAIR_reg"
    assert choice.geometry.grid.shape == (22, 320, 280)
    assert sum(verdict.accepted for verdict in selection.trace) == 1


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        ("ct_head_gantry_tilt", ["Modality is CT in 28 of 28 slices", "18.5 degrees off"]),
        ("cxr_secondary_capture", ["Modality is DX", "ImageOrientationPatient is missing"]),
        ("ct_abdomen_misnamed", ["Modality is CT in 35 of 35 slices; wanted MR"]),
        ("mr_liver_coronal", ["orientation is coronal; wanted axial"]),
    ],
)
def test_real_studies_of_other_kinds_are_refused_in_words(
    archive: str, words: list[str], tmp_path: Path
) -> None:
    selection = select(real_study(archive, tmp_path), ENGINE)
    assert selection.chosen == {}
    told = "; ".join(itertools.chain(*(verdict.words for verdict in selection.trace)))
    for expected in words:
        assert expected in told
