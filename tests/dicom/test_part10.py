"""The envelope that we write around a received data set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom import part10
from node.domain.errors import HeaderError
from node.domain.study import Arrival

UID = st.from_regex(r"[0-9]{1,8}(\.[1-9][0-9]{0,7}){1,4}", fullmatch=True)
AE = st.from_regex(r"[A-Z0-9_-]{1,16}", fullmatch=True)


def arrival(path: Path, **changes: object) -> Arrival:
    values: dict[str, object] = {
        "sop_instance_uid": "1.2.3",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": hashlib.sha256(b"data set").hexdigest(),
        "peer": "scanner",
        "calling_ae": "SCANNER",
        "called_ae": "AINODE",
        "address": "127.0.0.1",
        "received_at": 1234567890.25,
        "path": path,
    }
    return Arrival(**{**values, **changes})  # type: ignore[arg-type]


@given(uid=UID, calling=AE, called=AE, peer=st.text(min_size=1, max_size=40), at=st.floats(0, 4e9))
def test_what_the_receiver_knew_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    uid: str,
    calling: str,
    called: str,
    peer: str,
    at: float,
) -> None:
    path = tmp_path_factory.mktemp("part10") / "a.dcm"
    sent = arrival(
        path,
        sop_instance_uid=uid,
        calling_ae=calling,
        called_ae=called,
        peer=peer,
        received_at=at,
    )
    path.write_bytes(part10.envelope(sent) + b"data set")
    assert part10.read_arrival(path) == sent


def test_pydicom_reads_the_file_as_part_10(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    element = b"\x08\x00\x60\x00CS\x02\x00MR"
    path.write_bytes(part10.envelope(arrival(path)) + element)
    read = pydicom.dcmread(path)
    assert read.Modality == "MR"
    assert read.file_meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert read.file_meta.SendingApplicationEntityTitle == "SCANNER"


def test_the_preamble_is_zeros(tmp_path: Path) -> None:
    assert part10.envelope(arrival(tmp_path))[:132] == bytes(128) + b"DICM"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a DICOM file"),
        (b"\0" * 300, "not a DICOM file"),
        (b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\xff\xff\xff\x7f", "bytes of file meta"),
        (b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\x00\0\0\0", "no provenance"),
    ],
)
def test_a_foreign_file_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "foreign.dcm"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=words):
        part10.read_arrival(path)
