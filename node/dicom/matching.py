"""Studies that a peer is asked for: the keys of a C-FIND, and what the answers mean.

Pure: no association is opened here. Peers may ignore the optional keys (Modalities in Study, Study
Description), so every answer is compared with the question once more.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import structlog
from pydicom.dataset import Dataset

from node.dicom.wire import is_uid

log = structlog.get_logger()

_NARROWING = ("StudyDate", "ModalitiesInStudy", "StudyDescription")
"""Keys of a search for many studies; none of them names a patient or an order."""


@dataclass(frozen=True, slots=True)
class FindQuery:
    """Keys of a C-FIND at study level; what is empty matches everything.

    ``description`` and ``accession`` may have the wildcards ``*`` and ``?``. Dates are inclusive.
    """

    modality: str = ""
    date_from: datetime.date | None = None
    date_to: datetime.date | None = None
    accession: str = ""
    study_uid: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A study that a peer has. ``date`` and ``time`` are DA and TM text as the peer has them.

    ``instances`` is Number of Study Related Instances, None where the peer does not count them.
    """

    study_uid: str
    accession: str = ""
    date: str = ""
    time: str = ""
    modalities: tuple[str, ...] = ()
    description: str = ""
    instances: int | None = None


def identifier_of(query: FindQuery) -> Dataset:
    """The keys to match and, empty, the values to return (PS3.4 C.6.2.1.2)."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = query.study_uid
    identifier.AccessionNumber = query.accession
    identifier.StudyDate = _date_range(query)
    identifier.StudyTime = ""
    identifier.ModalitiesInStudy = query.modality
    identifier.StudyDescription = query.description
    identifier.NumberOfStudyRelatedInstances = None
    if not (query.description + query.accession).isascii():
        identifier.SpecificCharacterSet = "ISO_IR 192"
    return identifier


def in_words(query: FindQuery) -> str:
    """The keys that narrow the search, as ``Keyword=value; ...``."""
    keys = (one for one in identifier_of(query) if one.value and one.keyword in _NARROWING)
    return "; ".join(f"{one.keyword}={one.value}" for one in keys)


def _date_range(query: FindQuery) -> str:
    if query.date_from is None and query.date_to is None:
        return ""
    return f"{_da(query.date_from)}-{_da(query.date_to)}"


def _da(date: datetime.date | None) -> str:
    return date.strftime("%Y%m%d") if date else ""


def match_of(identifier: Dataset | None) -> Match | None:
    """An answer as a Match; None where the peer's answer names no study or cannot be read."""
    if identifier is None:
        return None
    try:
        study_uid = _text(identifier, "StudyInstanceUID")
        modalities = _text(identifier, "ModalitiesInStudy").split("\\")
        count = _text(identifier, "NumberOfStudyRelatedInstances")
        match = Match(
            study_uid,
            _text(identifier, "AccessionNumber"),
            _text(identifier, "StudyDate"),
            _text(identifier, "StudyTime"),
            tuple(filter(None, modalities)),
            _text(identifier, "StudyDescription"),
            int(count) if count.isdecimal() else None,
        )
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        log.warning("unreadable C-FIND answer skipped", error=type(error).__name__)
        return None
    return match if is_uid(study_uid) else None


def _text(identifier: Dataset, keyword: str) -> str:
    """A value as text, decoded by the answer's own Specific Character Set."""
    value = identifier.get(keyword)
    if value is None:
        return ""
    parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    return "\\".join(str(part).strip(" \0") for part in parts)


def fits(match: Match, query: FindQuery) -> bool:
    """Whether an answer is one that was asked for. What the peer leaves empty is believed."""
    return (
        (not match.modalities or not query.modality or query.modality in match.modalities)
        and _like(match.description, query.description)
        and _like(match.accession, query.accession)
        and (not query.study_uid or match.study_uid == query.study_uid)
        and (not match.date or _da(query.date_from) <= match.date)
        and (not match.date or query.date_to is None or match.date <= _da(query.date_to))
    )


def _like(value: str, pattern: str) -> bool:
    # fnmatch gives [ a meaning that DICOM does not have.
    escaped = pattern.casefold().replace("[", "[[]")
    return not value or not pattern or fnmatchcase(value.casefold(), escaped)
