"""The gate lets good objects pass and holds back every kind of broken one."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage

from node.conformance import check, gate
from node.dicom.source import Source
from node.domain.errors import ConformanceError, EncodingError, IdentityError
from node.domain.finding import Assessment
from node.outputs.seg import Seg
from node.outputs.sr import Sr
from node.testing.series import SeriesSpec
from tests.results import assessment, reread, source, written

IMAGES = source()
OTHER_UID = "2.25.1234567890"
Change = Callable[[Dataset], None]


def seg(outcome: Assessment | None = None, images: Source = IMAGES) -> Dataset:
    made = Seg().encode(outcome or assessment(3), images, ())
    assert made is not None
    return reread(made)


def sr(outcome: Assessment | None = None, images: Source = IMAGES) -> Dataset:
    outcome = outcome or assessment(3)
    earlier = [seg(outcome, images)] if outcome.findings else []
    made = Sr().encode(outcome, images, earlier)
    assert made is not None
    return reread(made)


def faults(dataset: Dataset) -> str:
    """What is wrong with an object after its bytes were written and read."""
    earlier = [seg()] if dataset.Modality == "SR" else []
    return "\n".join(check(reread(dataset), IMAGES.headers, earlier))


def setting(keyword: str, value: object) -> Change:
    return lambda dataset: setattr(dataset, keyword, value)


def removing(keyword: str) -> Change:
    return lambda dataset: delattr(dataset, keyword)


def content(dataset: Dataset, code: str) -> Dataset:
    """The first content item with a concept name."""

    def walk(item: Dataset) -> Dataset | None:
        for child in item.get("ContentSequence") or []:
            if child.ConceptNameCodeSequence[0].CodeValue == code:
                return child
            if (found := walk(child)) is not None:
                return found
        return None

    found = walk(dataset)
    assert found is not None
    return found


def frame(dataset: Dataset) -> Dataset:
    return dataset.PerFrameFunctionalGroupsSequence[1]


def source_of(dataset: Dataset) -> Dataset:
    return frame(dataset).DerivationImageSequence[0].SourceImageSequence[0]


def shift(dataset: Dataset) -> None:
    plane = frame(dataset).PlanePositionSequence[0]
    x, y, z = plane.ImagePositionPatient
    plane.ImagePositionPatient = [x, y, float(z) + 5.0]


def mirror(dataset: Dataset) -> None:
    plane = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def cut(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-2]


def forget_a_source(dataset: Dataset) -> None:
    del dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[-1]


def forget_evidence(dataset: Dataset) -> None:
    study = dataset.CurrentRequestedProcedureEvidenceSequence[0]
    del study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]


def another_device(dataset: Dataset) -> None:
    dataset.ContributingEquipmentSequence[0].DeviceUID = OTHER_UID


def another_version(dataset: Dataset) -> None:
    dataset.ContributingEquipmentSequence[0].SoftwareVersions = "9"


def another_purpose(dataset: Dataset) -> None:
    purpose = dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
    purpose.CodeValue, purpose.CodeMeaning = "109101", "Acquisition Equipment"


def no_device(dataset: Dataset) -> None:
    del dataset.ContributingEquipmentSequence[0].DeviceUID


SEGMENTATION: dict[str, tuple[Change, str]] = {
    "no serial number": (removing("DeviceSerialNumber"), "DeviceSerialNumber is absent or empty"),
    "empty model": (setting("ManufacturerModelName", ""), "ManufacturerModelName is absent"),
    "no birth date": (removing("PatientBirthDate"), "PatientBirthDate is absent (it may be empty)"),
    "no label": (
        lambda d: delattr(d.SegmentSequence[1], "SegmentLabel"),
        "segment 2: SegmentLabel",
    ),
    "illegal UID": (setting("SeriesInstanceUID", "1.02.3"), "SeriesInstanceUID is not a legal UID"),
    "unknown source": (
        lambda d: setattr(source_of(d), "ReferencedSOPInstanceUID", OTHER_UID),
        "neither a source image nor an earlier result",
    ),
    "wrong class": (
        lambda d: setattr(source_of(d), "ReferencedSOPClassUID", ComprehensiveSRStorage),
        "under a SOP class that is not its own",
    ),
    "source not listed": (forget_a_source, "1 source images are not referenced"),
    "no equipment": (removing("ContributingEquipmentSequence"), "0 Contributing Equipment items"),
    "other purpose": (another_purpose, "0 Contributing Equipment items"),
    "no Device UID": (no_device, "Contributing Equipment: DeviceUID is absent"),
    "other version": (another_version, "SoftwareVersions differs from what the content says"),
    "frame elsewhere": (shift, "frame 2 does not lie where its source image lies"),
    "no source": (
        lambda d: delattr(frame(d), "DerivationImageSequence"),
        "frame 2 references no source image",
    ),
    "mirrored": (mirror, "ImageOrientationPatient differs from that of a source image"),
    "frame count": (setting("NumberOfFrames", 4), "NumberOfFrames is not the number"),
    "pixels cut": (cut, "PixelData has not the length of its frames"),
}
REPORT: dict[str, tuple[Change, str]] = {
    "partial": (setting("CompletionFlag", "PARTIAL"), "CompletionFlag is not COMPLETE"),
    "verified": (setting("VerificationFlag", "VERIFIED"), "no person has seen the report"),
    "no time zone": (removing("TimezoneOffsetFromUTC"), "TimezoneOffsetFromUTC is absent"),
    "other class": (setting("SOPClassUID", ComprehensiveSRStorage), "none that this node makes"),
    "no procedures": (
        removing("PerformedProcedureCodeSequence"),
        "PerformedProcedureCodeSequence is absent (it may be empty)",
    ),
    "other title": (
        lambda d: setattr(d.ConceptNameCodeSequence[0], "CodeValue", "121060"),
        "no TID 1500",
    ),
    "other template": (
        lambda d: setattr(d.ContentTemplateSequence[0], "TemplateIdentifier", "2000"),
        "no TID 1500",
    ),
    "other device": (another_device, "DeviceUID differs from what the content says"),
    "other observer": (
        lambda d: setattr(content(d, "121014"), "TextValue", "somebody"),
        "Manufacturer differs from what the content says",
    ),
    "other algorithm": (
        lambda d: setattr(content(d, "111001"), "TextValue", "another"),
        "ManufacturerModelName differs from what the content says",
    ),
    "empty text": (
        lambda d: setattr(content(d, "111002"), "TextValue", ""),
        "a TEXT content item has no TextValue",
    ),
    "unknown value type": (
        lambda d: setattr(content(d, "111002"), "ValueType", "DATE"),
        "unexpected value type DATE",
    ),
    "unknown segment": (
        lambda d: setattr(
            content(d, "121191").ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", OTHER_UID
        ),
        "neither a source image nor an earlier result",
    ),
    "evidence not listed": (forget_evidence, "that the evidence does not list"),
    "lost tracking": (
        lambda d: setattr(content(d, "112040"), "UID", OTHER_UID),
        "a measurement group has a tracking UID that no segment has",
    ),
    "lost group": (
        lambda d: content(d, "126010").ContentSequence.__delitem__(slice(0, 2)),
        "a segment has a tracking UID that no measurement group has",
    ),
}
IDENTITIES = {
    "PatientID": "SOMEONE-ELSE",
    "PatientName": "Else^Someone",
    "IssuerOfPatientID": "another hospital",
    "PatientBirthDate": "19991231",
    "PatientSex": "F",
    "StudyInstanceUID": OTHER_UID,
    "AccessionNumber": "ACC2",
}


@pytest.mark.parametrize("outcome", [assessment(1), assessment(3)])
def test_a_good_segmentation_passes(outcome: Assessment) -> None:
    assert check(seg(outcome), IMAGES.headers) == ()


@pytest.mark.parametrize("outcome", [assessment(1), assessment(3), assessment(0)])
def test_a_good_report_passes(outcome: Assessment) -> None:
    earlier = [seg(outcome)] if outcome.findings else []
    assert check(sr(outcome), IMAGES.headers, earlier) == ()


@pytest.mark.parametrize(("change", "words"), SEGMENTATION.values(), ids=SEGMENTATION)
def test_a_fault_in_a_segmentation_is_named(change: Change, words: str) -> None:
    dataset = seg()
    change(dataset)
    assert words in faults(dataset)


@pytest.mark.parametrize(("change", "words"), REPORT.values(), ids=REPORT)
def test_a_fault_in_a_report_is_named(change: Change, words: str) -> None:
    dataset = sr()
    change(dataset)
    assert words in faults(dataset)


@pytest.mark.parametrize(("keyword", "value"), IDENTITIES.items(), ids=IDENTITIES)
@pytest.mark.parametrize("made", [seg, sr])
def test_another_patient_or_study_is_held_back_without_naming_anyone(
    made: Callable[[], Dataset], keyword: str, value: str
) -> None:
    dataset = made()
    setattr(dataset, keyword, value)
    with pytest.raises(IdentityError, match=keyword) as caught:
        gate(dataset, IMAGES.headers, [seg()] if made is sr else [])
    text = str(caught.value)
    assert value not in text
    assert "DEMO-1" not in text and "Phantom" not in text


def test_a_patient_without_a_name_is_not_another_s() -> None:
    dataset = seg()
    dataset.PatientName = ""
    with pytest.raises(IdentityError):
        gate(dataset, IMAGES.headers)


def test_what_some_images_leave_out_is_no_conflict() -> None:
    images = source()
    images.headers[2].PatientSex = ""
    images.headers[4].AccessionNumber = None
    gate(seg(), images.headers)
    for header in images.headers[1:]:
        header.PatientSex = "F"
    with pytest.raises(IdentityError, match="PatientSex"):
        gate(seg(), images.headers)


def test_a_birth_date_that_got_lost_is_noticed() -> None:
    dataset = seg()
    dataset.PatientBirthDate = ""
    with pytest.raises(IdentityError, match="PatientBirthDate"):
        gate(dataset, IMAGES.headers)


def test_images_with_illegal_uids_get_results_too() -> None:
    odd = {"StudyInstanceUID": "1.2.03.4", "FrameOfReferenceUID": "1.2.03.5"}
    images = source(SeriesSpec(extra=odd))
    made = seg(images=images)
    assert check(made, images.headers) == ()
    assert check(sr(images=images), images.headers, [made]) == ()


def test_another_frame_of_reference_is_held_back() -> None:
    dataset = seg()
    dataset.FrameOfReferenceUID = OTHER_UID
    with pytest.raises(IdentityError, match="FrameOfReferenceUID"):
        gate(dataset, IMAGES.headers)


def test_a_patient_mixed_into_the_source_is_held_back() -> None:
    stranger = source(SeriesSpec(patient_name="Else^Someone")).headers[3]
    headers = (*IMAGES.headers[:3], stranger, *IMAGES.headers[4:])
    with pytest.raises(IdentityError, match="PatientName"):
        gate(seg(), headers)


def test_nothing_passes_without_a_source_to_compare_with() -> None:
    with pytest.raises(IdentityError, match="no source image"):
        gate(seg(), ())


def test_a_file_that_announces_another_object_is_held_back() -> None:
    dataset = seg()
    dataset.file_meta.MediaStorageSOPInstanceUID = OTHER_UID
    assert "file meta information names another object" in "".join(check(dataset, IMAGES.headers))


def test_faults_are_listed_one_per_line() -> None:
    dataset = seg()
    del dataset.DeviceSerialNumber
    shift(dataset)
    with pytest.raises(ConformanceError) as caught:
        gate(dataset, IMAGES.headers)
    assert len(str(caught.value).splitlines()) == 3


def test_an_identity_that_only_the_bytes_betray_is_held_back() -> None:
    # In memory the name is right; written under this character set it turns into question marks.
    images = source(SeriesSpec(patient_name="Иванов", character_set="ISO_IR 144"))
    dataset = seg(images=images)
    dataset.PatientName = str(dataset.PatientName)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    assert check(dataset, images.headers) == ()
    with pytest.raises(IdentityError, match="PatientName"):
        gate(dataset, images.headers)


def test_what_cannot_be_written_is_held_back() -> None:
    dataset = seg()
    dataset.Rows = 70_000
    with pytest.raises(EncodingError, match="cannot be written"):
        gate(dataset, IMAGES.headers)


def test_the_bytes_that_pass_are_the_bytes_that_leave() -> None:
    made = Seg().encode(assessment(), IMAGES, ())
    assert made is not None
    content = gate(made, IMAGES.headers)
    assert content == written(made)
    assert content[:132] == b"\0" * 128 + b"DICM"
    assert check(dcmread(BytesIO(content)), IMAGES.headers) == ()
