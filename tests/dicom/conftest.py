"""The archive that the tests of the caller share: starting one costs half a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.testing.archive import Archive, Faults


@pytest.fixture(scope="module")
def running() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@pytest.fixture
def archive(running: Archive) -> Iterator[Archive]:
    """An empty archive on a good day; its port is the same for all tests of this file."""
    running.forget()
    yield running
    running.faults = Faults()
