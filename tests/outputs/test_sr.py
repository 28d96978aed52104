"""The report says what was found, where, by what, and that nothing was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import highdicom
import numpy as np
import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset

from node.conformance import check
from node.dicom.source import Source
from node.domain.codes import Code
from node.domain.errors import EncodingError
from node.domain.finding import Assessment, Measurement, Outline
from node.domain.job import derived_uid
from node.outputs.seg import Seg
from node.outputs.sr import Sr
from node.testing.series import SeriesSpec
from tests.results import (
    ALGORITHM,
    SHAPE,
    assessment,
    finding,
    moments,
    reread,
    source,
    written,
)


def segmented(outcome: Assessment, images: Source) -> list[Dataset]:
    made = Seg().encode(outcome, images, ())
    return [] if made is None else [reread(made)]


def encoded(
    outcome: Assessment | None = None,
    images: Source | None = None,
    earlier: Sequence[Dataset] | None = None,
    **options: Any,
) -> Dataset:
    """The report as its reader sees it, beside the segmentation of the same outcome."""
    outcome, images = outcome or assessment(), images or source()
    earlier = segmented(outcome, images) if earlier is None else earlier
    made = Sr(**options).encode(outcome, images, earlier)
    assert made is not None
    return reread(made)


def report(dataset: Dataset) -> highdicom.sr.MeasurementReport:
    return highdicom.sr.Comprehensive3DSR.from_dataset(dataset).content


def content(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or []:
        yield child
        yield from content(child)


def named(dataset: Dataset, code: str) -> list[Dataset]:
    """The content items with a concept name, anywhere."""
    return [i for i in content(dataset) if i.ConceptNameCodeSequence[0].CodeValue == code]


def values(dataset: Dataset, code: str) -> list[str]:
    """The code values of the CODE items with a concept name."""
    return [item.ConceptCodeSequence[0].CodeValue for item in named(dataset, code)]


def numbers(group: Any) -> dict[str, tuple[float, str]]:
    """Measurements of a group: name -> (value, unit)."""
    return {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}


def test_a_finding_has_a_volume_and_an_outline_under_the_tracking_uid_of_its_segment() -> None:
    outcome, images = assessment(3), source()
    [segmentation] = segmented(outcome, images)
    dataset = encoded(outcome, images, [segmentation])
    tree = report(dataset)
    volumetric = tree.get_volumetric_roi_measurement_groups()
    planar = tree.get_planar_roi_measurement_groups()
    wanted = [segment.TrackingUID for segment in segmentation.SegmentSequence]
    assert [group.tracking_uid for group in volumetric] == wanted
    assert [group.tracking_uid for group in planar] == wanted
    for number, group in enumerate(volumetric, start=1):
        assert group.tracking_identifier == finding(number).tracking_id
        assert group.finding_type.meaning == "Lesion"
        assert group.finding_category.meaning == "Morphologically Abnormal Structure"
        assert group.finding_sites[0].value.meaning == "Brain"
        assert group.finding_sites[0].laterality.meaning == "Left"
    segments = [item.ReferencedSOPSequence[0] for item in named(dataset, "121191")]
    assert [item.ReferencedSegmentNumber for item in segments] == [1, 2, 3]
    assert {item.ReferencedSOPInstanceUID for item in segments} == {segmentation.SOPInstanceUID}


def test_measurements_carry_their_units() -> None:
    tree = report(encoded())
    [volumetric] = tree.get_volumetric_roi_measurement_groups()
    [planar] = tree.get_planar_roi_measurement_groups()
    assert numbers(volumetric) == {
        "Volume": (945.0, "mm3"),
        "Long Axis": (11.402, "mm"),
        "Certainty of Finding": (97.31, "%"),
    }
    # 7 x 9 pixels of 1 mm on the key slice.
    assert numbers(planar) == {"Long Axis": (11.402, "mm"), "Area": (63.0, "mm2")}


def test_an_area_that_the_engine_measured_is_not_measured_again() -> None:
    area = Measurement(
        Code("42798000", "SCT", "Area"), 61.5, Code("mm2", "UCUM", "square millimeter")
    )
    measured = replace(finding(), measurements=(area,), probability=None)
    tree = report(encoded(replace(assessment(), findings=(measured,))))
    [planar] = tree.get_planar_roi_measurement_groups()
    assert numbers(planar) == {"Area": (61.5, "mm2")}


def test_the_outline_lies_on_the_key_slice_in_image_coordinates() -> None:
    images = source()
    [region] = named(encoded(images=images), "111030")
    assert (region.ValueType, region.GraphicType) == ("SCOORD", "POLYLINE")
    assert list(region.GraphicData) == [6, 5, 15, 5, 15, 12, 6, 12, 6, 5]
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == images.headers[2].SOPInstanceUID


def test_a_ragged_outline_stays_closed_within_what_its_attribute_holds() -> None:
    angles = np.linspace(0, 2 * np.pi, 20_001)
    points = np.stack([10 + 3 * np.cos(angles), 8 + 3 * np.sin(angles)], axis=1)
    points[-1] = points[0]
    ragged = replace(finding(), outline=Outline(1, points))
    images = source()
    dataset = encoded(replace(assessment(), findings=(ragged,)), images)
    [region] = named(dataset, "111030")
    assert region["GraphicData"].VR == "FL"
    assert 1000 < len(region.GraphicData) <= 2 * 8191
    assert list(region.GraphicData[:2]) == list(region.GraphicData[-2:])


def test_an_outline_beyond_the_images_is_refused() -> None:
    lost = replace(finding(), outline=Outline(6, np.zeros((4, 2))))
    with pytest.raises(EncodingError, match="slice 6, but there are 6 images"):
        Sr().encode(replace(assessment(), findings=(lost,)), source(), ())


def test_without_a_segmentation_the_planar_group_says_all() -> None:
    dataset = encoded(earlier=())
    tree = report(dataset)
    assert tree.get_volumetric_roi_measurement_groups() == []
    [planar] = tree.get_planar_roi_measurement_groups()
    assert set(numbers(planar)) == {"Volume", "Long Axis", "Certainty of Finding"}
    assert check(dataset, source().headers) == ()


def test_without_a_region_the_group_names_the_images_that_show_the_finding() -> None:
    images = source()
    shapeless = replace(finding(), outline=None)
    dataset = encoded(replace(assessment(), findings=(shapeless,)), images, ())
    [group] = report(dataset).get_image_measurement_groups()
    assert [image.referenced_sop_instance_uid for image in group.source_images] == [
        header.SOPInstanceUID for header in images.headers[1:4]
    ]
    assert numbers(group)["Volume"] == (945.0, "mm3")


def test_the_observer_is_the_engine() -> None:
    [context] = report(encoded()).get_observer_contexts()
    observer = context.observer_identifying_attributes
    assert context.observer_type.meaning == "Device"
    assert observer.uid == ALGORITHM.device_uid
    assert (observer.name, observer.model_name) == (ALGORITHM.name, ALGORITHM.name)
    assert observer.manufacturer_name == ALGORITHM.manufacturer
    assert observer.serial_number == ALGORITHM.digest


def test_every_group_names_the_algorithm() -> None:
    dataset = encoded(assessment(2))
    assert len(named(dataset, "125007")) == 4
    for code, wanted in (("111001", ALGORITHM.name), ("111003", ALGORITHM.version)):
        assert [item.TextValue for item in named(dataset, code)] == [wanted] * 4
    parameters = {item.TextValue for item in named(dataset, "111002")}
    assert parameters == {
        f"threshold=0.5; package sha256 {ALGORITHM.digest}; job {assessment().job_id}"
    }
    assert values(dataset, "111000") == ["123110"] * 4


def test_the_library_lists_the_images_with_findings_and_the_evidence_lists_all() -> None:
    images = source()
    earlier = segmented(assessment(), images)
    dataset = encoded(images=images, earlier=earlier)
    [library] = named(dataset, "111028")
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in content(library)
        if item.ValueType == "IMAGE"
    ]
    assert listed == [header.SOPInstanceUID for header in images.headers[1:4]]
    assert values(library, "121139") == ["MR"]
    assert [item.MeasuredValueSequence[0].NumericValue for item in named(library, "110911")] == [24]
    [study] = dataset.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert evidence == {instance.SOPInstanceUID for instance in (*images.headers, *earlier)}


def test_nothing_found_is_a_statement_about_all_images() -> None:
    images = source()
    dataset = encoded(assessment(0), images)
    [group] = report(dataset).get_image_measurement_groups()
    assert len(group.source_images) == SHAPE[0]
    assert values(dataset, "111017") == ["111241"]
    assert values(dataset, "111064") == ["111222"]
    assert [item.TextValue for item in named(dataset, "121106")] == ["Nothing found in 6 images"]
    assert [item.ValueType for item in content(named(dataset, "111028")[0])].count("IMAGE") == 6
    assert check(dataset, images.headers) == ()


def test_a_refusal_gives_its_reason_and_claims_no_image() -> None:
    images = source()
    dataset = encoded(assessment(0, "No series fits: the gantry is tilted by 22 degrees"), images)
    assert values(dataset, "111017") == ["111245"]
    assert values(dataset, "111064") == ["111225"]
    [reason] = named(dataset, "121106")
    assert reason.TextValue == "No series fits: the gantry is tilted by 22 degrees"
    [group] = report(dataset).get_image_measurement_groups()
    assert group.source_images == []
    assert check(dataset, images.headers) == ()


def test_a_refusal_beside_findings_is_a_refusal() -> None:
    dataset = encoded(replace(assessment(1), refusal="the runtime failed"), earlier=())
    assert values(dataset, "111017") == ["111245"]
    assert report(dataset).get_planar_roi_measurement_groups() == []


ORDERED = Code("24590-2", "LN", "MR Brain")
PERFORMED = Code("30657-1", "LN", "MR Brain W contrast IV")


def code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme
    item.CodeMeaning = code.meaning
    return item


def request(*codes: Code) -> Dataset:
    item = Dataset()
    item.RequestedProcedureID = "RP 7"
    item.RequestedProcedureDescription = "Brain, tumour follow-up"
    item.ScheduledProcedureStepID = "SPS 7"
    item.RequestedProcedureCodeSequence = [code_item(code) for code in codes]
    return item


@pytest.mark.parametrize(
    ("extra", "options", "reported"),
    [
        ({"RequestAttributesSequence": [request(ORDERED)]}, {}, "24590-2"),
        ({"ProcedureCodeSequence": [code_item(PERFORMED)]}, {}, "30657-1"),
        (
            {
                "RequestAttributesSequence": [request(ORDERED)],
                "ProcedureCodeSequence": [code_item(PERFORMED)],
            },
            {"procedure": PERFORMED},
            "24590-2",
        ),
        ({"RequestAttributesSequence": [request()]}, {"procedure": ORDERED}, "24590-2"),
        ({"ProcedureCodeSequence": [Dataset()]}, {}, "25056-3"),
        ({}, {}, "25056-3"),
        ({"Modality": "ES"}, {}, "363679005"),
    ],
)
def test_the_procedure_is_the_imaging_procedure_that_the_images_name(
    extra: dict[str, Any], options: dict[str, Any], reported: str
) -> None:
    dataset = encoded(images=source(SeriesSpec(extra=extra)), **options)
    assert values(dataset, "121058") == [reported]


def test_the_order_is_referenced() -> None:
    images = source(SeriesSpec(extra={"RequestAttributesSequence": [request(ORDERED)]}))
    dataset = encoded(images=images)
    [order] = dataset.ReferencedRequestSequence
    assert order.RequestedProcedureID == "RP 7"
    assert order.RequestedProcedureDescription == "Brain, tumour follow-up"
    assert order.AccessionNumber == "ACC1"
    assert order.StudyInstanceUID == dataset.StudyInstanceUID
    assert order.RequestedProcedureCodeSequence[0].CodeValue == "24590-2"
    assert dataset.PerformedProcedureCodeSequence[0].CodeValue == "24590-2"
    assert "ReferencedRequestSequence" not in encoded()


def test_a_prefix_makes_outlines_editable_in_ohif() -> None:
    prefix = "Cornerstone3DTools@^0.1.0:PlanarFreehandROI"
    dataset = encoded(tracking_prefix=prefix)
    identifiers = {item.TextValue for item in named(dataset, "112039")}
    assert identifiers == {f"{prefix}:mr-brain-lesion Lesion 1"}


def test_the_document_is_complete_and_nobody_has_verified_it() -> None:
    dataset = encoded()
    assert dataset.CompletionFlag == "COMPLETE"
    assert dataset.VerificationFlag == "UNVERIFIED"
    assert dataset.PreliminaryFlag == "PRELIMINARY"
    assert dataset.Modality == "SR"
    assert dataset.SeriesDescription == "AI mr-brain-lesion 1.2.0"
    assert dataset.SeriesNumber == 9102
    language = named(dataset, "121049")[0].ConceptCodeSequence[0]
    assert (language.CodeValue, language.CodingSchemeDesignator) == ("en-US", "RFC5646")


@pytest.mark.parametrize("outcome", [assessment(3), assessment(0), assessment(0, "why")])
def test_the_same_assessment_gives_the_same_bytes(outcome: Assessment) -> None:
    images = source()
    earlier = segmented(outcome, images)
    first, again = (Sr().encode(outcome, images, earlier) for _ in range(2))
    assert first is not None and again is not None
    assert written(first) == written(again)


def test_every_time_that_is_not_the_study_s_is_that_of_the_analysis() -> None:
    images = source(SeriesSpec(extra={"TimezoneOffsetFromUTC": "-0330"}))
    dataset = encoded(images=images)
    assert dataset.TimezoneOffsetFromUTC == "-0330"
    assert moments(dataset) == {"20250102", "070000.250000", "20250102070000.250000-0330"}


def test_identifiers_come_from_the_job() -> None:
    dataset, job = encoded(assessment(0)), assessment().job_id
    assert dataset.SOPInstanceUID == derived_uid(job, "sr")
    assert dataset.SeriesInstanceUID == derived_uid(job, "sr series")
    tracked = [item.UID for item in named(dataset, "112040")]
    assert tracked == [derived_uid(job, "assessment")]


def test_a_report_about_no_image_is_refused() -> None:
    with pytest.raises(EncodingError, match="at least one image"):
        Sr().encode(assessment(0), Source((), None), ())


def test_headers_without_pixels_are_evidence_and_not_images() -> None:
    images = source()
    for header in images.headers[3:]:
        del header.Rows
    dataset = encoded(assessment(0, "no series fits"), images)
    assert [item.ValueType for item in content(dataset)].count("IMAGE") == 3
    assert check(dataset, images.headers) == ()


@pytest.mark.parametrize("options", [{"series_number": 2**31}, {"procedure": "MR"}, {"tid": 1500}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sr(**options)
