"""A loop goes on after what may pass, and ends with what will not."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from node import loop as loops
from node.domain.errors import LedgerBroken, LedgerBusy
from node.loop import Loop


def running(*outcomes: Exception | bool) -> list[Exception | bool]:
    """Run a loop whose steps have these outcomes, then stop it. Returns what was left."""
    left = list(outcomes)

    def step() -> bool:
        if not left:
            loop.stop()
            return False
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    loop = Loop("test", step, lambda: 0.0, lambda: 1.0)
    loop.run()
    return left


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "RETRY_S", 0.0)


def test_a_locked_ledger_does_not_end_a_loop() -> None:
    assert running(True, LedgerBusy("locked"), True, LedgerBusy("locked"), True) == []


def test_want_of_descriptors_does_not_end_a_loop() -> None:
    assert running(True, OSError(errno.EMFILE, "Too many open files"), True) == []


def test_a_folder_that_is_gone_does() -> None:
    with pytest.raises(FileNotFoundError):
        running(True, FileNotFoundError(errno.ENOENT, "No such file or directory"), True)


def test_a_damaged_ledger_does() -> None:
    with pytest.raises(LedgerBroken):
        running(True, LedgerBroken("damaged"), True)


def test_a_loop_that_cannot_ask_when_it_is_due_asks_again() -> None:
    asked = []

    def next_due() -> float:
        asked.append(True)
        if len(asked) < 3:
            raise LedgerBusy("locked")
        loop.stop()
        return 0.0

    loop = Loop("test", lambda: False, next_due, lambda: 1.0)
    loop.run()
    assert len(asked) == 3


def test_a_loop_that_is_woken_again_and_again_gathers_first() -> None:
    """Once it was woken it works only when the ringing has ended, and then once."""
    steps: list[int] = []
    rings = iter(range(3))

    def step() -> bool:
        steps.append(next(rings, 3))
        if len(steps) == 1:
            loop.wake()
        else:
            loop.stop()
        return False

    loop = Loop("test", step, lambda: None, lambda: 1.0, gather_s=0.01)
    loop.run()
    assert len(steps) == 2


def test_a_loop_that_is_never_left_alone_works_all_the_same() -> None:
    now = iter(range(1000))
    steps: list[bool] = []

    def step() -> bool:
        steps.append(True)
        loop.wake()
        if len(steps) == 3:
            loop.stop()
        return False

    def stopwatch() -> float:
        loop.wake()
        return float(next(now))

    loop = Loop("test", step, lambda: None, lambda: 1.0, stopwatch=stopwatch, gather_s=0.001)
    loop.run()
    assert len(steps) == 3


def test_a_loop_yields_to_others_as_it_is_told() -> None:
    found: list[int] = []

    def step() -> bool:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        loop.stop()
        return False

    loop = Loop("test", step, lambda: None, lambda: 1.0, niceness=3)
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join()
    assert found == [os.getpriority(os.PRIO_PROCESS, 0) + 3] or found == [3]
