"""The segmentation says where every finding is, and what it is, and changes nothing else."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from node.conformance import check
from node.dicom.source import Source
from node.domain.errors import EncodingError
from node.domain.finding import Assessment, Concept, Finding, Region
from node.domain.job import derived_uid
from node.outputs.seg import Seg
from node.testing.series import AXIAL, CORONAL, SAGITTAL, SeriesSpec
from tests.results import (
    ALGORITHM,
    BOXES,
    LESION,
    SHAPE,
    assessment,
    finding,
    moments,
    of_algorithm,
    reread,
    source,
    written,
)


def encoded(
    outcome: Assessment | None = None, images: Source | None = None, **options: Any
) -> Dataset:
    """The segmentation as its reader sees it."""
    made = Seg(**options).encode(outcome or assessment(), images or source(), ())
    assert made is not None
    return reread(made)


def masks(dataset: Dataset, images: Source) -> NDArray[np.bool_]:
    """The segments (n, k, j, i) at the places of the source images, read by highdicom."""
    segmentation = highdicom.seg.Segmentation.from_dataset(dataset)
    # highdicom leaves its index open, of which Python 3.13 warns.
    with closing(segmentation._db_con):
        pixels = segmentation.get_pixels_by_source_instance(
            [header.SOPInstanceUID for header in images.headers],
            ignore_spatial_locations=False,
            assert_missing_frames_are_empty=True,
        )
    return np.moveaxis(pixels, -1, 0).astype(bool)


def shared(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0]


@pytest.mark.parametrize("findings", [1, 3])
def test_a_reader_finds_each_mask_at_the_place_of_its_source_image(findings: int) -> None:
    outcome, images = assessment(findings), source()
    read = masks(encoded(outcome, images), images)
    assert len(read) == findings
    for mask, made in zip(read, outcome.findings, strict=True):
        np.testing.assert_array_equal(mask, made.mask)


DIRECTIONS = st.one_of(
    st.sampled_from([AXIAL, CORONAL, SAGITTAL]),
    st.tuples(*[st.floats(-180, 180)] * 3).map(
        lambda angles: tuple(
            Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, :2].T.ravel().tolist()
        )
    ),
)


@st.composite
def volumes(draw: st.DrawFn) -> tuple[SeriesSpec, NDArray[np.bool_]]:
    """A series of any place and order, and one to three masks (n, k, j, i) that may overlap."""
    slices = draw(st.integers(2, 6))
    lengths = st.floats(0.3, 9.0).map(lambda length: round(length, 4))
    spec = SeriesSpec(
        orientation=draw(DIRECTIONS),
        origin=draw(st.tuples(*[st.floats(-300, 300)] * 3)),
        spacing=draw(st.tuples(lengths, lengths, lengths)),
        tilt_degrees=draw(st.sampled_from([0.0, 0.0, 17.5, -12.0])),
        order=draw(st.permutations(range(slices))),
    )
    shape = (draw(st.integers(1, 3)), slices, draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = random.random(shape) < draw(st.sampled_from([0.02, 0.5, 1.0]))
    found[:, draw(st.integers(0, slices - 1)), 0, -1] = True
    return spec, found


@settings(max_examples=30)
@given(volumes())
def test_every_volume_comes_back_from_its_segmentation(
    case: tuple[SeriesSpec, NDArray[np.bool_]],
) -> None:
    spec, found = case
    images = source(spec, found.shape[1:])
    findings = tuple(
        replace(finding(number), region=Region.of(mask), outline=None)
        for number, mask in enumerate(found, 1)
    )
    dataset = encoded(replace(assessment(), findings=findings), images)
    np.testing.assert_array_equal(masks(dataset, images), found)
    slices = {header.SOPInstanceUID: k for k, header in enumerate(images.headers)}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        origin = frame.DerivationImageSequence[0].SourceImageSequence[0]
        corner = spec.affine @ (slices[origin.ReferencedSOPInstanceUID], 0, 0, 1)
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(position, float), corner[:3], atol=1e-6)
    directions = shared(dataset).PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(np.array(directions, float), spec.orientation, atol=1e-9)
    assert check(dataset, images.headers) == ()


def test_nothing_found_makes_no_segmentation() -> None:
    assert Seg().encode(assessment(0), source(), ()) is None
    assert Seg().encode(assessment(0, "no series fits"), source(), ()) is None


def test_the_same_assessment_gives_the_same_bytes() -> None:
    first = Seg().encode(assessment(3), source(), ())
    again = Seg().encode(assessment(3), source(), ())
    assert first is not None and again is not None
    assert written(first) == written(again)


def test_every_time_that_is_not_the_study_s_is_that_of_the_analysis() -> None:
    images = source(SeriesSpec(extra={"TimezoneOffsetFromUTC": "+0530"}))
    dataset = encoded(images=images)
    assert dataset.TimezoneOffsetFromUTC == "+0530"
    # 10:30:00.25 UTC, half past five hours later.
    assert moments(dataset) == {"20250102", "160000.250000", "20250102160000.250000+0530"}


def test_identifiers_come_from_the_job() -> None:
    dataset = encoded()
    other = encoded(replace(assessment(), job_id="another"))
    job = assessment().job_id
    assert dataset.SOPInstanceUID == derived_uid(job, "seg")
    assert dataset.SeriesInstanceUID == derived_uid(job, "seg series")
    for item in dataset.DimensionIndexSequence:
        assert item.DimensionOrganizationUID == derived_uid(job, "seg dimensions")
    assert other.SOPInstanceUID != dataset.SOPInstanceUID
    assert other.SeriesInstanceUID != dataset.SeriesInstanceUID


def test_each_segment_says_what_it_is_and_what_found_it() -> None:
    segments = encoded(assessment(3)).SegmentSequence
    assert [segment.SegmentNumber for segment in segments] == [1, 2, 3]
    assert [segment.SegmentLabel for segment in segments] == ["Lesion 1", "Lesion 2", "Lesion 3"]
    for number, segment in enumerate(segments, start=1):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == ALGORITHM.name
        assert segment.TrackingUID == finding(number).tracking_uid
        assert segment.TrackingID == finding(number).tracking_id
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == LESION.type.value
        region = segment.AnatomicRegionSequence[0]
        assert region.CodeMeaning == "Brain"
        assert region.AnatomicRegionModifierSequence[0].CodeMeaning == "Left"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmVersion == ALGORITHM.version
        assert algorithm.AlgorithmSource == ALGORITHM.manufacturer
        assert ALGORITHM.digest in algorithm.AlgorithmParameters
        assert assessment().job_id in algorithm.AlgorithmParameters


def test_laterality_without_a_site_modifies_the_type() -> None:
    sided = Concept("Kidney", LESION.category, LESION.type, None, LESION.laterality)
    dataset = encoded(replace(assessment(), findings=(replace(finding(), concept=sided),)))
    [kind] = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert "AnatomicRegionSequence" not in dataset.SegmentSequence[0]


def test_the_colour_is_that_of_the_concept() -> None:
    # PS3.3 C.10.7.1.1: L* 0..100 and a*, b* -128..127 are scaled to 0..65535.
    lightness, a, b = LESION.colour
    wanted = [lightness / 100 * 65535, (a + 128) / 255 * 65535, (b + 128) / 255 * 65535]
    colour = encoded().SegmentSequence[0].RecommendedDisplayCIELabValue
    np.testing.assert_allclose(colour, wanted, atol=1)


def test_every_source_image_is_referenced_not_only_those_with_frames() -> None:
    images = source()
    dataset = encoded(images=images)
    assert dataset.NumberOfFrames == 3
    [series] = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == images.headers[0].SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == [
        header.SOPInstanceUID for header in images.headers
    ]


def test_frames_without_a_voxel_can_be_kept() -> None:
    assert encoded(omit_empty_frames=False).NumberOfFrames == SHAPE[0]


def test_the_object_names_its_maker_once_in_the_words_of_ihe_air() -> None:
    dataset = encoded()
    [item] = dataset.ContributingEquipmentSequence
    purpose = item.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109102", "DCM")
    assert item.Manufacturer == dataset.Manufacturer == ALGORITHM.manufacturer
    assert item.ManufacturerModelName == dataset.ManufacturerModelName == ALGORITHM.name
    assert item.SoftwareVersions == dataset.SoftwareVersions[0] == ALGORITHM.version
    assert item.DeviceUID == ALGORITHM.device_uid
    assert dataset.DeviceSerialNumber == ALGORITHM.digest
    assert dataset.SeriesDescription == "AI mr-brain-lesion 1.2.0"
    assert dataset.ContentCreatorName == "mr-brain-lesion^"
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY"]


def test_the_series_is_described_as_the_configuration_says() -> None:
    dataset = encoded(series_number=77, description="Brain lesions")
    assert (dataset.SeriesNumber, dataset.SeriesDescription) == (77, "Brain lesions")


def test_overlapping_findings_keep_their_voxels() -> None:
    two = (finding(1, BOXES[0]), finding(2, (slice(2, 6), slice(0, 9), slice(3, 20))))
    assert (two[0].mask & two[1].mask).any()
    images = source()
    dataset = encoded(replace(assessment(), findings=two), images)
    assert dataset.SegmentsOverlap == "YES"
    for mask, made in zip(masks(dataset, images), two, strict=True):
        np.testing.assert_array_equal(mask, made.mask)


def test_more_findings_than_a_byte_counts_are_told_apart() -> None:
    findings: list[Finding] = []
    for number in range(257):
        mask = np.zeros(SHAPE, bool)
        mask[number // 60, number % 20, (number // 20) % 3] = True
        findings.append(replace(finding(number + 1), region=Region.of(mask), outline=None))
    images = source()
    read = masks(encoded(replace(assessment(), findings=tuple(findings)), images), images)
    assert all((read[n] == findings[n].mask).all() for n in range(257))


def test_a_lossy_source_is_said_to_be_lossy() -> None:
    images = source()
    images.headers[2].LossyImageCompression = "01"
    images.headers[2].LossyImageCompressionRatio = "12.5"
    images.headers[2].LossyImageCompressionMethod = "ISO_10918_1"
    dataset = encoded(images=images)
    assert dataset.LossyImageCompression == "01"
    assert dataset.LossyImageCompressionRatio == 12.5
    assert dataset.LossyImageCompressionMethod == "ISO_10918_1"
    assert encoded().LossyImageCompression == "00"


def test_rounding_between_slices_is_no_obstacle() -> None:
    images = source()
    images.headers[3].ImageOrientationPatient = [1, 0.00001, 0, -0.00001, 1, 0]
    dataset = encoded(images=images)
    assert check(dataset, images.headers) == ()


def test_slices_say_their_distance_even_where_the_header_is_wrong() -> None:
    images = source(SeriesSpec(tilt_degrees=20, extra={"SpacingBetweenSlices": "1.1"}))
    measures = shared(encoded(images=images)).PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(5.0)
    assert float(measures.SliceThickness) == 5.0


def test_pixels_are_padded_with_zeros() -> None:
    shape = (2, 3, 7)
    mask = np.zeros(shape, bool)
    mask[0] = True
    small = replace(finding(), region=Region.of(mask), outline=None)
    dataset = encoded(replace(assessment(), findings=(small,)), source(shape=shape))
    # 21 bits are three bytes, and a value has an even length.
    assert dataset.PixelData == b"\xff\xff\x1f\x00"


def test_a_missing_slice_thickness_is_no_obstacle() -> None:
    images = source(SeriesSpec(extra={"SliceThickness": None}))
    measures = shared(encoded(images=images)).PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 5.0


def test_masks_on_another_grid_are_refused() -> None:
    wrong = replace(finding(), region=Region.of(np.ones((6, 20, 25), bool)))
    with pytest.raises(EncodingError, match=r"shape \(6, 20, 25\).*source grid"):
        Seg().encode(replace(assessment(), findings=(wrong,)), source(), ())


def test_a_finding_without_voxels_is_refused() -> None:
    empty = replace(finding(), region=Region.of(np.zeros(SHAPE, bool)))
    with pytest.raises(EncodingError, match="finding 2 has no voxel"):
        Seg().encode(replace(assessment(), findings=(finding(), empty)), source(), ())


def test_images_outside_of_any_frame_of_reference_are_refused() -> None:
    images = source(SeriesSpec(extra={"FrameOfReferenceUID": None}))
    with pytest.raises(EncodingError, match="Frame Of Reference"):
        Seg().encode(assessment(), images, ())


def test_an_engine_without_a_name_is_refused() -> None:
    with pytest.raises(EncodingError, match=r"engine\.toml"):
        Seg().encode(of_algorithm(assessment(), name=" "), source(), ())


def test_long_and_odd_words_of_an_engine_are_cut_to_what_dicom_holds() -> None:
    odd = of_algorithm(assessment(), name="a\\b^c=" + "n" * 80, version="1\n2")
    images = source()
    dataset = encoded(odd, images)
    assert dataset.ManufacturerModelName == ("a b^c=" + "n" * 80)[:64]
    assert dataset.SoftwareVersions[0] == "1 2"
    assert check(dataset, images.headers) == ()


@pytest.mark.parametrize("options", [{"series_number": 0}, {"description": "x" * 65}, {"size": 1}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Seg(**options)
