"""The scanner of the demo and the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.domain.errors import PeerUnreachable
from node.testing.archive import Archive, Faults
from node.testing.modality import Called, send
from node.testing.series import save
from tests.dicom.callers import Shelf, images, listening


def called(port: int) -> Called:
    return Called("127.0.0.1", port, "NODE", "SCANNER")


def test_a_folder_is_sent_in_order_of_name_with_its_subfolders(tmp_path: Path) -> None:
    sent = images(3)
    save(sent[:2], tmp_path / "a")
    save(sent[2:], tmp_path / "b")
    shelf = Shelf()
    with listening(shelf) as scp:
        result = send(tmp_path, called(scp.port))
    assert result.accepted == 3
    assert [r.sop_instance_uid for r in shelf.received] == [i.SOPInstanceUID for i in sent]


def test_files_and_data_sets_are_sent_as_listed(tmp_path: Path) -> None:
    sent = images(2)
    paths = save(sent, tmp_path)
    shelf = Shelf()
    with listening(shelf) as scp:
        send([paths[1], paths[0]], called(scp.port))
        send([sent[1], sent[0]], called(scp.port))
    order = [received.sop_instance_uid for received in shelf.received]
    assert order == [sent[1].SOPInstanceUID, sent[0].SOPInstanceUID] * 2


def test_progress_is_told_after_each_object() -> None:
    told: list[tuple[int, int]] = []
    with listening(Shelf()) as scp:
        send(images(3), called(scp.port), lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_answers_are_counted_by_status() -> None:
    with Archive("NODE", faults=Faults(statuses={2: 0xC000})) as archive:
        result = send(images(3), called(archive.port))
    assert result.statuses == {0x0000: 2, 0xC000: 1}
    assert result.accepted == 2


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(PeerUnreachable):
        send(images(1), called(1))
