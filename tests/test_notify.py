"""What the service manager hears, over a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.notify import ServiceManager, watchdog_interval_s


class Ear:
    """A socket that stands where the service manager's would."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(5)

    def heard(self) -> list[str]:
        """The lines of the next message."""
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    """An ear in the file system, and one in Linux's abstract namespace."""
    address = str(tmp_path / "notify")
    listening = Ear(f"\0{secrets.token_hex(8)}" if request.param == "abstract" else address)
    yield listening
    listening.close()


def test_readiness_is_told_with_a_status(ear: Ear) -> None:
    ServiceManager.of(ear.environment).ready("listening on 11112")
    assert ear.heard() == ["READY=1", "STATUS=listening on 11112"]


def test_readiness_needs_no_status(ear: Ear) -> None:
    ServiceManager.of(ear.environment).ready()
    assert ear.heard() == ["READY=1"]


def test_each_event_has_its_own_word(ear: Ear) -> None:
    manager = ServiceManager.of(ear.environment)
    manager.alive()
    assert ear.heard() == ["WATCHDOG=1"]
    manager.status("2 studies waiting")
    assert ear.heard() == ["STATUS=2 studies waiting"]
    manager.stopping()
    assert ear.heard() == ["STOPPING=1"]


def test_reloading_tells_when_it_began(ear: Ear) -> None:
    ServiceManager.of(ear.environment).reloading()
    word, stamp = ear.heard()
    assert word == "RELOADING=1"
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_status_cannot_smuggle_in_another_word(ear: Ear) -> None:
    ServiceManager.of(ear.environment).status("one\nSTOPPING=1")
    assert ear.heard() == ["STATUS=one STOPPING=1"]


def test_outside_of_systemd_nothing_is_told() -> None:
    ServiceManager.of({}).ready("nobody hears")


def test_a_manager_that_went_away_breaks_nothing(tmp_path: Path) -> None:
    ServiceManager.of({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_counts_only_for_the_process_it_watches(
    environment: dict[str, str], interval: float | None
) -> None:
    assert watchdog_interval_s(environment) == interval


def test_the_watchdog_may_be_asked_for_another_process() -> None:
    environment = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "4711"}
    assert watchdog_interval_s(environment, 4711) == 0.5
