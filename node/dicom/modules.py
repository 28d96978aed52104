"""Attributes that the IODs of our results must hold (PS3.3 A.51 and A.35.13).

Type 1: present with a value. Some that the standard leaves to us are among them, for without them
nobody can say when and by what an object was made.
"""

from __future__ import annotations

from collections.abc import Mapping

Keywords = tuple[str, ...]

COMMON: Keywords = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "ContentDate",
    "ContentTime",
    "TimezoneOffsetFromUTC",
    "SeriesDescription",
    # Enhanced General Equipment (PS3.3 C.7.5.2); we hold reports to the same.
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
"""In every result."""

SEGMENTATION: Keywords = (
    "FrameOfReferenceUID",
    "ImageType",
    "SegmentationType",
    "SegmentSequence",
    "ContentLabel",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
    "PixelData",
)
"""In a Segmentation."""

SEGMENT: Keywords = (
    "SegmentNumber",
    "SegmentLabel",
    "SegmentAlgorithmType",
    "SegmentAlgorithmName",
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentationAlgorithmIdentificationSequence",
    "TrackingID",
    "TrackingUID",
)
"""In each item of the Segment Sequence (C.8.20.2)."""

REPORT: Keywords = (
    "CompletionFlag",
    "VerificationFlag",
    "ValueType",
    "ConceptNameCodeSequence",
    "ContentTemplateSequence",
    "ContentSequence",
    "CurrentRequestedProcedureEvidenceSequence",
)
"""In an SR document, whose root is a content item (C.17.2, C.17.3)."""

PRESENT_IN_REPORT: Keywords = (
    "PerformedProcedureCodeSequence",
    "ReferencedPerformedProcedureStepSequence",
)
"""Type 2 in an SR document: present, though it may be empty."""

VALUE: Mapping[str, str] = {
    "CONTAINER": "ContinuityOfContent",
    "TEXT": "TextValue",
    "CODE": "ConceptCodeSequence",
    "NUM": "MeasuredValueSequence",
    "UIDREF": "UID",
    "IMAGE": "ReferencedSOPSequence",
    "SCOORD": "GraphicData",
}
"""The Type 1 attribute of each value type that we write (PS3.3 C.17.3)."""
REFERENCING: Keywords = (
    "ReferencedSeriesSequence",
    "SourceImageSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ContentSequence",
    "CurrentRequestedProcedureEvidenceSequence",
)
"""Where a result names the objects that it was made from."""
