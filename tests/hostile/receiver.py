"""A receiver in a process of its own, as the hostile inputs and floods meet it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from node.dicom.part10 import read_arrival
from tests.bench.opponents import place
from tests.bench.replay import (
    association_request,
    connect,
    echo_command,
    pdata,
    read_pdu,
    status_of,
)
from tests.dicom.callers import MR
from tests.peers import free_port
from tests.places import ROOT

_CONFIG = """
[node]
ae_title = "AINODE"
state = "{state}"
[scp]
bind = "127.0.0.1"
port = {port}
watermark_mb = 0
{more}
[logging]
level = "error"
[[peer]]
name = "scanner"
ae_title = "REPLAY"
hosts = ["127.0.0.0/8"]
"""


@dataclass(frozen=True)
class Running:
    """A receiver in a process of its own."""

    port: int
    process: subprocess.Popen[bytes]
    spool: Path

    @property
    def peak_mb(self) -> float:
        """The most that it ever had in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1000

    @property
    def cpu_s(self) -> float:
        """The processor time that it has taken so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kept(self) -> list[str]:
        """The SOP Instance UIDs of all that it keeps."""
        files = (self.spool / "incoming").glob("*.dcm")
        return [read_arrival(path).sop_instance_uid for path in files]


@contextmanager
def running(more: str = "") -> Iterator[Running]:
    """A receiver without fsync; ``more`` are lines for its [scp] table."""
    with place(disk=False) as folder:
        port = free_port()
        config = folder / "node.toml"
        config.write_text(_CONFIG.format(state=folder / "state", port=port, more=more))
        command = [sys.executable, "-m", "tests.bench.opponents", str(config), "receiver"]
        with subprocess.Popen([*command, "--no-fsync"], cwd=ROOT) as process:
            found = Running(port, process, folder / "state/spool")
            try:
                _wait_for(found)
                yield found
            finally:
                process.kill()


def _wait_for(found: Running) -> None:
    until = time.monotonic() + 60
    while not answers(found.port):
        assert time.monotonic() < until and found.process.poll() is None
        with suppress(subprocess.TimeoutExpired):
            found.process.wait(0.05)


def opened(port: int, timeout_s: float = 10.0) -> socket.socket:
    """An association with a context for MR and one for C-ECHO."""
    connection = connect(port)
    connection.settimeout(timeout_s)
    connection.sendall(association_request(sop_class_uid=MR))
    assert read_pdu(connection)[:1] == b"\x02"
    return connection


def answers(port: int) -> bool:
    """Whether a C-ECHO is answered."""
    try:
        with opened(port, 1.0) as connection:
            connection.sendall(pdata(3, 3, echo_command()))
            return status_of(read_pdu(connection)) == 0
    except (OSError, AssertionError):
        return False
