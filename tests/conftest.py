"""What every test may count on: a clean environment, a clock that it sets, the same examples in CI.

And a canary: whatever a test leaves in its temporary folders or prints is searched for the tests'
patients (``tests/canary.py``).

Fixtures of one folder stand in that folder's own ``conftest.py``.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests import canary

# What steers a node from outside would steer the tests too. pytest reads this file before anything
# of the node is imported.
for _name in ("AI_NODE_CONFIG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
    os.environ.pop(_name, None)

settings.register_profile("node", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("node")


@dataclass
class Clock:
    """A clock that stands still until it is told to go on; seconds since the epoch."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Go on, and tell the new time."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()


_SEARCHED = pytest.StashKey[set[Path]]()


@pytest.fixture(autouse=True)
def canary_in_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """No patient in what a test leaves in its temporary folder."""
    yield
    folder = request.node.funcargs.get("tmp_path")
    if folder is not None:
        request.config.stash.setdefault(_SEARCHED, set()).add(folder)
        _search(request.node, folder)


@pytest.fixture(autouse=True, scope="module")
def canary_in_shared_files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The same for the folders that the tests of a module share."""
    base = tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    yield
    searched = request.config.stash.setdefault(_SEARCHED, set())
    for folder in sorted({path for path in base.iterdir() if path.is_dir()} - before - searched):
        if not folder.is_symlink():
            _search(request.node, folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No patient in what a test has printed or logged."""
    report = yield
    if report.when == "teardown" and report.passed and not _may_name_patients(item):
        found = [one for name, text in report.sections for one in canary.in_text(text, name)]
        if found:
            report.outcome = "failed"
            report.longrepr = canary.words(found)
    return report


def _search(node: pytest.Item | pytest.Module, folder: Path) -> None:
    if not _may_name_patients(node):
        complaint = canary.words(canary.in_folder(folder))
        if complaint:
            pytest.fail(complaint, pytrace=False)


def _may_name_patients(node: pytest.Item | pytest.Module) -> bool:
    return node.get_closest_marker("names_patients") is not None
