"""Two headers are one patient's, or they are not: spelling does not count, substance does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.patient import PARTS, agree, merged, patient_key
from node.domain.study import Fact

NORA: dict[str, Fact] = {
    "PatientID": "4711",
    "PatientName": "Quist^Nora",
    "IssuerOfPatientID": "HOSPITAL",
    "PatientBirthDate": "19600401",
}


def nora(**changes: Fact) -> str:
    return patient_key(NORA | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientName": "QUIST^NORA"},
        {"PatientName": "Quist^Nora^^^"},
        {"PatientName": "Quist ^ Nora "},
        {"PatientName": "Quist^Nora=久恵^野良=くえ"},
        {"PatientName": "Quist^Nora"},
        {"PatientID": " 4711 "},
        {"IssuerOfPatientID": ""},
        {"PatientBirthDate": ""},
        {"PatientBirthDate": "", "IssuerOfPatientID": ""},
    ],
)
def test_one_patient_however_it_is_written(changes: dict[str, Fact]) -> None:
    assert agree(nora(), nora(**changes))
    assert merged(nora(**changes), nora()) == nora()


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientName": "Quist^Nils"},
        {"PatientName": ""},
        {"PatientName": "Quist^^Nora"},
        {"PatientID": "4712"},
        {"PatientID": "04711"},
        {"PatientID": ""},
        {"IssuerOfPatientID": "CLINIC"},
        {"PatientBirthDate": "19600104"},
    ],
)
def test_another_patient(changes: dict[str, Fact]) -> None:
    assert not agree(nora(), nora(**changes))


def test_what_one_image_leaves_out_the_next_one_decides() -> None:
    first = nora(PatientBirthDate="")
    both = merged(first, nora())
    assert not agree(both, nora(PatientBirthDate="19610401"))


def test_images_without_any_identity_agree_with_each_other() -> None:
    assert agree(patient_key({}), patient_key({"PatientName": ""}))
    assert not agree(patient_key({}), nora())


def test_a_study_from_before_there_was_a_key_agrees_with_all() -> None:
    assert agree("", nora())
    assert merged("", nora()) == nora()


TEXT = st.text(max_size=8) | st.sampled_from(["", "A", "a", "A^", "A=", "^"])
KEYS = st.fixed_dictionaries(dict.fromkeys(PARTS, TEXT)).map(patient_key)


@given(KEYS, KEYS)
def test_agreement_has_no_direction_and_what_was_merged_agrees(one: str, other: str) -> None:
    assert len(one) == 64
    assert agree(one, one)
    assert agree(one, other) == agree(other, one)
    if agree(one, other):
        both = merged(one, other)
        assert both == merged(other, one)
        assert agree(both, one)
        assert agree(both, other)
