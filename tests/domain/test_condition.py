"""Conditions: every test, over every slice, with words that a person can act on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from node.domain.condition import DERIVED, FACTS, PRIVATE, Condition, SeriesFacts, faults, judge
from node.domain.study import Fact


def series(*values: Fact, fact: str = "Modality", **derived: Fact) -> SeriesFacts:
    return SeriesFacts(tuple({fact: value} for value in values), derived)


@pytest.mark.parametrize(
    ("tests", "value", "ok"),
    [
        ({"equals": "MR"}, "MR", True),
        ({"equals": "mr"}, "MR ", True),
        ({"equals": "MR"}, "MRA", False),
        ({"equals": "MR"}, "", False),
        ({"equals": ""}, "", False),
        ({"equals": 3.0}, 3.0, True),
        ({"equals": "3"}, 3.0, True),
        ({"equals": 3.0}, "3T", False),
        ({"equals": "A\\B"}, ("A", "B"), True),
        ({"one_of": ("MR", "CT")}, "CT", True),
        ({"one_of": ("MR", "CT")}, "DX", False),
        ({"matches": "fl[ae]ir"}, "AX T2 FLAIR FS", True),
        ({"matches": "^flair"}, "AX T2 FLAIR FS", False),
        ({"matches": ".*"}, "", False),
        ({"lacks_match": "mip|mpr"}, "AX MIP", False),
        ({"lacks_match": "mip|mpr"}, "", True),
        ({"contains": "primary"}, ("ORIGINAL", "PRIMARY"), True),
        ({"contains": "PRIM"}, ("ORIGINAL", "PRIMARY"), False),
        ({"contains": "MR"}, "MR", True),
        ({"lacks": "DERIVED"}, ("DERIVED", "PRIMARY"), False),
        ({"lacks": "DERIVED"}, ("ORIGINAL", "PRIMARY"), True),
        ({"lacks": "DERIVED"}, (), True),
        ({"at_least": 5.0}, 5.0, True),
        ({"at_least": 5.0}, 4.99, False),
        ({"at_least": 5.0}, "nan", False),
        ({"at_least": 5.0}, "", False),
        ({"at_most": 5.0}, (4.0, 5.0), True),
        ({"at_most": 5.0}, (4.0, 6.0), False),
        ({"at_least": 1.0, "at_most": 2.0}, 3.0, False),
        ({"present": True}, "x", True),
        ({"present": True}, "", False),
        ({"present": False}, "", True),
        ({"present": False}, 0.0, False),
    ],
)
def test_each_test_means_what_its_name_says(tests: dict[str, Any], value: Fact, ok: bool) -> None:
    assert judge(Condition(fact="Modality", **tests), series(value)).ok is ok


def test_every_slice_counts_not_the_first() -> None:
    verdict = judge(Condition(fact="Modality", equals="MR"), series("MR", "MR", "CT"))
    assert not verdict.ok
    assert verdict.words == "Modality is CT in 1 of 3 slices; wanted MR"


def test_any_asks_for_one_slice_only() -> None:
    anywhere = Condition(fact="Modality", equals="MR", over="any")
    assert judge(anywhere, series("CT", "MR")).ok
    verdict = judge(anywhere, series("CT", "CT"))
    assert verdict.words == "Modality is CT in 2 of 2 slices; wanted MR in at least one slice"


def test_a_missing_fact_is_called_missing() -> None:
    facts = SeriesFacts(({}, {}))
    verdict = judge(Condition(fact="InversionTime", at_least=1500), facts)
    assert verdict.words == "InversionTime is missing in 2 of 2 slices; wanted at least 1500"


def test_a_series_without_slices_passes_nothing() -> None:
    assert not judge(Condition(fact="Modality", equals="MR"), SeriesFacts(())).ok


def test_many_values_are_summed_up() -> None:
    facts = series(*(float(n) for n in range(10)), fact="EchoTime")
    words = judge(Condition(fact="EchoTime", equals=80.0), facts).words
    assert words.count("of 10 slices") == 3
    assert "other values in 7" in words


def test_derived_facts_are_of_the_whole_series() -> None:
    facts = series("MR", "MR", slices=2.0)
    verdict = judge(Condition(fact="slices", at_least=10), facts)
    assert not verdict.ok
    assert verdict.words == "slices is 2; wanted at least 10"


def test_a_group_holds_when_one_member_holds() -> None:
    group = Condition(
        any_of=(
            Condition(fact="Modality", equals="MR"),
            Condition(fact="SeriesDescription", matches="flair"),
        )
    )
    assert judge(group, SeriesFacts(({"Modality": "CT", "SeriesDescription": "FLAIR"},))).ok
    verdict = judge(group, series("CT"))
    assert not verdict.ok
    assert verdict.words.startswith("none of: Modality is CT in 1 of 1 slices; wanted MR; or ")


def test_own_words_open_the_refusal() -> None:
    condition = Condition(fact="Modality", equals="MR", reason="this engine reads MR only")
    verdict = judge(condition, series("CT"))
    assert verdict.words.startswith("this engine reads MR only (Modality is CT")
    assert "reads MR only" not in judge(condition, series("MR")).words


def test_words_carry_no_control_characters_and_no_novels() -> None:
    facts = series("\x1b[2J" + "x" * 500, fact="SeriesDescription")
    words = judge(Condition(fact="SeriesDescription", equals="T2"), facts).words
    assert words.isprintable()
    assert len(words) < 150


@pytest.mark.parametrize(
    ("condition", "fault"),
    [
        (Condition(fact="Modalty", equals="MR"), "did you mean Modality?"),
        (Condition(fact="slice", equals=1.0), "did you mean slices?"),
        (Condition(fact="qqq", equals="MR"), "known: "),
        (Condition(equals="MR"), "fact is missing"),
        (Condition(fact="Modality"), "nothing is asked"),
        (Condition(fact="Modality", matches="("), "matches is not a regular expression"),
        (Condition(fact="Modality", lacks_match="["), "lacks_match is not a regular expression"),
        (Condition(fact="EchoTime", at_least=float("nan")), "at_least is nan"),
        (Condition(fact="EchoTime", at_least=2, at_most=1), "nothing can pass"),
        (Condition(fact="PatientName", equals="x"), "identifies the patient"),
        (Condition(fact="Modality", any_of=(Condition(fact="KVP", present=True),)), "stands alone"),
        (Condition(any_of=(Condition(fact="Kvp", present=True),)), "did you mean KVP?"),
    ],
)
def test_a_wrong_condition_is_named_with_what_to_do(condition: Condition, fault: str) -> None:
    assert any(fault in one for one in faults(condition)), faults(condition)


@pytest.mark.parametrize("name", sorted(set(FACTS + DERIVED) - PRIVATE))
def test_every_fact_may_be_asked_for(name: str) -> None:
    assert faults(Condition(fact=name, present=True)) == []


def test_a_manifest_table_becomes_a_condition_and_a_wrong_key_an_error() -> None:
    adapter = TypeAdapter(Condition)
    table = {"any_of": [{"fact": "Modality", "equals": "MR"}, {"fact": "KVP", "equals": 120}]}
    condition = adapter.validate_python(table)
    assert condition.any_of[0] == Condition(fact="Modality", equals="MR")
    assert condition.any_of[1].equals == 120
    with pytest.raises(ValidationError, match="equal"):
        adapter.validate_python({"fact": "Modality", "equal": "MR"})


FACT_VALUES = st.one_of(
    st.text(max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(max_size=4), max_size=3).map(tuple),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
)


@given(
    st.lists(FACT_VALUES, max_size=5),
    st.sampled_from(
        [
            Condition(fact="Modality", equals="MR"),
            Condition(fact="Modality", equals=1.0),
            Condition(fact="Modality", matches="m", at_least=2.0),
            Condition(fact="Modality", lacks="x", present=True),
        ]
    ),
)
def test_judging_never_fails_and_every_agrees_with_any(
    values: list[Fact], condition: Condition
) -> None:
    verdict = judge(condition, series(*values))
    each = [judge(condition, series(value)).ok for value in values]
    assert verdict.ok == (bool(each) and all(each))
    loosely = dataclasses.replace(condition, over="any")
    assert judge(loosely, series(*values)).ok == any(each)
    assert verdict.words.isprintable()
