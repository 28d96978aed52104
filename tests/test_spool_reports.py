"""Storage commitment reports in the spool: durable before they are acknowledged, read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.errors import SpoolError
from node.domain.proof import CommitmentReport, FailedInstance
from node.spool import Spool, read_report

UID = st.from_regex(r"[0-9][0-9.]{0,63}", fullmatch=True)
REPORTS = st.builds(
    CommitmentReport,
    UID,
    st.lists(UID, max_size=3).map(tuple),
    st.lists(st.builds(FailedInstance, UID, st.integers(0, 0xFFFF)), max_size=3).map(tuple),
    st.text(max_size=16),
)


@given(REPORTS)
def test_a_report_is_read_back_as_it_was_kept(
    tmp_path_factory: pytest.TempPathFactory, report: CommitmentReport
) -> None:
    spool = Spool(tmp_path_factory.getbasetemp() / "spool", lambda: 1.0)
    path = spool.keep_report(report)
    assert path in spool.reports()
    assert read_report(path) == report
    path.unlink()


def test_reports_are_listed_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", lambda: 1.0)
    paths = [spool.keep_report(CommitmentReport(f"2.25.{n}")) for n in range(3)]
    assert spool.reports() == tuple(paths)


def test_the_bytes_and_the_name_are_on_the_disk_before_keep_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
        fsync(descriptor)

    spool = Spool(tmp_path / "spool", lambda: 1.0)
    monkeypatch.setattr(os, "fsync", watched)
    spool.keep_report(CommitmentReport("2.25.1"))
    assert synced == [".part", ""]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"transaction_uid": "1"}', b"\xff"])
def test_a_damaged_report_is_an_error(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path / "spool", lambda: 1.0)
    path = spool.keep_report(CommitmentReport("2.25.1"))
    path.write_bytes(content)
    with pytest.raises(SpoolError, match="is damaged"):
        read_report(path)


def test_a_report_on_a_full_disk_is_not_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", lambda: 1.0)
    (spool.root / "reports").rmdir()
    with pytest.raises(SpoolError):
        spool.keep_report(CommitmentReport("2.25.1"))
