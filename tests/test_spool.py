"""The spool keeps what it says it keeps."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pydicom
import pytest

from node.dicom import part10
from node.dicom.scp import Received
from node.domain.errors import DigestMismatch, SpoolError, SpoolFull
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
    assert content == part10.envelope(arrival) + DATASET
    assert arrival.sha256 == hashlib.sha256(DATASET).hexdigest()
    assert pydicom.dcmread(arrival.path).Modality == "MR"
    assert part10.read_arrival(arrival.path) == arrival


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
        Stage.BYTES_WRITTEN,
        "fsync file",
        "rename",
        "fsync directory",
        Stage.BYTES_DURABLE,
    ]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EIO, SpoolError)],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
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
    assert spool.sweep() == 1
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
