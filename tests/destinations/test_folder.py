"""Results to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.destinations.folder import Folder
from node.domain.errors import PeerUnreachable
from node.domain.peer import Network, Receipt
from node.testing.series import save
from tests.dicom.callers import images

NETWORK = Network("NODE")


def delivered(folder: Path, files: list[Path]) -> list[Receipt]:
    return list(Folder(folder).deliver(files, NETWORK))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return save(images(2), tmp_path / "results")


def test_files_are_named_by_their_uid_and_keep_their_bytes(
    tmp_path: Path, files: list[Path]
) -> None:
    receipts = delivered(tmp_path / "out", files)
    for receipt, file in zip(receipts, files, strict=True):
        assert receipt.accepted
        placed = tmp_path / "out" / f"{receipt.sop_instance_uid}.dcm"
        assert placed.read_bytes() == file.read_bytes()


def test_nothing_unfinished_is_left_beside_them(tmp_path: Path, files: list[Path]) -> None:
    delivered(tmp_path / "out", files)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".dcm", ".dcm"]


def test_the_same_bytes_again_are_accepted_and_not_written_again(
    tmp_path: Path, files: list[Path]
) -> None:
    delivered(tmp_path / "out", files)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert all(receipt.accepted for receipt in delivered(tmp_path / "out", files))
    assert {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == before


def test_other_bytes_under_the_same_uid_are_not_accepted(tmp_path: Path, files: list[Path]) -> None:
    (first, *_) = delivered(tmp_path / "out", files)
    placed = tmp_path / "out" / f"{first.sop_instance_uid}.dcm"
    original = placed.read_bytes()
    files[0].write_bytes(files[0].read_bytes()[:-2] + b"zz")
    again, other = delivered(tmp_path / "out", files)
    assert not again.accepted
    assert not again.retryable
    assert "other bytes under this SOP Instance UID" in again.reason
    assert other.accepted
    assert placed.read_bytes() == original


@pytest.mark.parametrize("uid", ["../escape", "/etc/escape", "..", "a/b", "1.2\n3"])
def test_a_uid_that_is_none_never_becomes_a_path(tmp_path: Path, uid: str) -> None:
    (image,) = images(1)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
    path = tmp_path / "odd.dcm"
    image.save_as(path, enforce_file_format=True)
    (receipt,) = delivered(tmp_path / "out", [path])
    assert receipt.accepted
    assert receipt.sop_instance_uid == uid
    (placed,) = (tmp_path / "out").iterdir()
    assert len(placed.stem) == 64
    assert set(placed.stem) <= set("0123456789abcdef")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["odd.dcm", "out"]


def test_a_missing_mount_is_noticed_and_not_papered_over(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(PeerUnreachable, match="mount it"):
        delivered(tmp_path / "mount" / "out", files)
    assert not (tmp_path / "mount").exists()


def test_a_place_that_is_no_folder_is_unreachable(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PeerUnreachable):
        delivered(tmp_path / "out", files)


def test_an_unreadable_file_gets_a_receipt_and_the_others_are_written(
    tmp_path: Path, files: list[Path]
) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    receipts = delivered(tmp_path / "out", [tmp_path / "text.dcm", tmp_path / "absent", *files])
    assert [receipt.accepted for receipt in receipts] == [False, False, True, True]
    assert "text.dcm" in receipts[0].reason
