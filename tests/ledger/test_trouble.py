"""A ledger that is locked is tried again; one that is damaged, gone or replaced says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node.domain.errors import LedgerBroken, LedgerBusy
from node.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path, patience_s=0.01)
    with ledger.write() as books:
        books.events.note(1.0, "started", "a first event")
    yield ledger
    ledger.close()
    for file in path.parent.iterdir():
        file.unlink()  # the search for patients' names opens every ledger that it finds


def overwrite(path: Path, start: int = 0) -> None:
    """Damage a closed ledger from a byte on."""
    content = bytearray(path.read_bytes())
    content[start:] = b"\xff" * len(content[start:])
    path.write_bytes(content)


def test_a_ledger_that_another_program_locks_may_be_asked_again(ledger: Ledger, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerBusy, match="SQLITE_BUSY") as caught, ledger.write():
            pass
        with ledger.read() as books:
            assert books.events.head().id == 1
        other.execute("ROLLBACK")
    assert caught.value.retryable
    with ledger.write() as books:
        books.events.note(2.0, "started", "again")


def test_a_file_that_is_no_database_is_broken(ledger: Ledger, path: Path) -> None:
    ledger.close()
    overwrite(path)
    with pytest.raises(LedgerBroken, match="SQLITE_NOTADB") as caught:
        Ledger.open(path)
    assert not caught.value.retryable


def test_damage_behind_the_first_page_is_found(ledger: Ledger, path: Path) -> None:
    assert ledger.faults() == ledger.faults(thorough=True) == ()
    ledger.close()
    overwrite(path, 8192)
    with pytest.raises(LedgerBroken), closing(Ledger.open(path)) as damaged:
        faults = damaged.faults()
        assert faults
        raise LedgerBroken(faults[0])


@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_is_written_into_a_file_that_was_moved_away(
    ledger: Ledger, path: Path, tmp_path: Path, replaced: bool
) -> None:
    path.rename(tmp_path / "aside")
    if replaced:
        Ledger.open(path).close()
    with pytest.raises(LedgerBroken, match="start again"), ledger.write():
        pass
    with pytest.raises(LedgerBroken, match="start again"), ledger.read():
        pass
