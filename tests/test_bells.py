"""Bells wake across processes, and never block or fail who rings."""

from __future__ import annotations

import threading
from pathlib import Path

from node.bells import Bell


def test_a_ring_is_heard(tmp_path: Path) -> None:
    bell, heard = Bell(tmp_path / "bells" / "worker"), threading.Event()
    ear = bell.listen()
    thread = threading.Thread(target=ear.run, args=(heard.set,))
    thread.start()
    Bell(tmp_path / "bells" / "worker").ring()
    assert heard.wait(10)
    ear.close()
    thread.join(10)
    assert not thread.is_alive()


def test_ringing_while_nobody_listens_is_no_error(tmp_path: Path) -> None:
    Bell(tmp_path / "bell").ring()


def test_a_bell_rung_without_end_does_not_block_the_ringer(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    ear = bell.listen()
    for _ in range(100_000):
        bell.ring()
    ear.close()
    ear.run(lambda: None)


def test_what_lies_where_the_bell_belongs_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bell").write_text("no pipe")
    Bell(tmp_path / "bell").ring()
    assert (tmp_path / "bell").is_fifo()


def test_a_bell_is_heard_by_whoever_listens_next(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    for _ in range(3):
        ear, heard = bell.listen(), threading.Event()
        bell.ring()
        thread = threading.Thread(target=ear.run, args=(heard.set,))
        thread.start()
        assert heard.wait(10)
        ear.close()
        thread.join(10)
        bell.ring()
