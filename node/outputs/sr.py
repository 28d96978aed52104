"""An assessment as a Comprehensive 3D SR, TID 1500: what an archive, a report or a registry reads.

It is made for every assessment, for a reader must be able to tell "nothing was found" from "the
engine never ran". The groups themselves are built in ``node.dicom.groups``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Annotated

from highdicom.sr import (
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.dicom import predecessors
from node.dicom.groups import Context, Group, finding_groups, showing, statement
from node.dicom.identity import stand_in, text
from node.dicom.library import image_library, is_image
from node.dicom.provenance import coded, finished, legible, line
from node.dicom.source import Source
from node.domain.codes import Code
from node.domain.errors import EncodingError
from node.domain.finding import Algorithm, Assessment
from node.domain.job import derived_uid

_DEVICE = Code("121007", "DCM", "Device")
_IMAGING = Code("363679005", "SCT", "Imaging procedure")
_RADIOGRAPHY = Code("43468-8", "LN", "XR unspecified body region")
_PROCEDURES: Mapping[str, Code] = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "CR": _RADIOGRAPHY,
    "DX": _RADIOGRAPHY,
}
"""Procedures of CID 100 for images whose header names none."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Sr:
    """Comprehensive 3D SR, TID 1500 Measurement Report."""

    series_number: Annotated[int, Field(ge=1, le=2**31 - 1)] = 9102
    """Series Number of the new series."""
    description: Annotated[str, Field(max_length=64)] = ""
    """Series Description; "" means "AI", the engine's name and its version."""
    procedure: Code | None = None
    """Procedure Reported where the images name none, e.g. (24590-2, LN, "MR Brain")."""
    tracking_prefix: str = ""
    """Put before each Tracking Identifier with a colon; OHIF makes the outlines editable with
    "Cornerstone3DTools@^0.1.0:PlanarFreehandROI"."""

    def encode(
        self, assessment: Assessment, source: Source, earlier: Sequence[Dataset]
    ) -> Dataset | None:
        """The report; it is never None, for "nothing found" is a result too.

        Segmentations among ``earlier`` are referenced. Raises EncodingError.
        """
        if not source.headers:
            raise EncodingError("a report needs at least one image of the study it reports on")
        try:
            built = self._build(assessment, source, earlier)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # The library sees no patient's data (stand_in), so its words may be repeated.
            raise EncodingError(
                f"the report of job {assessment.job_id} could not be built: {error}"
            ) from error
        if assessment.predecessors:
            # The library wants the documents themselves, of which the archive may have the only
            # copy; their UIDs are enough.
            built.PredecessorDocumentsSequence = predecessors.sequence(assessment.predecessors)
        return finished(built, assessment, source.headers[0], self.description)

    def _build(self, assessment: Assessment, source: Source, earlier: Sequence[Dataset]) -> Dataset:
        header = source.headers[0]
        stated = _stated_procedures(header)
        context = Context(legible(assessment), source.headers, earlier, self.tracking_prefix)
        return Comprehensive3DSR(
            evidence=[stand_in(instance) for instance in (*source.headers, *earlier)],
            content=_report(assessment, context, stated or (self._procedure(header),)),
            series_instance_uid=derived_uid(assessment.job_id, "sr series"),
            series_number=self.series_number,
            sop_instance_uid=derived_uid(assessment.job_id, "sr"),
            instance_number=1,
            manufacturer=context.algorithm.manufacturer,
            is_complete=True,
            is_verified=False,
            performed_procedure_codes=[coded(code) for code in stated] or None,
            requested_procedures=list(_requests(header)) or None,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )

    def _procedure(self, header: Dataset) -> Code:
        """The procedure of images that do not name theirs."""
        return self.procedure or _PROCEDURES.get(str(header.get("Modality")), _IMAGING)


def _report(
    assessment: Assessment, context: Context, procedures: Sequence[Code]
) -> MeasurementReport:
    """The content tree."""
    report = MeasurementReport(
        observation_context=_observer(context.algorithm),
        procedure_reported=[coded(code) for code in procedures],
        imaging_measurements=_groups(assessment, context),
    )
    used = _used(assessment, context)
    if used:
        # The measurements are last, and the library stands before them (TID 1500 rows 5 and 6).
        content = report[0].ContentSequence
        content.insert(len(content) - 1, image_library(used))
    return report


def _groups(assessment: Assessment, context: Context) -> list[Group]:
    """The measurement groups: at least one, whatever was found."""
    if assessment.refusal or not assessment.findings:
        return [statement(assessment, context)]
    return [group for f in assessment.findings for group in finding_groups(f, context)]


def _used(assessment: Assessment, context: Context) -> list[Dataset]:
    """The images that the report speaks of: those with findings, or all where there is none."""
    images = [image for image in context.images if is_image(image)]
    if assessment.refusal or not assessment.findings:
        return images
    shown = [showing(finding, context.images) for finding in assessment.findings]
    wanted = {image.SOPInstanceUID for several in shown for image in several}
    return [image for image in images if image.SOPInstanceUID in wanted]


def _observer(algorithm: Algorithm) -> ObservationContext:
    """TID 1004: the device that looked, in the words of the Contributing Equipment item."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=coded(_DEVICE),
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=algorithm.device_uid,
                name=algorithm.name,
                manufacturer_name=algorithm.manufacturer,
                model_name=algorithm.name,
                serial_number=algorithm.digest,
            ),
        )
    )


def _stated_procedures(header: Dataset) -> tuple[Code, ...]:
    """The imaging procedure as ordered or as performed, where the header names it in codes."""
    requests = header.get("RequestAttributesSequence") or []
    for holder, keyword in (
        *((request, "RequestedProcedureCodeSequence") for request in requests),
        (header, "RequestedProcedureCodeSequence"),
        (header, "ProcedureCodeSequence"),
    ):
        named = tuple(_codes(holder.get(keyword) or []))
        if named:
            return named
    return ()


def _codes(sequence: Sequence[Dataset]) -> Iterator[Code]:
    """The complete codes of a sequence; headers hold empty and half filled items too."""
    for item in sequence:
        value = str(item.get("CodeValue") or item.get("LongCodeValue") or "")
        scheme = str(item.get("CodingSchemeDesignator") or "")
        meaning = line(str(item.get("CodeMeaning") or ""))
        if value and scheme and meaning:
            yield Code(value, scheme, meaning)


def _requests(header: Dataset) -> Iterator[Dataset]:
    """The orders that the images fulfil, for the Referenced Request Sequence (PS3.3 C.17.2)."""
    for attributes in header.get("RequestAttributesSequence") or []:
        if not attributes.get("RequestedProcedureID"):
            continue
        request = Dataset()
        request.StudyInstanceUID = attributes.get("StudyInstanceUID") or text(
            header, "StudyInstanceUID"
        )
        request.ReferencedStudySequence = []
        request.AccessionNumber = attributes.get("AccessionNumber") or text(
            header, "AccessionNumber"
        )
        request.PlacerOrderNumberImagingServiceRequest = None
        request.FillerOrderNumberImagingServiceRequest = None
        for keyword in ("RequestedProcedureID", "RequestedProcedureDescription"):
            setattr(request, keyword, attributes.get(keyword))
        request.RequestedProcedureCodeSequence = deepcopy(
            attributes.get("RequestedProcedureCodeSequence") or []
        )
        yield request
