"""The reports that a report replaces: Predecessor Documents Sequence (PS3.3 C.17.2).

An archive keeps both; a viewer that knows the sequence shows the later one first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom.dataset import Dataset

from node.domain.finding import Predecessor

_SEQUENCE = "PredecessorDocumentsSequence"


def sequence(predecessors: Sequence[Predecessor]) -> list[Dataset]:
    """One item per study, as the Hierarchical SOP Instance Reference Macro has it (C.17-3)."""
    studies: dict[str, Dataset] = {}
    for one in predecessors:
        study = studies.setdefault(one.study_uid, _item("StudyInstanceUID", one.study_uid))
        series = _series(study, one.series_uid)
        reference = _item("ReferencedSOPClassUID", one.sop_class_uid)
        reference.ReferencedSOPInstanceUID = one.sop_instance_uid
        series.ReferencedSOPSequence = [*series.get("ReferencedSOPSequence", ()), reference]
    return list(studies.values())


def faults(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the predecessors of a report, in words."""
    for study in dataset.get(_SEQUENCE) or []:
        if study.get("StudyInstanceUID") != dataset.get("StudyInstanceUID"):
            yield "a report of another study is named as a predecessor"
        named = [
            one for series in study.get("ReferencedSeriesSequence") or [] for one in _named(series)
        ]
        if not named:
            yield "a predecessor has no series or no instance"
        for one in named:
            if one.get("ReferencedSOPInstanceUID") == dataset.get("SOPInstanceUID"):
                yield "a report is named as its own predecessor"
            if one.get("ReferencedSOPClassUID") != dataset.get("SOPClassUID"):
                yield "a predecessor is no report of the same kind"


def _series(study: Dataset, uid: str) -> Dataset:
    """The item of a series in a study's item, made where it is missing."""
    known: list[Dataset] = list(study.get("ReferencedSeriesSequence") or [])
    for item in known:
        if item.SeriesInstanceUID == uid:
            return item
    made = _item("SeriesInstanceUID", uid)
    study.ReferencedSeriesSequence = [*known, made]
    return made


def _named(series: Dataset) -> list[Dataset]:
    return (
        list(series.get("ReferencedSOPSequence") or []) if series.get("SeriesInstanceUID") else []
    )


def _item(keyword: str, value: str) -> Dataset:
    item = Dataset()
    setattr(item, keyword, value)
    return item
