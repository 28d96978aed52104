"""A finished result is compared with the ledger: another patient or study is held back."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.dicom.attribution import refuse_stranger
from node.domain.errors import IdentityError
from node.domain.study import Study
from node.testing.series import SeriesSpec, make, received, save

LATIN_9 = SeriesSpec(character_set="ISO_IR 192", patient_name="Žižkov^Jiří=久恵^野良")


def bytes_of(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def images(spec: SeriesSpec | None = None) -> list[Dataset]:
    return make(spec or SeriesSpec(), np.zeros((2, 4, 4), np.int16))


def study(directory: Path, spec: SeriesSpec | None = None) -> Study:
    instances = received(save(images(spec), directory))
    return Study.of(instances[0].study_uid, instances)


@pytest.mark.parametrize("spec", [SeriesSpec(), LATIN_9, SeriesSpec(patient_id="", birth_date="")])
def test_what_names_the_same_patient_and_study_passes(spec: SeriesSpec, tmp_path: Path) -> None:
    refuse_stranger(bytes_of(images(spec)[0]), study(tmp_path, spec))


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("StudyInstanceUID", "1.2.3", "another study"),
        ("PatientID", "OTHER", "another patient"),
        ("PatientID", "", "another patient"),
        ("PatientName", "Other^Name", "another patient"),
        ("PatientBirthDate", "19990101", "another patient"),
    ],
)
def test_what_names_another_is_held_back_without_naming_anybody(
    keyword: str, value: str, words: str, tmp_path: Path
) -> None:
    result = images()[0]
    setattr(result, keyword, value)
    with pytest.raises(IdentityError, match=words) as caught:
        refuse_stranger(bytes_of(result), study(tmp_path))
    assert "Phantom" not in str(caught.value)
    assert "Other" not in str(caught.value)
