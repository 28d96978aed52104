"""Patient and study identity, carried from a source image to a result without a change.

A result that names the patient in other bytes than the images do may end up in another folder of
the archive. So text is never decoded and encoded again on its way: the bytes that arrived are the
bytes that leave, under the Specific Character Set that they came with. Libraries that build
objects get a stand-in without identity, because they refuse what real headers hold (a sex of "W",
a birth date of "unknown", names that do not decode).
"""

from __future__ import annotations

import unicodedata
from copy import deepcopy

from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import validate_value

CHARACTER_SET = "SpecificCharacterSet"

IDENTITY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "AccessionNumber",
)
"""What must be equal in every object of a study; a difference is a wrong patient or study."""

MANDATORY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Type 2 in the Patient and General Study modules: present, though they may be empty."""

_FURTHER = (
    # Patient (PS3.3 C.7.1.1)
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientBirthTime",
    "EthnicGroup",
    "PatientComments",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    # General Study and Patient Study (C.7.2.1, C.7.2.2)
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingServiceCodeSequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSexNeutered",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "IssuerOfServiceEpisodeIDSequence",
    "Occupation",
    "AdditionalPatientHistory",
    # Clinical Trial Subject and Study (C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
CARRIED = tuple(dict.fromkeys((*IDENTITY, *MANDATORY, *_FURTHER)))
"""Every attribute of the Patient and Study entities that a result takes over."""

_PLACE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_METHODS = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
_CUSTOM_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations that the Specific Character Set governs (PS3.5 6.1.2.3)."""
_LONGEST = 16 * 1024
"""Bytes of an optional attribute that is carried; sequences are measured as a whole."""
_PER_FRAME = Tag("PerFrameFunctionalGroupsSequence")


def text(dataset: Dataset, keyword: str) -> str:
    """A value as text without padding; "" where it is absent or empty.

    The data set stays as it was read: an element that is still bytes is not replaced by its
    decoded form, so that it can be carried over later without a loss.
    """
    tag = _tag(keyword)
    if tag not in dataset:
        return ""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        element = convert_raw_data_element(element, encoding=_encodings(dataset), ds=dataset)
    return "" if element is None or element.value is None else str(element.value).strip(" \0")


def stand_in(header: Dataset, patient_id: str = "") -> Dataset:
    """A header that says which image it is and where its pixels lie, and nothing of the patient."""
    bare = Dataset()
    for keyword in (*_PLACE, *_LOSSY):
        value = header.get(keyword)
        if value is not None and value != "":
            setattr(bare, keyword, value)
    for keyword in MANDATORY:
        setattr(bare, keyword, None)
    bare.PatientID = patient_id
    return bare


def carry(header: Dataset, result: Dataset) -> None:
    """Replace the patient and study of ``result`` by those of ``header``, byte for byte.

    Text that ``result`` holds already is its own: characters that the source's character set has
    no place for are replaced by their ASCII neighbours, so that the patient's text need not
    change its encoding. Afterwards ``result`` is written as Explicit VR Little Endian only.
    """
    for keyword in (CHARACTER_SET, *CARRIED):
        result.pop(_tag(keyword), None)
    _fit(result, _own_encoding(header))
    if text(header, CHARACTER_SET):
        result[_tag(CHARACTER_SET)] = _unchanged(header, _tag(CHARACTER_SET))
    for keyword in CARRIED:
        tag = _tag(keyword)
        if tag in header and (keyword in (*IDENTITY, *MANDATORY) or _sound(header, tag)):
            result[tag] = _unchanged(header, tag)
        elif keyword in MANDATORY:
            setattr(result, keyword, None)
    if not any(method in result for method in _METHODS):
        # Many archives of research data say YES and leave out how, which is then Type 1C.
        result.pop(_tag("PatientIdentityRemoved"), None)
    correct_ambiguous_vr(result, True)
    # Only with this does pydicom write bytes that it never decoded as they are.
    result.set_original_encoding(False, True, _encodings(result))


def _sound(header: Dataset, tag: BaseTag) -> bool:
    """Whether an optional attribute is worth carrying: it has a value, and a legal one.

    An empty one says nothing and breaks the rules where it is Type 1C, an age of "81" would make a
    sender's fault ours, and to take apart megabytes of names would take minutes and gigabytes.
    """
    element = header.get_item(tag)
    if element is None or not element.value:
        return False
    if isinstance(element, RawDataElement) and len(element.value) > _LONGEST:
        return False
    try:
        validate_value(dictionary_VR(tag), text(header, keyword_for_tag(tag)), RAISE)
    except ValueError:
        return False
    return True


def _unchanged(header: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    """An element whose text keeps its bytes; sequences are copied item by item."""
    vr = dictionary_VR(tag)
    element = header[tag] if vr == "SQ" else header.get_item(tag)
    if not isinstance(element, RawDataElement):
        return deepcopy(element)
    value = element.value or b""
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return element._replace(
        VR=vr, value=value, length=len(value), is_implicit_VR=False, is_little_endian=True
    )


def _encodings(dataset: Dataset) -> str | list[str]:
    """Python's names of a data set's encodings, as pydicom compares them."""
    if not text_of_character_set(dataset):
        return default_encoding
    return convert_encodings(text_of_character_set(dataset))


def text_of_character_set(dataset: Dataset) -> list[str]:
    """The values of Specific Character Set; empty where it is absent or has no value."""
    value = dataset.get(CHARACTER_SET)
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(part) for part in value]


def _own_encoding(header: Dataset) -> str:
    """The Python encoding in which a result may write text of its own."""
    values = text_of_character_set(header)
    first = convert_encodings(values)[0] if values else default_encoding
    # Code extensions begin in ASCII, and ISO_IR 13 gives backslash and tilde to other characters.
    return "ascii" if first in (default_encoding, "shift_jis") or len(values) > 1 else first


def _fit(dataset: Dataset, encoding: str) -> None:
    """Make every text of a data set representable in an encoding."""
    for element in dataset:
        if element.VR == "SQ" and element.tag != _PER_FRAME:
            for item in element.value:
                _fit(item, encoding)
        elif element.VR in _CUSTOM_TEXT and element.value:
            several = element.VM > 1
            parts = [str(part) for part in element.value] if several else [str(element.value)]
            fitted = [_representable(part, encoding) for part in parts]
            if fitted != parts:
                element.value = fitted if several else fitted[0]


def _representable(value: str, encoding: str) -> str:
    try:
        value.encode(encoding)
    except UnicodeEncodeError:
        plain = unicodedata.normalize("NFKD", value)
        kept = "".join(c for c in plain if not unicodedata.combining(c))
        return kept.encode("ascii", "replace").decode("ascii")
    return value


def _tag(keyword: str) -> BaseTag:
    number = tag_for_keyword(keyword)
    if number is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return Tag(number)
