"""A report names the reports that it replaces, as the hierarchical reference macro has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from node.conformance import check, gate
from node.dicom.predecessors import faults, sequence
from node.domain.errors import ConformanceError
from node.domain.finding import Predecessor
from node.outputs.sr import Sr
from tests.results import assessment, source

IMAGES = source()
EARLIER = Predecessor(
    str(IMAGES.headers[0].StudyInstanceUID), "2.25.7", Comprehensive3DSRStorage, "2.25.8"
)


def report(*predecessors: Predecessor) -> Dataset:
    made = Sr().encode(replace(assessment(0), predecessors=predecessors), IMAGES, ())
    assert made is not None
    return made


def test_a_report_without_predecessors_has_no_such_sequence() -> None:
    assert "PredecessorDocumentsSequence" not in report()


def test_a_report_with_a_predecessor_passes_the_gate() -> None:
    made = report(EARLIER)
    assert check(made, IMAGES.headers) == ()
    assert gate(made, IMAGES.headers)


def test_reports_of_one_series_share_its_item() -> None:
    two = (EARLIER, replace(EARLIER, sop_instance_uid="2.25.9"))
    other = replace(EARLIER, series_uid="2.25.10", sop_instance_uid="2.25.11")
    (study,) = sequence((*two, other))
    assert [len(one.ReferencedSOPSequence) for one in study.ReferencedSeriesSequence] == [2, 1]


def another_study(item: Dataset) -> None:
    item.StudyInstanceUID = "1.2.3"


def no_series(item: Dataset) -> None:
    item.ReferencedSeriesSequence = []


def another_kind(item: Dataset) -> None:
    reference = item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    reference.ReferencedSOPClassUID = SegmentationStorage


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_study, "another study"),
        (no_series, "no series"),
        (another_kind, "no report of the same kind"),
    ],
)
def test_a_wrong_predecessor_does_not_leave(change: Callable[[Dataset], None], words: str) -> None:
    made = report(EARLIER)
    change(made.PredecessorDocumentsSequence[0])
    assert words in "".join(faults(made))
    with pytest.raises(ConformanceError, match=words):
        gate(made, IMAGES.headers)


def test_no_report_replaces_itself() -> None:
    own = str(report().SOPInstanceUID)
    made = report(replace(EARLIER, sop_instance_uid=own))
    assert "its own predecessor" in "".join(faults(made))
