"""The gate before delivery: nothing leaves that breaks the standard or names another patient.

Archives store almost anything and viewers fail without a word, so that acceptance proves nothing.
The rules are our own, run in milliseconds on the finished bytes as they were read back, and say in
words what is wrong; the validators of the field (dciodvfy, dcentvfy) confirm them in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, SegmentationStorage

from node.dicom import modules, predecessors
from node.dicom.identity import CARRIED, IDENTITY, MANDATORY, text
from node.domain.codes import PROCESSING_EQUIPMENT, Code
from node.domain.errors import ConformanceError, EncodingError, IdentityError

_REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
_TRACKING_UID = "112040"
_GEOMETRIC_TEMPLATES = ("1410", "1411")
_OBSERVER = {
    "121012": "DeviceUID",
    "121014": "Manufacturer",
    "121015": "ManufacturerModelName",
    "111001": "ManufacturerModelName",
    "111003": "SoftwareVersions",
}
"""Content items and the attributes whose values they repeat (IHE AIR table 6.5.3.1-1)."""
_SOURCE_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_STRICT = ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
"""Identity that every image must state alike."""
_SAME_PLACE = 1e-3
"""Largest distance between a frame and the source image that it references, in millimetres."""
_SAME_PLANE = 5e-3
"""Largest difference of direction cosines, and of pixel spacings in millimetres, between slices."""


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    """A finished object, the images behind it, and what was made of them before."""

    dataset: Dataset
    sources: Sequence[Dataset]
    earlier: Sequence[Dataset]

    @property
    def known(self) -> dict[str, str]:
        """SOP Instance UID -> SOP Class UID of everything that may be referenced."""
        return {str(i.SOPInstanceUID): str(i.SOPClassUID) for i in (*self.sources, *self.earlier)}


def check(
    dataset: Dataset, sources: Sequence[Dataset], earlier: Sequence[Dataset] = ()
) -> tuple[str, ...]:
    """Every fault of an object in words, without a patient's data; empty when it may leave.

    ``sources`` are the headers of the analysed images, ``earlier`` the results made before it.
    """
    result = _Result(dataset, sources, earlier)
    return (*_identity(result), *_faults(result))


def gate(dataset: Dataset, sources: Sequence[Dataset], earlier: Sequence[Dataset] = ()) -> bytes:
    """The Part 10 bytes of an object that passed, to be frozen and delivered as they are.

    The rules run on these bytes, read back. Raises IdentityError when patient, study or frame of
    reference differ from a source, ConformanceError when another rule fails, and EncodingError
    when the object cannot be written.
    """
    content = _written(dataset)
    result = _Result(dcmread(BytesIO(content)), sources, earlier)
    wrong = list(_identity(result))
    if wrong:
        raise IdentityError(
            _listed("is held back, for it may be filed under a wrong patient", wrong)
        )
    faults = _faults(result)
    if faults:
        raise ConformanceError(_listed("is held back, for it breaks the standard", faults))
    return content


def _written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    try:
        dataset.save_as(buffer, enforce_file_format=True)
    except (
        AttributeError,
        KeyError,
        NotImplementedError,
        OSError,  # pydicom's word for a number beyond its value representation
        TypeError,
        ValueError,
    ) as error:
        # The library's words may hold a value; its kind does not.
        raise EncodingError(
            f"a result object cannot be written ({type(error).__name__}); please report this"
        ) from None
    return buffer.getvalue()


def _faults(result: _Result) -> tuple[str, ...]:
    """What every rule but identity finds, each fault once."""
    return tuple(dict.fromkeys(fault for rule in _RULES for fault in rule(result)))


def _listed(what: str, faults: Sequence[str]) -> str:
    return "\n- ".join((f"a result object {what}:", *faults))


def _identity(result: _Result) -> Iterator[str]:
    """Patient, study and frame of reference are those of every source image."""
    if not result.sources:
        yield "there is no source image to compare the identity with"
    shared: modules.Keywords = IDENTITY
    if result.dataset.get("SOPClassUID") == SegmentationStorage:
        shared = (*IDENTITY, "FrameOfReferenceUID")
    for keyword in shared:
        mine = _name(text(result.dataset, keyword))
        theirs = {_name(text(source, keyword)) for source in result.sources}
        if keyword not in _STRICT and mine in theirs:
            # Within a study some images leave out what others state; that is no conflict.
            theirs -= {""} if mine else theirs
        if theirs - {mine}:
            yield f"{keyword} differs from that of a source image"


def _name(value: str) -> str:
    # Trailing delimiters of a person name carry no meaning (PS3.5 6.2.1.1).
    return value.rstrip("^= ")


def _attributes(result: _Result) -> Iterator[str]:
    """Type 1 attributes have values, and Type 2 attributes are present."""
    dataset = result.dataset
    kind = dataset.get("SOPClassUID")
    if kind not in (SegmentationStorage, Comprehensive3DSRStorage):
        yield f"the SOP class {kind} is none that this node makes"
    yield from _missing(dataset, modules.COMMON, "")
    present: modules.Keywords = MANDATORY
    if kind == SegmentationStorage:
        yield from _missing(dataset, modules.SEGMENTATION, "")
        for segment in dataset.get("SegmentSequence") or []:
            where = f"segment {segment.get('SegmentNumber')}: "
            yield from _missing(segment, modules.SEGMENT, where)
    if kind == Comprehensive3DSRStorage:
        yield from _missing(dataset, modules.REPORT, "")
        present = (*MANDATORY, *modules.PRESENT_IN_REPORT)
    for keyword in present:
        if keyword not in dataset:
            yield f"{keyword} is absent (it may be empty)"


def _missing(dataset: Dataset, keywords: modules.Keywords, where: str) -> Iterator[str]:
    for keyword in keywords:
        value = dataset.get(keyword)
        if value is None or (hasattr(value, "__len__") and len(value) == 0):
            yield f"{where}{keyword} is absent or empty"


def _uids(result: _Result) -> Iterator[str]:
    """UIDs of our own are legal, and the file meta information names the same object."""
    # Images with illegal UIDs exist, and a result can name them in no other way.
    theirs = {text(source, keyword) for source in result.sources for keyword in _SOURCE_UIDS}
    for element in result.dataset:
        if element.keyword not in CARRIED:
            yield from _illegal(element, theirs)
    meta = getattr(result.dataset, "file_meta", None)
    if meta is None or (
        meta.get("MediaStorageSOPInstanceUID") != result.dataset.get("SOPInstanceUID")
        or meta.get("MediaStorageSOPClassUID") != result.dataset.get("SOPClassUID")
    ):
        yield "the file meta information names another object than the data set"


def _illegal(element: DataElement, theirs: Set[str]) -> Iterator[str]:
    if element.VR == "SQ":
        for item in element.value:
            for inner in item:
                yield from _illegal(inner, theirs)
    elif element.VR == "UI" and element.value:
        several = element.value if element.VM > 1 else [element.value]
        if not all(str(uid) in theirs or UID(str(uid)).is_valid for uid in several):
            yield f"{element.keyword} is not a legal UID"


def _references(result: _Result) -> Iterator[str]:
    """What is referenced exists under its class, and every source image is referenced."""
    known = result.known
    made = set()
    for item in _referenced(result.dataset):
        uid = str(item.ReferencedSOPInstanceUID)
        made.add(uid)
        if uid not in known:
            yield "an object is referenced that is neither a source image nor an earlier result"
        elif str(item.get("ReferencedSOPClassUID")) != known[uid]:
            yield "an object is referenced under a SOP class that is not its own"
    listed = _evidence(result.dataset)
    if made - listed:
        yield "an object is referenced that the evidence does not list under its series"
    missing = {str(source.SOPInstanceUID) for source in result.sources} - listed
    if missing:
        yield f"{len(missing)} source images are not referenced"


def _referenced(dataset: Dataset) -> Iterator[Dataset]:
    """Every item that names a SOP instance in the parts where a result names its sources."""
    for keyword in modules.REFERENCING:
        for top in dataset.get(keyword) or []:
            yield from _naming(top)


def _naming(item: Dataset) -> Iterator[Dataset]:
    if "ReferencedSOPInstanceUID" in item:
        yield item
    for element in item:
        if element.VR == "SQ":
            for inner in element.value:
                yield from _naming(inner)


def _evidence(dataset: Dataset) -> set[str]:
    """SOP Instance UIDs that are listed with their series, which viewers need to fetch them."""
    lists = [
        (s, "ReferencedInstanceSequence") for s in dataset.get("ReferencedSeriesSequence") or []
    ]
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []:
        lists += [(s, "ReferencedSOPSequence") for s in study.get("ReferencedSeriesSequence") or []]
    return {
        str(item.get("ReferencedSOPInstanceUID"))
        for series, keyword in lists
        for item in series.get(keyword) or []
    }


def _equipment(result: _Result) -> Iterator[str]:
    """One Contributing Equipment item says which algorithm made the object (IHE AIR A1, A3)."""
    items = [
        item
        for item in result.dataset.get("ContributingEquipmentSequence") or []
        if _is(item.get("PurposeOfReferenceCodeSequence"), PROCESSING_EQUIPMENT)
    ]
    if len(items) != 1:
        yield f"{len(items)} Contributing Equipment items say Processing Equipment, not one"
        return
    wanted = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID")
    yield from _missing(items[0], wanted, "Contributing Equipment: ")
    for keyword, value in _repeated(result.dataset):
        if value != str(items[0].get(keyword)):
            yield f"Contributing Equipment: {keyword} differs from what the content says"


def _repeated(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """(attribute of the equipment item, what the content says of it)."""
    for segment in dataset.get("SegmentSequence") or []:
        for algorithm in segment.get("SegmentationAlgorithmIdentificationSequence") or []:
            yield "ManufacturerModelName", str(algorithm.get("AlgorithmName"))
            yield "SoftwareVersions", str(algorithm.get("AlgorithmVersion"))
            yield "Manufacturer", str(algorithm.get("AlgorithmSource"))
    for item in _content(dataset):
        keyword = _OBSERVER.get(_concept(item))
        if keyword is not None:
            yield keyword, str(item.get("UID") or item.get("TextValue"))


def _tracking(result: _Result) -> Iterator[str]:
    """Regions in a report and segments share their tracking UIDs, both ways."""
    if result.dataset.get("SOPClassUID") != Comprehensive3DSRStorage:
        return
    segments = {
        str(segment.get("TrackingUID"))
        for instance in result.earlier
        for segment in instance.get("SegmentSequence") or []
    }
    if not segments:
        return
    regions = {
        str(item.get("UID"))
        for group in _content(result.dataset)
        if _template(group) in _GEOMETRIC_TEMPLATES
        for item in group.get("ContentSequence") or []
        if _concept(item) == _TRACKING_UID
    }
    if regions - segments:
        yield "a measurement group has a tracking UID that no segment has"
    if segments - regions:
        yield "a segment has a tracking UID that no measurement group has"


def _document(result: _Result) -> Iterator[str]:
    """A report is a complete, unverified TID 1500 whose content items have their values."""
    dataset = result.dataset
    if dataset.get("SOPClassUID") != Comprehensive3DSRStorage:
        return
    if dataset.get("CompletionFlag") != "COMPLETE":
        yield "CompletionFlag is not COMPLETE"
    if dataset.get("VerificationFlag") != "UNVERIFIED":
        yield "VerificationFlag is not UNVERIFIED, but no person has seen the report"
    if _template(dataset) != "1500" or not _is(
        dataset.get("ConceptNameCodeSequence"), _REPORT_TITLE
    ):
        yield "the report is no TID 1500 Imaging Measurement Report"
    yield from predecessors.faults(dataset)
    for item in _content(dataset):
        attribute = modules.VALUE.get(str(item.get("ValueType")))
        if attribute is None:
            yield f"a content item has the unexpected value type {item.get('ValueType')}"
        elif not item.get(attribute):
            yield f"a {item.ValueType} content item has no {attribute}"


def _content(dataset: Dataset) -> Iterator[Dataset]:
    """Every content item below the root."""
    for item in dataset.get("ContentSequence") or []:
        yield item
        yield from _content(item)


def _concept(item: Dataset) -> str:
    """The code value of a content item's name, where its scheme is DCM."""
    for code in item.get("ConceptNameCodeSequence") or []:
        if code.get("CodingSchemeDesignator") == "DCM":
            return str(code.get("CodeValue"))
    return ""


def _template(item: Dataset) -> str:
    for template in item.get("ContentTemplateSequence") or []:
        return str(template.get("TemplateIdentifier"))
    return ""


def _is(sequence: Sequence[Dataset] | None, code: Code) -> bool:
    return [
        (item.get("CodeValue"), item.get("CodingSchemeDesignator")) for item in sequence or []
    ] == [(code.value, code.scheme)]


def _planes(result: _Result) -> Iterator[str]:
    """Every frame lies where the source image lies that it says it was made from."""
    dataset = result.dataset
    if dataset.get("SOPClassUID") != SegmentationStorage:
        return
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != dataset.get("NumberOfFrames"):
        yield f"NumberOfFrames is not the number of per-frame items, {len(frames)}"
    bits = len(frames) * int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if len(dataset.get("PixelData") or b"") != 2 * -(-bits // 16):
        yield "PixelData has not the length of its frames"
    positions = {str(s.SOPInstanceUID): s.get("ImagePositionPatient") for s in result.sources}
    yield from _orientation(result)
    for number, frame in enumerate(frames, start=1):
        uids = [str(item.ReferencedSOPInstanceUID) for item in _naming(frame)]
        if not uids:
            yield f"frame {number} references no source image"
        planes = frame.get("PlanePositionSequence") or [Dataset()]
        mine = planes[0].get("ImagePositionPatient")
        if not all(_equal(mine, positions.get(uid), _SAME_PLACE) for uid in uids):
            yield f"frame {number} does not lie where its source image lies"


def _orientation(result: _Result) -> Iterator[str]:
    shared = (result.dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for sequence, keyword in (
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        mine = (shared.get(sequence) or [Dataset()])[0].get(keyword)
        if not all(_equal(mine, s.get(keyword), _SAME_PLANE) for s in result.sources):
            yield f"{keyword} differs from that of a source image"


def _equal(mine: Sequence[float] | None, other: Sequence[float] | None, tolerance: float) -> bool:
    """Whether two lists of numbers agree; two absent ones do."""
    if not mine or not other:
        return not mine and not other
    return len(mine) == len(other) and bool(
        np.allclose(np.asarray(mine, float), np.asarray(other, float), rtol=0, atol=tolerance)
    )


_Rule = Callable[[_Result], Iterator[str]]
_RULES: tuple[_Rule, ...] = (
    _attributes,
    _uids,
    _references,
    _equipment,
    _tracking,
    _document,
    _planes,
)
