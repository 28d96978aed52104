"""The node under the rights of its units: what they forbid, no part needs."""

from __future__ import annotations

import ctypes.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, Plan, small_study, tiny_engine
from tests.confined import allowed, directives
from tests.peers import free_port
from tests.places import ROOT, tool

PATIENCE_S = 60.0
_TURN_S = 1.0
UNITS = {
    "receiver": "ai-node-receiver.service",
    "gateway": "ai-node-gateway.service",
    "worker": "ai-node-worker@.service",
}


@pytest.fixture(autouse=True)
def _seccomp() -> None:
    """System call filters, and systemd's sets of system calls."""
    tool("systemd-analyze")
    if not ctypes.util.find_library("seccomp"):
        pytest.skip("libseccomp is not installed (Debian: libseccomp2)")


def confined(unit: str, *command: str) -> list[str]:
    """A command line under the filters of a unit."""
    return [sys.executable, "-m", "tests.confined", str(ROOT / "systemd" / unit), *command]


@dataclass(frozen=True)
class Part:
    """A part under its unit's filters, and the service manager's end of its notify socket."""

    process: subprocess.Popen[bytes]
    manager: socket.socket

    def told(self, wanted: str) -> None:
        """Wait until the service manager hears a line, for as long as the part runs."""
        for _ in range(int(PATIENCE_S / _TURN_S)):
            assert self.process.poll() is None, "the part ended; its log says why"
            with suppress(TimeoutError):
                if wanted in self.manager.recv(4096).decode().splitlines():
                    return
        raise AssertionError(f"no {wanted}")


@contextmanager
def started(part: str, config: Path, folder: Path) -> Iterator[Part]:
    """A part as systemd starts it: its notify socket lies in the file system."""
    command = [sys.executable, "-m", "node", "run", "--config", str(config), "--only", part]
    address = str(folder / f"notify-{part}")
    environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(_TURN_S)
        with subprocess.Popen(confined(UNITS[part], *command), cwd=ROOT, env=environment) as it:
            try:
                yield Part(it, manager)
            finally:
                it.send_signal(signal.SIGTERM)
                _await(it)


def _await(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


def test_a_study_goes_through_parts_that_may_do_only_what_their_units_allow(
    tmp_path: Path, archive: Archive
) -> None:
    port = free_port()
    config = Plan(tiny_engine(tmp_path), archive.port, port).write(tmp_path / "node")
    with ExitStack() as running:
        parts = [running.enter_context(started(part, config, tmp_path)) for part in UNITS]
        for part in parts:
            part.told("READY=1")
        sent = send(small_study(), Called("127.0.0.1", port, AE_TITLE, MODALITY))
        assert sent.accepted == 6
        assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)
        for part in parts:
            part.told("WATCHDOG=1")


FORBIDDEN = {
    "network": "import socket; socket.create_server(('127.0.0.1', 0))",
    "code in memory that was written": "import mmap; mmap.mmap(-1, 4096, prot=7)",
    "its priority": "import os; os.nice(1)",
    "its processors": "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))",
    "tracing": "import ctypes; exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_worker_may_not_touch(what: str) -> None:
    attempt = [sys.executable, "-c", FORBIDDEN[what]]
    inside = subprocess.run(
        confined(UNITS["worker"], *attempt), cwd=ROOT, capture_output=True, check=False
    )
    outside = subprocess.run(attempt, cwd=ROOT, capture_output=True, check=False)
    assert (outside.returncode, inside.returncode) == (0, 1), inside.stderr


def test_the_gpu_worker_may_bind_its_threads_and_compile_code() -> None:
    gpu = directives((ROOT / "systemd" / "ai-node-worker-gpu@.service").read_text())
    cpu = directives((ROOT / "systemd" / UNITS["worker"]).read_text())
    assert allowed(gpu) - allowed(cpu) >= {"sched_setaffinity", "mbind", "set_mempolicy"}
    assert gpu["MemoryDenyWriteExecute"] == ["no"]
