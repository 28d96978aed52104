"""How much memory this process took at most during a block, by the kernel's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _kibibytes(name: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1])


@contextmanager
def grown() -> Iterator[Callable[[], int]]:
    """Bytes by which the resident memory peaked above what it was when the block began."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kibibytes("VmRSS")
    yield lambda: max(0, _kibibytes("VmHWM") - before) * 1024
