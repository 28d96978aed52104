"""The keys of a C-FIND, and what the answers mean."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from node.dicom.matching import FindQuery, Match, fits, identifier_of, match_of

MAY = datetime.date(2026, 5, 1)
JUNE = datetime.date(2026, 6, 1)


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (None, None, ""),
        (MAY, None, "20260501-"),
        (None, JUNE, "-20260601"),
        (MAY, JUNE, "20260501-20260601"),
        (MAY, MAY, "20260501-20260501"),
    ],
)
def test_dates_become_a_range(
    first: datetime.date | None, last: datetime.date | None, text: str
) -> None:
    assert identifier_of(FindQuery(date_from=first, date_to=last)).StudyDate == text


def test_the_question_is_at_study_level_and_asks_for_no_patient() -> None:
    identifier = identifier_of(FindQuery(modality="MR"))
    assert identifier.QueryRetrieveLevel == "STUDY"
    assert identifier.ModalitiesInStudy == "MR"
    assert "NumberOfStudyRelatedInstances" in identifier
    assert not identifier.group_dataset(0x0010)


def test_keys_beyond_ascii_say_in_which_character_set_they_are() -> None:
    assert "SpecificCharacterSet" not in identifier_of(FindQuery(description="HEAD*"))
    identifier = identifier_of(FindQuery(description="Schädel*"))
    assert identifier.SpecificCharacterSet == "ISO_IR 192"


def answer(**values: object) -> Dataset:
    identifier = Dataset()
    for keyword, value in {"StudyInstanceUID": "1.2.3", **values}.items():
        setattr(identifier, keyword, value)
    return identifier


def test_an_answer_is_read_as_a_match() -> None:
    match = match_of(
        answer(
            AccessionNumber="A1 ",
            StudyDate="20260501",
            StudyTime="120000",
            ModalitiesInStudy=["CT", "SR"],
            StudyDescription="Head",
            NumberOfStudyRelatedInstances="12",
        )
    )
    assert match == Match("1.2.3", "A1", "20260501", "120000", ("CT", "SR"), "Head", 12)


def test_what_the_peer_leaves_out_is_empty() -> None:
    assert match_of(answer()) == Match("1.2.3")
    assert match_of(answer(NumberOfStudyRelatedInstances=None)) == Match("1.2.3")


@pytest.mark.parametrize("uid", ["", "../../x", "1.2\\1.3", "1.2 3"])
def test_an_answer_that_names_no_study_is_none(uid: str) -> None:
    assert match_of(answer(StudyInstanceUID=uid)) is None
    assert match_of(None) is None


@pytest.mark.parametrize(
    ("query", "match", "fit"),
    [
        (FindQuery(), Match("1"), True),
        (FindQuery(modality="MR"), Match("1", modalities=("MR", "SR")), True),
        (FindQuery(modality="MR"), Match("1", modalities=("CT",)), False),
        (FindQuery(modality="MR"), Match("1"), True),  # the peer does not say
        (FindQuery(description="*brain*"), Match("1", description="MR Brain w/o"), True),
        (FindQuery(description="BRAIN"), Match("1", description="MR Brain"), False),
        (FindQuery(description="br?in"), Match("1", description="Brain"), True),
        (FindQuery(description="*[b]*"), Match("1", description="Brain"), False),
        (FindQuery(description="*[b]*"), Match("1", description="a [B] c"), True),
        (FindQuery(description="*brain*"), Match("1"), True),
        (FindQuery(accession="A1"), Match("1", accession="A12"), False),
        (FindQuery(study_uid="1"), Match("1"), True),
        (FindQuery(study_uid="1"), Match("1.2"), False),
        (FindQuery(date_from=MAY), Match("1", date="20260430"), False),
        (FindQuery(date_from=MAY), Match("1", date="20260501"), True),
        (FindQuery(date_to=MAY), Match("1", date="20260501"), True),
        (FindQuery(date_to=MAY), Match("1", date="20260502"), False),
        (FindQuery(date_from=MAY, date_to=JUNE), Match("1"), True),
    ],
)
def test_answers_are_compared_with_the_question(query: FindQuery, match: Match, fit: bool) -> None:
    assert fits(match, query) is fit


@given(st.text(alphabet="*?[]ab ", max_size=12), st.text(alphabet="[]ab ", max_size=12))
def test_any_pattern_is_compared_without_an_error(pattern: str, value: str) -> None:
    result = fits(Match("1", description=value), FindQuery(description=pattern))
    if pattern == value or set(pattern) == {"*"}:
        assert result
