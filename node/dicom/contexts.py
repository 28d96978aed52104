"""Presentation contexts: what we accept, and what we propose for a list of files.

As acceptor we take every storage SOP class in every standard transfer syntax in which the data
set itself is not deflated: the bytes go to the spool as they are, so a syntax that we cannot
decode is still received. A deflated data set would have to be inflated before its header can be
read, and a kilobyte of it can hold a gigabyte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydicom._uid_dict import UID_dictionary
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AllStoragePresentationContexts, build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import ServiceClass, StorageServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from node.domain.errors import HeaderError, may_pass

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"

MOST_CONTEXTS = 128
"""An association has at most 128 presentation contexts (odd one-byte ids, PS3.8 9.3.2.2)."""

_DEFLATED = {
    DeflatedExplicitVRLittleEndian,
    "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
    "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
}


def _missing_storage_classes() -> Iterable[tuple[str, str]]:
    """UID and keyword of the storage classes of the standard that pynetdicom does not serve.

    Most are retired, and old archives and scanners still send them. What pynetdicom knows as
    another service (Storage Commitment, the non-patient objects) is no part of a study.
    """
    for uid, (name, kind, _, _, keyword) in UID_dictionary.items():
        stored = kind == "SOP Class" and "Storage" in name
        other = "Media Storage" in name or "Storage Commitment" in name
        if stored and not other and uid_to_service_class(uid) is ServiceClass:
            yield uid, keyword


def _storage_classes() -> tuple[str, ...]:
    served = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    for uid, keyword in list(_missing_storage_classes()):
        register_uid(uid, keyword, StorageServiceClass)
        served.append(uid)
    return tuple(served)


STORAGE_CLASSES = _storage_classes()
"""Every storage SOP class that can be part of a study, retired ones included."""

TRANSFER_SYNTAXES = tuple(
    uid
    for uid, entry in UID_dictionary.items()
    if entry[1] == "Transfer Syntax" and uid not in _DEFLATED
)
"""Every standard transfer syntax in which the data set itself is not deflated."""

_STORAGE = frozenset(STORAGE_CLASSES)
_SYNTAXES = frozenset(TRANSFER_SYNTAXES)
_RECODABLE = {ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
_COMPRESSED = _SYNTAXES - _RECODABLE - {ExplicitVRBigEndian}
_FALLBACKS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def acceptable(
    proposed: Iterable[PresentationContext], services: Collection[str] = (VERIFICATION,)
) -> list[PresentationContext]:
    """What we support of what is proposed: storage, and the other services named.

    pynetdicom copies the acceptor's whole table for every association; 200 classes in 60 syntaxes
    would cost tens of milliseconds each time. The order of preference is the proposer's, who
    alone knows what its object is stored in.
    """
    wanted: dict[str, dict[str, None]] = {}
    for context in proposed:
        abstract = str(context.abstract_syntax)
        known = _SYNTAXES if abstract in _STORAGE else frozenset(_FALLBACKS)
        if abstract in _STORAGE or abstract in services:
            syntaxes = wanted.setdefault(abstract, {})
            syntaxes.update({str(s): None for s in context.transfer_syntax if s in known})
    return [build_context(uid, list(syntaxes)) for uid, syntaxes in wanted.items() if syntaxes]


def is_storage(uid: str) -> bool:
    """Whether a SOP class is one of those that we store."""
    return uid in _STORAGE


def plain(uid: str) -> PresentationContext:
    """A context for a service without pixel data, in the two syntaxes that everybody has."""
    return build_context(uid, list(_FALLBACKS))


@dataclass(frozen=True, slots=True)
class Label:
    """What a Part 10 file says of itself in its file meta information."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


def read_label(path: Path) -> Label:
    """The label of a file, without reading its data set.

    Raises HeaderError, and OSError when the file may be readable another time.
    """
    try:
        meta = read_file_meta_info(path)
        return Label(
            str(meta.MediaStorageSOPClassUID),
            str(meta.MediaStorageSOPInstanceUID),
            str(meta.TransferSyntaxUID),
        )
    except (OSError, ValueError, AttributeError, InvalidDicomError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise
        raise HeaderError(
            f"{path.name} cannot be sent: it is no readable DICOM file with file meta "
            f"information ({type(error).__name__})"
        ) from error


def proposals(labels: Iterable[Label]) -> list[PresentationContext]:
    """What to propose for files: first each file's own syntax, then what it can be turned into.

    One syntax per context, so that the peer's answer is about exactly that syntax; at most 128.
    """
    pairs: dict[tuple[str, str], None] = {}
    listed = list(labels)
    for label in listed:
        pairs[label.sop_class_uid, label.transfer_syntax_uid] = None
    for label in listed:
        pairs.update({(label.sop_class_uid, str(syntax)): None for syntax in _FALLBACKS})
    return [build_context(uid, syntax) for uid, syntax in list(pairs)[:MOST_CONTEXTS]]


class Way(Enum):
    """How a file can travel over an association."""

    AS_IT_IS = "the bytes of the file"
    RECODED = "the same values in another uncompressed syntax"
    DECOMPRESSED = "decoded pixel data in an uncompressed syntax"


def way(label: Label, accepted: Collection[tuple[str, str]]) -> Way | None:
    """The way for a file, given the accepted (SOP class, syntax) pairs; None when there is none.

    Big endian pixel data would have to be swapped word by word, so it travels as it is or not.
    """
    own = label.transfer_syntax_uid
    if (label.sop_class_uid, own) in accepted:
        return Way.AS_IT_IS
    if not any((label.sop_class_uid, str(syntax)) in accepted for syntax in _FALLBACKS):
        return None
    if own in _RECODABLE:
        return Way.RECODED
    return Way.DECOMPRESSED if own in _COMPRESSED else None


def name_of(uid: str) -> str:
    """A UID in words where the standard has some, such as ``CT Image Storage``."""
    return str(UID(uid).name)
