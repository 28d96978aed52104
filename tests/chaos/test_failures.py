"""Every system call fails once: what is answered 0x0000 is there all the same."""

from __future__ import annotations

import itertools
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.load import Modality, Sample, dataset_bytes
from tests.chaos.tracing import failing, has_failed, judge
from tests.chaos.trial import Place
from tests.chaos.vault import Vault
from tests.chaos.zygote import Order, Zygote

_OBJECTS = 2
_BRIEF_S = 10.0
_MOST = 200
"""No run of so few objects needs so many calls of one kind; a loop that does not end is a fault."""


def receive(zygote: Zygote, home: Path, sample: Sample, fault: tuple[str, str, int]) -> bool:
    """Send two objects to a receiver of which one call fails. Returns whether it did.

    Whatever was answered 0x0000 must lie in the spool, whole; what was not is sent again when the
    fault is over, to the same receiver if it lives, and must be taken.
    """
    log = str(home.with_name("log"))
    trace = home.with_name("-".join(map(str, fault)))
    modality = Modality(list(sample.files.items())[:_OBJECTS])
    shutil.rmtree(_incoming(home), ignore_errors=True)
    body = zygote.start(Order(str(home), log, "receiver"))
    with failing(body.process, trace, *fault):
        modality.send(body.port)
    if body.ends(0.01):
        body = zygote.start(Order(str(home), log, "receiver"))
    first = dict(modality.acknowledged)
    kept = spooled(home)
    modality.send(body.port)
    body.kill()
    assert all(sample.datasets[uid] in kept for uid in first), f"false 0x0000 at {fault}"
    assert not judge(trace).premature, f"0x0000 before it was durable at {fault}"
    assert modality.done, f"the receiver did not recover from {fault}"
    assert all(content in spooled(home) for content in list(sample.datasets.values())[:_OBJECTS])
    return has_failed(trace)


def spooled(home: Path) -> list[bytes]:
    """The data sets of all arrivals that the next start would enter into the ledger."""
    return [dataset_bytes(path) for path in sorted(_incoming(home).glob("*.dcm"))]


def _incoming(home: Path) -> Path:
    return home.parent / "state" / "spool" / "incoming"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("fsync", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("pwrite64", "EIO"),
        ("rename", "ENOSPC"),
        ("openat", "EMFILE"),
        ("openat", "ENOSPC"),
        ("sendto", "ECONNRESET"),
        ("accept4", "EMFILE"),
    ],
)
def test_a_call_that_fails_makes_no_false_success(
    place: Place, zygote: Zygote, home: Path, call: str, error: str
) -> None:
    numbers = itertools.takewhile(
        lambda n: receive(zygote, home, place.pool[0], (call, error, n)), range(1, _MOST)
    )
    assert 0 < len(list(numbers)) < _MOST - 1


def survive(place: Place, fault: tuple[str, str, int]) -> bool:
    """Send a study through a whole node of which one call fails. Returns whether it did.

    A node that ends is started again, as its supervisor would.
    """
    name = "failure-" + "-".join(map(str, fault))
    with Vault() as vault:
        course = place.course(place.pool[:1], vault, name)
        course.ward.start()
        trace = course.ward.config.with_name("trace")
        with closing(course.ward):
            with failing(course.ward.bodies[""].process, trace, *fault):
                course.modality.send(course.ward.port)
                course.modality.send(course.ward.port)  # what was refused
                course.ward.until(lambda: course.arrived, _BRIEF_S if course.modality.done else 0)
            course.settle()
        course.judge(resends=1)
    assert not course.outcome.faults, fault
    assert not judge(trace).premature, fault
    failed = has_failed(trace)
    shutil.rmtree(course.ward.config.parent)
    return failed


_CALLS = [
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("rename", "EIO"),
    ("openat", "EMFILE"),
    ("ftruncate", "EIO"),
    ("fallocate", "ENOSPC"),
    ("unlink", "EIO"),
    ("mkdir", "ENOSPC"),
    ("read", "EIO"),
    ("pread64", "EIO"),
]


@pytest.mark.parametrize(
    ("call", "error", "number"),
    [
        ("fsync", "EIO", 9),
        ("pwrite64", "ENOSPC", 40),
        ("rename", "EIO", 4),
        ("openat", "EMFILE", 20),
    ],
)
def test_a_study_survives_a_call_that_fails(
    place: Place, call: str, error: str, number: int
) -> None:
    assert survive(place, (call, error, number))


@pytest.mark.slow
@pytest.mark.parametrize(("call", "error"), _CALLS)
def test_a_study_survives_whichever_call_fails(
    place: Place, tell: Tell, call: str, error: str
) -> None:
    """With the ledger's calls among them."""
    numbers = itertools.takewhile(lambda n: survive(place, (call, error, n)), itertools.count(1))
    runs = len(list(numbers))
    tell(f"{call} failed with {error}, each time another one, and nothing was lost", runs)
