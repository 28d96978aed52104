"""Identity travels untouched, and nothing but identity travels."""

from __future__ import annotations

from time import perf_counter

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.dicom.identity import CARRIED, carry, stand_in, text
from node.testing.series import SeriesSpec
from tests.results import source

SECRETS = ("Phantom^Demo", "DEMO-1", "19600401", "ACC1")


def header(**extra: object) -> Dataset:
    return source(SeriesSpec(extra=extra)).headers[0]


def carried(origin: Dataset, result: Dataset | None = None) -> Dataset:
    result = Dataset() if result is None else result
    carry(origin, result)
    return result


def test_a_stand_in_names_nobody() -> None:
    bare = stand_in(header())
    assert not any(secret in str(bare) for secret in SECRETS)
    assert bare.SOPInstanceUID == header().SOPInstanceUID
    assert bare.ImagePositionPatient == header().ImagePositionPatient


def test_reading_a_text_leaves_the_bytes_where_they_are() -> None:
    origin = header()
    assert text(origin, "PatientName") == "Phantom^Demo"
    assert text(origin, "PatientComments") == ""
    assert isinstance(origin.get_item("PatientName"), RawDataElement)


def test_what_the_result_said_of_the_patient_is_replaced() -> None:
    made = Dataset()
    made.PatientName, made.IssuerOfPatientID, made.SeriesNumber = "Else^Someone", "elsewhere", 4
    result = carried(header(), made)
    assert result.PatientName == "Phantom^Demo"
    assert "IssuerOfPatientID" not in result
    assert result.SeriesNumber == 4


def test_attributes_that_must_be_present_are_there_even_where_the_source_lacks_them() -> None:
    result = carried(header(PatientBirthDate=None, StudyTime=None, PatientID=""))
    assert "PatientBirthDate" in result and not result.PatientBirthDate
    assert "StudyTime" in result and not result.StudyTime
    assert result.PatientID == ""


def test_an_empty_optional_attribute_is_not_taken_over() -> None:
    result = carried(header(EthnicGroup="", PatientComments="", PatientAge="064Y"))
    assert "EthnicGroup" not in result and "PatientComments" not in result
    assert result.PatientAge == "064Y"


def test_an_illegal_optional_value_stays_the_sender_s_fault() -> None:
    origin = header(PatientAge="81", PatientWeight="70", StudyDescription="x" * 70)
    raw = origin.get_item("PatientWeight")
    assert isinstance(raw, RawDataElement)
    origin["PatientWeight"] = raw._replace(value=b"heavy ", length=6)
    result = carried(origin)
    for keyword in ("PatientAge", "PatientWeight", "StudyDescription"):
        assert keyword not in result


@pytest.mark.parametrize(("method", "kept"), [("pseudonyms", True), ("", False)])
def test_identity_removed_is_said_only_with_its_method(method: str, kept: bool) -> None:
    result = carried(header(PatientIdentityRemoved="YES", DeidentificationMethod=method))
    assert ("PatientIdentityRemoved" in result) is kept
    assert ("DeidentificationMethod" in result) is kept


def test_a_value_of_odd_length_is_padded_as_its_kind_demands() -> None:
    origin = header()
    for keyword, value in (("PatientID", b"odd"), ("StudyInstanceUID", b"1.2.3")):
        raw = origin.get_item(keyword)
        assert isinstance(raw, RawDataElement)
        origin[keyword] = raw._replace(value=value, length=len(value))
    result = carried(origin)
    assert [result.get_item(k).value for k in ("PatientID", "StudyInstanceUID")] == [
        b"odd ",
        b"1.2.3\0",
    ]


def test_no_attribute_of_the_series_or_image_travels() -> None:
    taken = {element.keyword for element in carried(header())}
    assert taken <= {*CARRIED, "SpecificCharacterSet"}
    assert "Manufacturer" not in taken and "SeriesDescription" not in taken


def test_the_source_stays_as_it_was() -> None:
    origin = header()
    result = carried(origin)
    result.PatientName = "Else^Someone"
    assert origin.PatientName == "Phantom^Demo"


@pytest.mark.parametrize("keyword", ["OtherPatientNames", "OtherPatientIDsSequence"])
def test_an_optional_attribute_without_an_end_is_left_behind_at_once(keyword: str) -> None:
    origin = header()
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    endless = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 10**6 if vr == "SQ" else b"\\" * 10_000_000
    origin[tag] = RawDataElement(tag, vr, len(endless), endless, 0, False, True)
    started = perf_counter()
    assert keyword not in carried(origin)
    assert perf_counter() - started < 1.0
