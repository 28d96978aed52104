"""``run``: the node as a service manager starts, watches and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.hospital import Plan, tiny_engine
from tests.places import ROOT

PATIENCE_S = 60.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE_S)
        yield listening


def start(
    config: Path, *options: str, program: str = "node", **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", program, "run", "--config", str(config)]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(manager: socket.socket, wanted: str) -> str:
    """The next message that has a line with ``wanted``."""
    while True:
        message = manager.recv(4096).decode()
        if wanted in message:
            return message


def test_the_service_manager_is_told_of_readiness_progress_and_the_end(
    tmp_path: Path, manager: socket.socket
) -> None:
    config = Plan(tiny_engine(tmp_path), 104).write(tmp_path / "node")
    address = str(tmp_path / "notify")
    with start(config, NOTIFY_SOCKET=address, WATCHDOG_USEC="500000") as process:
        assert "STATUS=AINODE listens on port" in told(manager, "READY=1")
        told(manager, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        told(manager, "STOPPING=1")
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_a_wrong_configuration_ends_at_once_with_its_line(tmp_path: Path) -> None:
    config = Plan(tiny_engine(tmp_path), 104, extra="[scpp]\nport = 1\n").write(tmp_path / "node")
    with start(config) as process:
        _, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "scpp" in complaints
    assert "did you mean" in complaints


def test_a_port_that_is_taken_is_said_in_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Plan(tiny_engine(tmp_path), 104, port).write(tmp_path / "node")
        with start(config) as process:
            _, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert str(port) in complaints
    assert "Traceback" not in complaints


def test_a_worker_whose_networks_take_their_time_is_alive_before_it_is_ready(
    tmp_path: Path, manager: socket.socket
) -> None:
    building = tmp_path / "building"
    building.touch()
    config = Plan(tiny_engine(tmp_path), 104).write(tmp_path / "node")
    runtime = f'{{ kind = "losing", marker = "{tmp_path}/lost", building = "{building}" }}'
    config.write_text(config.read_text().replace("mode = ", f"runtime = {runtime}\nmode = "))
    with start(
        config,
        "--only",
        "worker",
        program="tests.acceptance.losing",
        NOTIFY_SOCKET=str(tmp_path / "notify"),
        WATCHDOG_USEC="300000",
    ) as process:
        assert "READY=1" not in told(manager, "WATCHDOG=1")
        building.unlink()
        told(manager, "READY=1")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
