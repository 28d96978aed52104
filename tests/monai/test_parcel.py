"""A zip from a stranger leads nowhere, and nothing of it grows without bound."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from node.domain.errors import ImportRefused
from node.monai import parcel
from node.monai.parcel import opened


def zipped(path: Path, name: str, content: bytes = b"{}", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = mode << 16
        archive.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    "name", ["../out.json", "/etc/out.json", "a/../../b", "C:/x", "a\\..\\b", "."]
)
def test_name_that_leads_out_of_the_zip_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="leads out of it"):
        opened(zipped(tmp_path / "a.zip", name))


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="a link"):
        opened(zipped(tmp_path / "a.zip", "a.json", b"/etc/passwd", stat.S_IFLNK | 0o777))


def test_entry_that_is_far_larger_than_it_looks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="no model shrinks like that"):
        opened(zipped(tmp_path / "a.zip", "a.json", b" " * (8 * 2**20)))


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "a.json")
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(ImportRefused, match="encrypted"):
        opened(path)


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(parcel.MOST_FILES + 1):
            archive.writestr(f"{number}", b"")
    with pytest.raises(ImportRefused, match="more than"):
        opened(path)


def test_text_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"x" * (parcel.LARGEST_TEXT + 1))
    with pytest.raises(ImportRefused, match="larger than 4 MiB"):
        opened(tmp_path).text("a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ImportRefused, match="UTF-8"):
        opened(tmp_path).text("b.json")


def test_file_that_is_no_zip_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(ImportRefused, match=r"a\.zip cannot be read as a zip"):
        opened(tmp_path / "a.zip")


def test_zip_that_is_cut_off_is_refused_in_words(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "a.json", b"0123456789" * 1_000)
    content = bytearray(path.read_bytes())
    content[40:60] = b"\0" * 20
    path.write_bytes(content)
    with pytest.raises(ImportRefused, match="cannot be read"):
        opened(path).text("a.json")


def test_link_in_a_folder_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/a.json").symlink_to(tmp_path / "secret")
    found = opened(tmp_path / "bundle")
    with pytest.raises(ImportRefused, match="leads out of the folder"):
        found.text("a.json")
    with pytest.raises(ImportRefused, match="leads out of the folder"):
        found.placed(["a.json"])


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"no file b\.json"):
        opened(tmp_path).text("b.json")


def test_files_of_a_folder_inside_are_named_from_there(tmp_path: Path) -> None:
    (tmp_path / "inner/configs").mkdir(parents=True)
    (tmp_path / "inner/configs/a.json").write_text("{}")
    inside = opened(tmp_path).within("inner/")
    assert inside.files == {"configs/a.json"}
    assert inside.text("configs/a.json") == "{}"
    path = inside.placed(["configs/a.json"])["configs/a.json"]
    assert path == tmp_path / "inner/configs/a.json"


def test_files_of_a_zip_are_taken_out_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/models/model.onnx", b"network")
        archive.writestr("x/models/model.onnx.data", b"weights")
    placed = opened(path).within("x/").placed(["models/model.onnx", "models/model.onnx.data"])
    assert {one.parent for one in placed.values()} == {placed["models/model.onnx"].parent}
    assert placed["models/model.onnx.data"].read_bytes() == b"weights"


def test_hidden_and_deep_folders_are_not_looked_into(tmp_path: Path) -> None:
    for place in (".git/a", "a/b/c/d/e/f", "a/b"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "x").write_text("")
    assert opened(tmp_path).files == {"a/b/x"}


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "nothing.json").symlink_to(tmp_path / "absent")
    for name in ("pipe.json", "nothing.json"):
        with pytest.raises(ImportRefused, match="no file that can be read"):
            opened(tmp_path).text(name)
