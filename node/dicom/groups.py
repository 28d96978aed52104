"""Measurement groups of a report: what is said of a finding, or of a study without one.

Each finding has a volumetric group that references its segment, and a planar group with an outline
on its key slice. Both share the tracking UID with the segment, because viewers join groups by it:
without the outline they show an empty pane, with two UIDs they show nothing at all. The outline is
in image coordinates (SCOORD) for the same reason, which Comprehensive 3D SR allows.

"Assessed, nothing found" and "could not assess" are said in the words of the CAD templates
(PS3.16 TID 4000, CID 6042, CID 6047), for TID 1500 has none of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    FindingSite,
    ImageRegion,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr import Measurement as MeasurementTemplate
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from node.dicom.library import is_image
from node.dicom.provenance import coded
from node.domain.codes import Code
from node.domain.errors import EncodingError
from node.domain.finding import Algorithm, Assessment, Finding, Measurement, Outline
from node.domain.job import derived_uid

Group = (
    MeasurementsAndQualitativeEvaluations
    | PlanarROIMeasurementsAndQualitativeEvaluations
    | VolumetricROIMeasurementsAndQualitativeEvaluations
)

AREA = Code("42798000", "SCT", "Area")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
COMMENT = Code("121106", "DCM", "Comment")
SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
DETECTIONS = Code("111064", "DCM", "Summary of Detections")
NOTHING_FOUND = Code("111241", "DCM", "All algorithms succeeded; without findings")
NOT_ASSESSED = Code("111245", "DCM", "No algorithms succeeded; without findings")
SUCCEEDED = Code("111222", "DCM", "Succeeded")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")

_SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
_PERCENT = Code("%", "UCUM", "Percent")
_PLANAR_UNITS = ("mm", "cm", "mm2", "cm2")
_MOST_POINTS = 8000
"""Graphic Data is FL: 65,534 bytes, or 8,191 pairs, in an explicit transfer syntax."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the groups of one report share: who measured, on which images, and beside what.

    ``images`` are the headers in slice order; ``earlier`` may hold the segmentation;
    ``tracking_prefix`` is put before each Tracking Identifier with a colon.
    """

    algorithm: Algorithm
    images: Sequence[Dataset]
    earlier: Sequence[Dataset] = ()
    tracking_prefix: str = ""


def identification(algorithm: Algorithm) -> AlgorithmIdentification:
    """TID 4019."""
    return AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=[algorithm.parameters],
        family=coded(algorithm.family),
    )


def finding_groups(finding: Finding, context: Context) -> list[Group]:
    """The volumetric and the planar group of a finding.

    Without a segmentation the planar group says all; without an outline too, a group about the
    images that show the finding does. Raises EncodingError when the outline is on no image.
    """
    segment = _segment(finding, context)
    region = None if finding.outline is None else _region(finding.outline, context.images)
    everything = _measured((*finding.measurements, *_certainty(finding)))
    groups: list[Group] = []
    if segment is not None:
        groups.append(
            VolumetricROIMeasurementsAndQualitativeEvaluations(
                **_said(finding, context), referenced_segment=segment, measurements=everything
            )
        )
    if region is not None:
        on_slice = _measured(_planar(finding, context.images)) if groups else everything
        groups.append(
            PlanarROIMeasurementsAndQualitativeEvaluations(
                **_said(finding, context), referenced_region=region, measurements=on_slice
            )
        )
    return groups or [
        MeasurementsAndQualitativeEvaluations(
            **_said(finding, context),
            measurements=everything,
            source_images=[_source_image(image) for image in showing(finding, context.images)],
        )
    ]


def statement(assessment: Assessment, context: Context) -> Group:
    """One group about the images as a whole: nothing was found, or why nothing was assessed."""
    images = [image for image in context.images if is_image(image)]
    if assessment.refusal:
        said, status, words = NOT_ASSESSED, NOT_ATTEMPTED, assessment.refusal
        images = []
    else:
        said, status, words = NOTHING_FOUND, SUCCEEDED, f"Nothing found in {len(images)} images"
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derived_uid(assessment.job_id, "assessment"),
            identifier=f"{context.algorithm.name} assessment",
        ),
        algorithm_id=identification(context.algorithm),
        qualitative_evaluations=[
            QualitativeEvaluation(coded(SUMMARY), coded(said)),
            QualitativeEvaluation(coded(DETECTIONS), coded(status)),
        ],
        source_images=[_source_image(image) for image in images],
    )
    group[0].ContentSequence.append(
        TextContentItem(coded(COMMENT), words, RelationshipTypeValues.CONTAINS)
    )
    return group


def showing(finding: Finding, images: Sequence[Dataset]) -> list[Dataset]:
    """The images on which a finding has voxels, and its key slice."""
    planes = set(finding.region.slices)
    if finding.outline is not None:
        planes.add(finding.outline.slice_index)
    return [image for index, image in enumerate(images) if index in planes]


def _said(finding: Finding, context: Context) -> dict[str, Any]:
    """What every group of a finding says of it."""
    concept = finding.concept
    parts = (context.tracking_prefix, finding.tracking_id)
    sites = [] if concept.site is None else [_site(concept.site, concept.laterality)]
    return {
        "tracking_identifier": TrackingIdentifier(
            uid=finding.tracking_uid, identifier=":".join(part for part in parts if part)
        ),
        "finding_category": coded(concept.category),
        "finding_type": coded(concept.type),
        "finding_sites": sites,
        "algorithm_id": identification(context.algorithm),
    }


def _site(site: Code, laterality: Code | None) -> FindingSite:
    return FindingSite(
        anatomic_location=coded(site),
        laterality=None if laterality is None else coded(laterality),
    )


def _segment(finding: Finding, context: Context) -> ReferencedSegment | None:
    """The segment with the finding's tracking UID, wherever it stands among earlier objects."""
    for instance in context.earlier:
        if instance.SOPClassUID != SegmentationStorage:
            continue
        for segment in instance.SegmentSequence:
            if segment.get("TrackingUID") == finding.tracking_uid:
                # ReferencedSegment.from_segmentation fails where there is one segment only.
                return ReferencedSegment(
                    sop_class_uid=instance.SOPClassUID,
                    sop_instance_uid=instance.SOPInstanceUID,
                    segment_number=int(segment.SegmentNumber),
                    source_series=SourceSeriesForSegmentation(context.images[0].SeriesInstanceUID),
                )
    return None


def _region(outline: Outline, images: Sequence[Dataset]) -> ImageRegion:
    """A closed polyline on the key slice."""
    if not 0 <= outline.slice_index < len(images):
        raise EncodingError(
            f"an outline lies on slice {outline.slice_index}, but there are {len(images)} images"
        )
    image = images[outline.slice_index]
    points = np.asarray(outline.points, np.float64)
    step = -(-len(points) // _MOST_POINTS)
    # The last point stays: it closes the line.
    thinned = points if step == 1 else np.vstack([points[:-1:step], points[-1:]])
    return ImageRegion(
        graphic_type="POLYLINE",
        graphic_data=thinned,
        source_image=SourceImageForRegion(
            referenced_sop_class_uid=image.SOPClassUID,
            referenced_sop_instance_uid=image.SOPInstanceUID,
        ),
    )


def _planar(finding: Finding, images: Sequence[Dataset]) -> Iterator[Measurement]:
    """What belongs to the key slice: lengths and areas, and the area of the mask there."""
    known = False
    for measurement in finding.measurements:
        if measurement.unit.value in _PLANAR_UNITS:
            known = known or measurement.name == AREA
            yield measurement
    if finding.outline is None or known:
        return
    index = finding.outline.slice_index
    spacing = images[index].get("PixelSpacing")
    if spacing:
        pixels = int(np.count_nonzero(finding.region.on_slice(index)))
        area = pixels * float(spacing[0]) * float(spacing[1])
        yield Measurement(AREA, area, _SQUARE_MILLIMETRE)


def _certainty(finding: Finding) -> Iterator[Measurement]:
    if finding.probability is not None:
        yield Measurement(CERTAINTY, finding.probability * 100.0, _PERCENT)


def _measured(measurements: Sequence[Measurement] | Iterator[Measurement]) -> list[Any]:
    """TID 300, with as many decimals as voxels can be trusted for."""
    return [
        MeasurementTemplate(
            name=coded(measurement.name),
            value=round(float(measurement.value), 3),
            unit=coded(measurement.unit),
        )
        for measurement in measurements
    ]


def _source_image(image: Dataset) -> SourceImageForMeasurementGroup:
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=image.SOPClassUID,
        referenced_sop_instance_uid=image.SOPInstanceUID,
    )
