"""The spool keeps what it says it keeps."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from node.dicom import part10
from node.dicom.scp import Received
from node.domain.errors import DigestMismatch, HeaderError, SpoolError, SpoolFull
from node.domain.stage import Stage
from node.spool import Spool

DATASET = b"\x08\x00\x60\x00CS\x02\x00MR"


def received(dataset: bytes = DATASET, uid: str = "1.2.3") -> Received:
    return Received(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        peer="scanner",
        calling_ae="SCANNER",
        called_ae="AINODE",
        address="127.0.0.1",
        dataset=dataset,
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", lambda: 1000.0)


def test_received_bytes_are_kept_to_the_letter(spool: Spool) -> None:
    arrival = spool.keep(received())
    content = arrival.path.read_bytes()
    crc32 = f"{zlib.crc32(DATASET):08x}"
    assert content == part10.envelope(arrival, crc32) + DATASET
    assert pydicom.dcmread(arrival.path).Modality == "MR"
    digest = hashlib.sha256(DATASET).hexdigest()
    assert part10.read_arrival(arrival.path) == replace(arrival, sha256=digest)


def test_bytes_that_changed_on_disk_are_noticed(spool: Spool) -> None:
    arrival = spool.keep(received())
    content = bytearray(arrival.path.read_bytes())
    content[-1] ^= 1
    arrival.path.write_bytes(content)
    with pytest.raises(HeaderError, match="damaged"):
        part10.read_arrival(arrival.path)


def test_fragments_are_kept_as_one(spool: Spool) -> None:
    arriving = spool.begin(received())
    for part in (DATASET[:7], DATASET[7:8], DATASET[8:]):
        arriving.write(memoryview(part))
    with arriving.look() as seen:
        assert bytes(seen) == DATASET
    arrival = arriving.finish()
    arriving.discard()
    assert arrival.path.read_bytes().endswith(DATASET)
    assert part10.read_arrival(arrival.path).sha256 == hashlib.sha256(DATASET).hexdigest()


def test_an_object_of_many_blocks_is_kept_to_the_letter(spool: Spool) -> None:
    dataset = DATASET + bytes(range(256)) * 10_000
    for cut in (1 << 20, 100_000, len(dataset)):
        arriving = spool.begin(received(uid=f"1.2.{cut}"))
        for at in range(0, len(dataset), cut):
            arriving.write(memoryview(dataset)[at : at + cut])
        path = arriving.finish().path
        assert path.read_bytes().endswith(dataset)
        assert part10.read_arrival(path).sha256 == hashlib.sha256(dataset).hexdigest()


def test_what_is_discarded_leaves_nothing(spool: Spool) -> None:
    arriving = spool.begin(received())
    arriving.write(memoryview(DATASET))
    arriving.discard()
    assert list((spool.root / "incoming").iterdir()) == []


def test_nothing_is_begun_below_the_watermark(tmp_path: Path) -> None:
    spool = Spool(tmp_path, lambda: 0.0, watermark=1 << 62)
    with pytest.raises(SpoolFull, match="watermark_mb"):
        spool.begin(received())
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_envelope_with_zeros_in_a_uid_is_sealed_in_the_right_place(spool: Spool) -> None:
    arrival = spool.keep(received(uid="1.2.00000000"))
    assert part10.read_arrival(arrival.path).sop_instance_uid == "1.2.00000000"


@pytest.mark.parametrize("uid", ["../../evil", "/etc/passwd", "a\0b", "%2e%2e", "x" * 64])
def test_no_file_name_comes_from_the_wire(spool: Spool, uid: str) -> None:
    before = set(spool.root.parent.rglob("*"))
    path = spool.keep(received(uid=uid)).path
    assert set(spool.root.parent.rglob("*")) - before == {path}
    assert path.parent == spool.root / "incoming"


def test_durability_order_is_write_fsync_rename_fsync_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call that counts is recorded; the answer may follow only after the last."""
    calls: list[str] = []
    spool = Spool(tmp_path / "spool", lambda: 0.0, lambda stage, _: calls.append(stage.value))
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        link = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append("fsync directory" if link.is_dir() else "fsync file")
        fsync(descriptor)

    def record_replace(self: Path, other: Path) -> Path:
        calls.append("rename")
        return replace(self, other)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    spool.keep(received())
    assert calls == [
        Stage.RECEIVED,
        Stage.BYTES_WRITTEN,
        "fsync file",
        Stage.BYTES_SYNCED,
        "rename",
        Stage.BYTES_NAMED,
        "fsync directory",
        Stage.BYTES_DURABLE,
    ]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EIO, SpoolError)],
)
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
def test_a_failed_write_keeps_nothing_and_says_so(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: type[SpoolError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error, match="could not write"):
        spool.keep(received())
    assert list((spool.root / "incoming").iterdir()) == []


def test_arrivals_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    times = iter([30.0, 31.0, 32.0])
    first = Spool(tmp_path, lambda: next(times))
    paths = [first.keep(received(uid=f"1.{n}")).path for n in range(3)]
    assert list(Spool(tmp_path, lambda: 0.0).arrivals()) == paths


def test_sweep_removes_only_what_was_never_acknowledged(spool: Spool) -> None:
    kept = spool.keep(received()).path
    (spool.root / "incoming" / "x.dcm.part").write_bytes(b"half")
    assert spool.sweep("incoming") == 1
    assert list((spool.root / "incoming").iterdir()) == [kept]


def test_quarantined_arrival_keeps_its_bytes_and_its_reason(spool: Spool) -> None:
    arrival = spool.keep(received())
    content = arrival.path.read_bytes()
    place = spool.quarantine(arrival.path, "because")
    assert place.read_bytes() == content
    assert place.with_suffix(".txt").read_text() == "because\n"
    assert list(spool.arrivals()) == []


def test_a_frozen_result_that_changed_on_disk_is_not_given_out(spool: Spool) -> None:
    frozen = spool.freeze("job", "seg", b"result", ("1.2", "1.3"))
    assert spool.verify(frozen.path, frozen.sha256) == b"result"
    frozen.path.write_bytes(b"resulT")
    with pytest.raises(DigestMismatch, match="not what was frozen"):
        spool.verify(frozen.path, frozen.sha256)
