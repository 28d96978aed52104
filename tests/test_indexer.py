"""The indexer enters what was spooled, once, and keeps aside what it must not use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from node.indexer import Indexer
from node.ledger import Ledger
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
