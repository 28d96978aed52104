"""The indexer enters what was spooled, once, and keeps aside what it must not use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from node.domain.errors import NodeError, SandboxError, SpoolError
from node.domain.study import Instance
from node.indexer import Indexer
from node.ledger import Ledger
from node.sandbox import InProcess, Sandbox
from node.spool import Spool
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.ward import received


@pytest.fixture
def indexer(tmp_path: Path, clock: Clock) -> Iterator[Indexer]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield Indexer(Spool(tmp_path / "spool", clock), ledger, clock)
    ledger.close()


def keep(indexer: Indexer, *datasets: Dataset) -> None:
    for dataset in datasets:
        indexer.spool.keep(received(dataset))


def entered(indexer: Indexer) -> set[str]:
    with indexer.ledger.read() as books:
        return {one.sop_instance_uid for one in books.arrivals.study(SPEC.study_uid).instances}


def quarantined(indexer: Indexer) -> list[str]:
    return [path.read_text() for path in (indexer.spool.root / "quarantine").glob("*.txt")]


def test_every_arrival_is_entered_and_put_on_its_shelf(indexer: Indexer) -> None:
    datasets = small_study()
    keep(indexer, *datasets)
    assert indexer.step() == len(datasets)
    assert entered(indexer) == {str(d.SOPInstanceUID) for d in datasets}
    assert list(indexer.spool.arrivals()) == []
    with indexer.ledger.read() as books:
        assert all(i.path.is_file() for i in books.arrivals.study(SPEC.study_uid).instances)


def test_nothing_to_enter_is_no_work(indexer: Indexer) -> None:
    assert indexer.step() == 0


def test_an_arrival_that_was_entered_but_not_moved_is_moved_after_a_restart(
    indexer: Indexer, tmp_path: Path
) -> None:
    (dataset, *_) = small_study()
    arrival = indexer.spool.keep(received(dataset))
    copy = arrival.path.read_bytes()
    indexer.step()
    arrival.path.write_bytes(copy)
    indexer.step()
    assert list(indexer.spool.arrivals()) == []
    assert quarantined(indexer) == []
    assert entered(indexer) == {str(dataset.SOPInstanceUID)}


def test_the_same_uid_with_other_bytes_is_kept_aside_with_the_reason(indexer: Indexer) -> None:
    (dataset, *_) = small_study()
    keep(indexer, dataset)
    dataset.SeriesDescription = "CHANGED"
    keep(indexer, dataset)
    indexer.step()
    (reason,) = quarantined(indexer)
    assert "other bytes" in reason
    with indexer.ledger.read() as books:
        (instance,) = books.arrivals.study(SPEC.study_uid).instances
        (event,) = books.events.of_study(SPEC.study_uid)
    assert instance.facts["SeriesDescription"] != "CHANGED"
    assert event.kind == "quarantined"


def test_an_object_without_a_study_is_kept_aside_and_the_rest_goes_on(indexer: Indexer) -> None:
    bad, good, *_ = small_study()
    del bad.StudyInstanceUID
    keep(indexer, bad, good)
    assert indexer.step() == 2
    assert entered(indexer) == {str(good.SOPInstanceUID)}
    (reason,) = quarantined(indexer)
    assert "StudyInstanceUID" in reason


def test_bytes_that_are_no_data_set_are_kept_aside(indexer: Indexer, tmp_path: Path) -> None:
    (dataset, *_) = small_study()
    keep(indexer, dataset)
    (path,) = indexer.spool.arrivals()
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"OB") + 200] + b"\xff" * 50)
    indexer.step()
    assert len(quarantined(indexer)) == 1


def test_arrivals_open_their_study_and_repeated_ones_do_not(indexer: Indexer, clock: Clock) -> None:
    datasets = small_study()
    keep(indexer, *datasets)
    indexer.step()
    with indexer.ledger.write() as books:
        (row,) = books.arrivals.open_rows()
        assert row.opened_at == clock.now
        books.arrivals.complete(SPEC.study_uid, "quiet period", clock.now)
    clock.advance(60.0)
    keep(indexer, datasets[0])
    indexer.step()
    with indexer.ledger.read() as books:
        assert books.arrivals.open_rows() == ()


def changed(dataset: Dataset, **values: object) -> Dataset:
    copy = deepcopy(dataset)
    for keyword, value in values.items():
        setattr(copy, keyword, value)
    return copy


def open_entries(indexer: Indexer) -> list[tuple[str, str]]:
    with indexer.ledger.read() as books:
        return [(row.kind, row.sop_instance_uid) for row in books.quarantine.rows()]


@pytest.mark.parametrize(
    "values",
    [
        {"PatientID": "OTHER"},
        {"PatientName": "Other^Name"},
        {"PatientBirthDate": "19990101"},
        {"IssuerOfPatientID": "ELSEWHERE"},
    ],
)
def test_another_patient_in_a_study_is_kept_aside_and_the_first_goes_on(
    indexer: Indexer, values: dict[str, object]
) -> None:
    datasets = [changed(one, IssuerOfPatientID="HERE") for one in small_study()]
    wrong = changed(datasets[2], **values)
    keep(indexer, *datasets[:2], wrong, *datasets[3:])
    indexer.step()
    assert entered(indexer) == {str(d.SOPInstanceUID) for d in datasets} - {wrong.SOPInstanceUID}
    assert open_entries(indexer) == [("patient", wrong.SOPInstanceUID)]
    (reason,) = quarantined(indexer)
    assert "another patient" in reason
    with indexer.ledger.read() as books:
        (event,) = books.events.of_study(SPEC.study_uid)
    assert event.kind == "quarantined"
    assert "Other" not in event.words


def test_images_that_leave_out_what_others_state_stay_together(indexer: Indexer) -> None:
    first, second, third, *_ = small_study()
    keep(
        indexer,
        changed(first, PatientBirthDate="", PatientName=SPEC.patient_name.lower()),
        second,
        changed(third, IssuerOfPatientID="HERE"),
    )
    indexer.step()
    assert len(entered(indexer)) == 3
    assert open_entries(indexer) == []


def test_a_series_of_another_patient_under_another_study_is_kept_aside(indexer: Indexer) -> None:
    first, second, *_ = small_study()
    elsewhere = changed(second, StudyInstanceUID="1.2.3", PatientID="OTHER")
    keep(indexer, first, elsewhere)
    indexer.step()
    assert open_entries(indexer) == [("patient", elsewhere.SOPInstanceUID)]


def test_an_object_that_cannot_be_read_is_in_the_book_under_its_announced_uid(
    indexer: Indexer,
) -> None:
    (bad, *_) = small_study()
    del bad.StudyInstanceUID
    keep(indexer, bad)
    indexer.step()
    assert open_entries(indexer) == [("unreadable", str(bad.SOPInstanceUID))]


def test_dying_between_the_book_and_the_move_enters_it_once(
    indexer: Indexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad, *_) = small_study()
    del bad.StudyInstanceUID
    keep(indexer, bad)
    whole = indexer.spool.root / "quarantine"
    whole.rmdir()  # so that the move fails
    assert indexer.step() == 0
    assert len(list(indexer.spool.arrivals())) == 1
    whole.mkdir()
    assert indexer.step() == 1
    assert open_entries(indexer) == [("unreadable", str(bad.SOPInstanceUID))]
    assert len(quarantined(indexer)) == 1


class Grudging:
    """A reader that cannot read what is named, for now."""

    def __init__(self, unread: set[Path]) -> None:
        self.unread = unread

    def read(self, files: Sequence[Path]) -> list[Instance | NodeError]:
        read = InProcess().read(files)
        return [
            SpoolError("not now") if file in self.unread else one
            for file, one in zip(files, read, strict=True)
        ]


def test_files_that_cannot_be_read_now_wait_and_hold_up_nobody(indexer: Indexer) -> None:
    template, *rest = small_study()
    bad = [changed(template, SOPInstanceUID=f"1.2.{number}") for number in range(70)]
    keep(indexer, *bad)
    reader = Grudging(set(indexer.spool.arrivals()))
    keep(indexer, *rest)
    grudging = replace(indexer, reader=reader)
    assert grudging.step() == len(rest)
    assert grudging.step() == 0
    assert len(list(indexer.spool.arrivals())) == 70
    assert quarantined(indexer) == []
    reader.unread.clear()
    assert grudging.step() + grudging.step() == 70


class Broken:
    """A reader that cannot start."""

    def read(self, files: Sequence[Path]) -> list[Instance | NodeError]:
        raise SandboxError("no memory")


def test_where_nothing_can_be_read_everything_waits(indexer: Indexer) -> None:
    keep(indexer, *small_study())
    assert replace(indexer, reader=Broken()).step() == 0
    assert len(list(indexer.spool.arrivals())) == 6
    assert indexer.step() == 6


def test_through_a_child_the_ledger_holds_the_same(indexer: Indexer, tmp_path: Path) -> None:
    datasets = small_study()
    keep(indexer, *datasets)
    sandbox = Sandbox()
    assert replace(indexer, reader=sandbox).step() == 6
    sandbox.close()
    assert entered(indexer) == {str(d.SOPInstanceUID) for d in datasets}
    with indexer.ledger.read() as books:
        (first, *_) = books.arrivals.study(SPEC.study_uid).instances
    assert first.pixel_offset is not None
    assert len(first.path.read_bytes()) == first.pixel_offset + 32 * 24 * 2


def test_what_is_aside_already_is_not_kept_twice(indexer: Indexer) -> None:
    """An archive that sends a conflict again every night must not fill the disk."""
    first, bad, *_ = small_study()
    wrong = changed(first, SeriesDescription="CHANGED")
    del bad.StudyInstanceUID
    keep(indexer, first, *[wrong] * 3, *[bad] * 3, changed(wrong, SeriesDescription="AGAIN"))
    assert indexer.step() == 8
    assert [kind for kind, _ in open_entries(indexer)] == ["conflict", "unreadable", "conflict"]
    keep(indexer, wrong, bad)
    assert indexer.step() == 2
    assert len(open_entries(indexer)) == len(quarantined(indexer)) == 3
    assert list(indexer.spool.arrivals()) == []
