"""The Image Library of a report (PS3.16 TID 1600): which images were used, and what they share.

Only what all images of a series have in common is described, once per series: a description of
each image would make the report of a thin-slice CT larger than its segmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from node.dicom.provenance import coded
from node.domain.codes import Code

_LIBRARY = Code("111028", "DCM", "Image Library")
_GROUP = Code("126200", "DCM", "Image Library Group")
_SOURCE = Code("260753009", "SCT", "Source")
_MODALITY = Code("121139", "DCM", "Modality")
_FRAME_OF_REFERENCE = Code("112227", "DCM", "Frame of Reference UID")
_PIXELS = Code("{pixels}", "UCUM", "pixels")
_MILLIMETRE = Code("mm", "UCUM", "mm")
_NUMBERS = (
    (Code("110910", "DCM", "Pixel Data Rows"), "Rows", _PIXELS),
    (Code("110911", "DCM", "Pixel Data Columns"), "Columns", _PIXELS),
    (Code("111026", "DCM", "Horizontal Pixel Spacing"), "PixelSpacing 1", _MILLIMETRE),
    (Code("111066", "DCM", "Vertical Pixel Spacing"), "PixelSpacing 0", _MILLIMETRE),
)
_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT
_CONTAINS = RelationshipTypeValues.CONTAINS
_MODALITIES = {code.value: code for code in (getattr(codes.cid29, n) for n in codes.cid29.dir())}


def is_image(header: Dataset) -> bool:
    """Whether a header belongs to an object with pixels, which an IMAGE item may reference."""
    return "Rows" in header and "Columns" in header


def image_library(images: Sequence[Dataset]) -> ContainerContentItem:
    """The library of images, one group per series in the order of their first image."""
    library = ContainerContentItem(coded(_LIBRARY), relationship_type=_CONTAINS)
    series: dict[str, list[Dataset]] = {}
    for image in images:
        series.setdefault(str(image.SeriesInstanceUID), []).append(image)
    library.ContentSequence = ContentSequence([_group(members) for members in series.values()])
    return library


def _group(images: Sequence[Dataset]) -> ContainerContentItem:
    group = ContainerContentItem(coded(_GROUP), relationship_type=_CONTAINS)
    references = [
        ImageContentItem(
            name=coded(_SOURCE),
            referenced_sop_class_uid=image.SOPClassUID,
            referenced_sop_instance_uid=image.SOPInstanceUID,
            relationship_type=_CONTAINS,
        )
        for image in images
    ]
    group.ContentSequence = ContentSequence([*_shared(images), *references])
    return group


def _shared(images: Sequence[Dataset]) -> Iterator[ContentItem]:
    """Descriptors (TID 1602) on which all images of a series agree."""
    modality = _agreed(images, "Modality")
    if modality in _MODALITIES:
        yield CodeContentItem(coded(_MODALITY), _MODALITIES[modality], _CONTEXT)
    frame = _agreed(images, "FrameOfReferenceUID")
    if frame:
        yield UIDRefContentItem(coded(_FRAME_OF_REFERENCE), frame, _CONTEXT)
    for name, attribute, unit in _NUMBERS:
        value = _agreed(images, attribute)
        if value:
            number = int(value) if value.isdigit() else float(value)
            yield NumContentItem(coded(name), number, coded(unit), relationship_type=_CONTEXT)


def _agreed(images: Sequence[Dataset], attribute: str) -> str:
    """The one value of an attribute ("Keyword" or "Keyword index"); "" when they differ."""
    keyword, _, index = attribute.partition(" ")
    found = {_value(image, keyword, index) for image in images}
    return found.pop() if len(found) == 1 else ""


def _value(image: Dataset, keyword: str, index: str) -> str:
    value = image.get(keyword)
    if value is None or value == "":
        return ""
    return str(value[int(index)] if index else value)
