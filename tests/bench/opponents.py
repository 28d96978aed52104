"""The receivers of ``bench_receive``: ours, DCMTK's, Orthanc, and a socket that only writes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers import HOST, Orthanc, environment, free_port
from tests.places import ROOT, tool

AE_TITLE = "AINODE"
_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Opponent:
    """A receiver that runs; ``processes`` are those whose time and memory count as its own."""

    port: int
    processes: tuple[int, ...]


Start = Callable[[Path], "Iterator[Opponent]"]


def _ready(port: int) -> None:
    until = time.monotonic() + _READY_S
    while True:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        assert time.monotonic() < until, "a receiver does not start"
        threading.Event().wait(0.05)


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[Opponent]:
    with subprocess.Popen(
        command,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            _ready(port)
            yield Opponent(port, (process.pid,))
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[Opponent]:
    """DCMTK, one process per association."""
    port = free_port()
    command = [tool("storescp"), "--fork", *options, "-od", str(folder), str(port)]
    with _running(command, port) as opponent:
        yield opponent


def storescp_best(folder: Path) -> Iterator[Opponent]:
    """DCMTK as fast as it can be: bit for bit, with the largest PDUs."""
    return storescp(folder, "+B", "-pdu", "131072")


_CONFIG = """
[node]
ae_title = "AINODE"
state = "{state}"
[scp]
bind = "127.0.0.1"
port = {port}
accept_unknown = true
watermark_mb = 0
[logging]
level = "error"
"""


@contextmanager
def node(folder: Path, fsync: bool, index: bool = True) -> Iterator[Opponent]:
    """Ours: the receiver in one process; with ``index`` the gateway in another."""
    port = free_port()
    config = folder / "node.toml"
    config.write_text(_CONFIG.format(state=folder / "state", port=port))
    command = [sys.executable, "-m", "tests.bench.opponents", str(config)]
    with _running([*command, "receiver", *([] if fsync else ["--no-fsync"])], port) as receiver:
        if not index:
            yield receiver
            return
        with subprocess.Popen(
            [sys.executable, "-m", "node", "run", "--config", str(config), "--only", "gateway"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as gateway:
            threading.Event().wait(3.0)  # until it has its imports behind it
            try:
                yield receiver
            finally:
                os.killpg(gateway.pid, signal.SIGKILL)


class _Durable(Orthanc):
    """Orthanc as it is shipped: every stored file is fsynced."""

    def _configuration(self) -> dict[str, Any]:
        return {**super()._configuration(), "SyncStorageArea": True}


@contextmanager
def orthanc(folder: Path) -> Iterator[Opponent]:
    """Orthanc with its index and storage in the folder."""
    with _Durable(folder, ae_title=AE_TITLE) as opponent:
        assert opponent._process is not None
        yield Opponent(opponent.dicom_port, (opponent._process.pid,))


@contextmanager
def sink(folder: Path, fsync: bool) -> Iterator[Opponent]:
    """A socket whose bytes go to files, with and without fsync. Speaks the bare protocol."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.opponents", str(folder), f"sink:{port}"]
    with _running([*command, *([] if fsync else ["--no-fsync"])], port) as opponent:
        yield opponent


def _serve(connection: socket.socket, folder: Path, fsync: bool) -> None:
    buffer, number = memoryview(bytearray(1 << 20)), 0
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := connection.recv(8, socket.MSG_WAITALL):
        left, number = int.from_bytes(head, "big"), number + 1
        path = folder / f"{connection.fileno()}-{number}"
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        while left:
            count = connection.recv_into(buffer[: min(left, 1 << 20)], 0, socket.MSG_WAITALL)
            os.write(descriptor, buffer[:count])
            left -= count
        if fsync:
            os.fsync(descriptor)
        os.close(descriptor)
        connection.sendall(b"!")


def _run_sink(folder: Path, port: int, fsync: bool) -> None:
    with socket.create_server((HOST, port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, folder, fsync), daemon=True).start()


def _run_receiver(config: Path, fsync: bool) -> None:
    from node.cli.serve import configure_logging
    from node.config import load
    from node.parts.receiver import Receiver
    from node.site import Site
    from node.spool import Spool

    settings = load(config)
    configure_logging(settings.logging)
    site = Site(settings)
    # The configuration has no key for it: only a benchmark may do without.
    site.__dict__["spool"] = Spool(settings.node.state / "spool", time.time, fsync=fsync)
    receiver = Receiver(site)
    receiver.start()
    signal.pause()


@contextmanager
def place(disk: bool) -> Iterator[Path]:
    """A folder for one run: on disk, or in memory."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=None if disk else "/dev/shm"))  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Be a receiver until killed."""
    place_, kind, *rest = sys.argv[1:]
    fsync = "--no-fsync" not in rest
    if kind == "receiver":
        _run_receiver(Path(place_), fsync)
    else:
        _run_sink(Path(place_), int(kind.partition(":")[2]), fsync)


if __name__ == "__main__":
    main()
