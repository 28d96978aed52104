"""Findings as a DICOM Segmentation (PS3.3 A.51), the form that viewers draw over the images.

BINARY, because archives and viewers of every age take it. One segment per finding, so that each
lesion can be shown, hidden and measured by itself and carries its own tracking identifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.dicom.identity import stand_in
from node.dicom.provenance import coded, finished, legible, line, person
from node.dicom.source import Source
from node.domain.errors import EncodingError
from node.domain.finding import Algorithm, Assessment, Concept, Finding
from node.domain.job import derived_uid
from node.domain.volume import Grid

_LABEL = "AI_SEGMENTATION"


@dataclass(frozen=True, config={"extra": "forbid"})
class Seg:
    """DICOM Segmentation, BINARY, one segment per finding."""

    series_number: Annotated[int, Field(ge=1, le=2**31 - 1)] = 9101
    """Series Number of the new series."""
    description: Annotated[str, Field(max_length=64)] = ""
    """Series Description; "" means "AI", the engine's name and its version."""
    omit_empty_frames: bool = True
    """Leave out frames without a voxel; false for viewers that want a frame for every slice."""

    def encode(
        self, assessment: Assessment, source: Source, earlier: Sequence[Dataset]
    ) -> Dataset | None:
        """The segmentation on the grid of the source images; None where nothing was found.

        Raises EncodingError when the masks do not fit the images.
        """
        if not assessment.findings:
            return None
        try:
            built = self._build(assessment, source)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # The library sees no patient's data (stand_in), so its words may be repeated.
            raise EncodingError(
                f"the segmentation of job {assessment.job_id} could not be built: {error}"
            ) from error
        return finished(built, assessment, source.headers[0], self.description)

    def _build(self, assessment: Assessment, source: Source) -> Dataset:
        algorithm = legible(assessment)
        images = _images(source)
        segmentation = Segmentation(
            source_images=images,
            pixel_array=_pixels(assessment.findings, images),
            segmentation_type="BINARY",
            segment_descriptions=list(_segments(assessment.findings, algorithm)),
            series_instance_uid=derived_uid(assessment.job_id, "seg series"),
            series_number=self.series_number,
            sop_instance_uid=derived_uid(assessment.job_id, "seg"),
            instance_number=1,
            manufacturer=algorithm.manufacturer,
            manufacturer_model_name=algorithm.name,
            software_versions=algorithm.version,
            device_serial_number=algorithm.digest,
            content_label=_LABEL,
            content_description=line(f"AI {algorithm.name} {algorithm.version}"),
            content_creator_name=person(algorithm.name),
            omit_empty_frames=self.omit_empty_frames,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        # An index for reading that nobody needs here; Python 3.13 warns when it is left open.
        segmentation._db_con.close()
        _derive_dimensions(segmentation, derived_uid(assessment.job_id, "seg dimensions"))
        _pad(segmentation)
        return segmentation


def _images(source: Source) -> list[Dataset]:
    """The source images without identity, agreeing in what the library wants to be equal."""
    if not source.headers:
        raise EncodingError("a segmentation needs the images that it was made from")
    images = [stand_in(header) for header in source.headers]
    first = images[0]
    for image in images:
        # The geometry gate has allowed for rounding between slices; the library would not.
        if "ImageOrientationPatient" in first:
            image.ImageOrientationPatient = first.ImageOrientationPatient
        if source.grid is not None:
            # A header's own value may leave the gap out or name another series' spacing.
            image.SpacingBetweenSlices = _slice_distance(source.grid)
            image.setdefault("SliceThickness", _slice_distance(source.grid))
    lossy = next((i for i in images if i.get("LossyImageCompression") == "01"), None)
    if lossy is not None:
        for keyword in ("", "Ratio", "Method"):
            name = f"LossyImageCompression{keyword}"
            setattr(first, name, lossy.get(name))
    return images


def _slice_distance(grid: Grid) -> float:
    """Millimetres between slices along their normal, which a tilted gantry does not follow."""
    _, row, column = grid.spacing
    return round(grid.voxel_volume / (row * column), 6)


def _pixels(findings: Sequence[Finding], images: Sequence[Dataset]) -> NDArray[Any]:
    """A label map (k, j, i) where findings are apart, else a stack (k, j, i, n)."""
    shape = (len(images), int(images[0].Rows), int(images[0].Columns))
    _fit(findings, shape)
    labels = np.zeros(shape, np.uint8 if len(findings) < 256 else np.uint16)
    for number, finding in enumerate(findings, start=1):
        part, own = labels[finding.region.slab], finding.region.voxels
        if part[own].any():
            return np.stack([f.mask for f in findings], axis=-1).astype(np.uint8)
        part[own] = number
    return labels


def _fit(findings: Sequence[Finding], shape: tuple[int, int, int]) -> None:
    """Raise EncodingError when a mask is empty or lies on another grid than the images."""
    for number, finding in enumerate(findings, start=1):
        if finding.region.shape != shape:
            raise EncodingError(
                f"finding {number} has a mask of shape {finding.region.shape}, but the images form "
                f"{shape}: the engine must give its findings on the source grid"
            )
        if not finding.region.size:
            raise EncodingError(f"finding {number} has no voxel")


def _segments(findings: Sequence[Finding], algorithm: Algorithm) -> Iterator[SegmentDescription]:
    """One description per finding, numbered from 1; labels count within the same concept."""
    counted: Counter[str] = Counter()
    for number, finding in enumerate(findings, start=1):
        concept = finding.concept
        counted[concept.label] += 1
        count = f" {counted[concept.label]}"
        segment = SegmentDescription(
            segment_number=number,
            segment_label=line(concept.label, 64 - len(count)) + count,
            segmented_property_category=coded(concept.category),
            segmented_property_type=coded(concept.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=_identification(algorithm),
            tracking_uid=finding.tracking_uid,
            tracking_id=line(finding.tracking_id),
            display_color=CIELabColor(*concept.colour),
        )
        _locate(segment, concept)
        yield segment


def _identification(algorithm: Algorithm) -> AlgorithmIdentificationSequence:
    sequence = AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=coded(algorithm.family),
        version=algorithm.version,
        source=algorithm.manufacturer,
    )
    sequence[0].AlgorithmParameters = algorithm.parameters
    return sequence


def _locate(segment: Dataset, concept: Concept) -> None:
    """Anatomic region, and laterality where the standard puts it (PS3.3 10.5, C.8.20.4)."""
    if concept.site is None:
        if concept.laterality is not None:
            modifier = [coded(concept.laterality)]
            segment.SegmentedPropertyTypeCodeSequence[
                0
            ].SegmentedPropertyTypeModifierCodeSequence = modifier
        return
    region = coded(concept.site)
    if concept.laterality is not None:
        region.AnatomicRegionModifierSequence = [coded(concept.laterality)]
    segment.AnatomicRegionSequence = [region]


def _derive_dimensions(segmentation: Dataset, uid: str) -> None:
    """Replace the random Dimension Organization UID."""
    for item in (
        *segmentation.DimensionOrganizationSequence,
        *segmentation.DimensionIndexSequence,
    ):
        item.DimensionOrganizationUID = uid


def _pad(segmentation: Dataset) -> None:
    """Pad the pixels with a zero byte; the library takes the character "0" (PS3.5 8.1.1)."""
    bits = segmentation.NumberOfFrames * segmentation.Rows * segmentation.Columns
    size = -(-bits // 8)
    segmentation.PixelData = segmentation.PixelData[:size] + b"\0" * (size % 2)
