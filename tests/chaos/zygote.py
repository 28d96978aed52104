"""Starts nodes in milliseconds: one process imports everything once and forks per node.

A thousand kills need three thousand starts, and a start from scratch takes seconds of importing.
``python -m tests.chaos.zygote ADDRESS`` serves: each connection asks for one node with one JSON
line (an Order), is told its process and port, and lives exactly as long as the node does.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from node.cli.serve import configure_logging
from node.config import Config, LoggingSection, load
from node.crew import Crew, wait_for_end
from node.daemon import Node
from node.domain.stage import Reached, Stage
from node.parts import PARTS
from node.sandbox import InProcess, Sandbox
from node.site import Site, Watcher
from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, Plan, small_study, tiny_engine
from tests.places import ROOT

PATIENCE_S = 60.0
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl(2)."""


class FellSilent(Exception):
    """A node ended, or said nothing, before it listened; its log says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """A node to start. ``stage`` is where it kills itself, when reached for the n-th time.

    ``part`` is one part of it, or empty for all of them in one process.
    """

    config: str
    log: str
    part: str = ""
    stage: str = ""
    occurrence: int = 1
    sandboxed: bool = False
    """Whether headers are read in a process of their own, as in service; it takes a second."""
    clock: str = ""
    """A file that says by how many seconds the node's clock is wrong, and how fast it runs."""


@dataclass(frozen=True, slots=True)
class Skewed:
    """A clock that somebody sets while the node runs: seconds since the epoch, plus or minus."""

    file: Path
    began: float = field(default_factory=time.time)

    def __call__(self) -> float:
        """The time, as the file has it."""
        offset, speed = map(float, self.file.read_text().split())
        return self.began + (time.time() - self.began) * speed + offset


def set_clock(file: Path, text: str) -> None:
    """Write a ``Skewed``'s file at one stroke: a node that read half of it would end."""
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text)
    draft.replace(file)


@dataclass(slots=True)
class Body:
    """A node that was forked. ``port`` is 0 where the part does not listen."""

    process: int
    port: int
    _line: socket.socket
    _last: list[str] = field(default_factory=list)

    def ends(self, within_s: float) -> bool:
        """Whether it is dead, waiting so long for its death."""
        if self._line.fileno() < 0:
            return True
        self._line.settimeout(within_s)
        try:
            said = self._line.recv(4096)
        except TimeoutError:
            return False
        if said:
            self._last.append(said.decode())
            return self.ends(within_s)
        self._line.close()
        return True

    @property
    def killed_itself(self) -> bool:
        """Whether it reached the stage at which it was to die."""
        return bool(self._last)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if not self.ends(0.0001):
            os.kill(self.process, signal.SIGKILL)
            assert self.ends(PATIENCE_S)


@dataclass(frozen=True, slots=True)
class Zygote:
    """The running zygote, seen from outside. Safe to use from several threads."""

    address: str

    def start(self, order: Order) -> Body:
        """Fork a node; returns when it listens, or is dead as ordered. Raises FellSilent."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(PATIENCE_S)
        line.connect(self.address)
        line.sendall(json.dumps(asdict(order)).encode() + b"\n")
        answer = bytearray()
        while said := line.recv(4096):
            answer += said
            if answer.startswith(b"{") and answer.endswith(b"\n"):
                break
        lines = answer.decode().splitlines()
        if not lines:
            line.close()
            raise FellSilent(f"the node died before it listened: see {order.log}")
        if not lines[0].startswith("{"):
            line.close()
            return Body(0, 0, line, lines)
        told = json.loads(lines[0])
        return Body(told["process"], told["port"], line, lines[1:])


@contextmanager
def running() -> Iterator[Zygote]:
    """A zygote; the nodes that it forked end with it."""
    with tempfile.TemporaryDirectory(prefix="zygote") as directory:
        address = str(Path(directory) / "line")
        with subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote", address],
            cwd=ROOT,
            # A thread of a numerical library would be lost in the fork, with its locks held.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                assert process.stdout.readline() == b"ready\n", "the zygote did not start"
                yield Zygote(address)
            finally:
                process.stdin.close()
                process.wait(PATIENCE_S)


# What follows runs in the zygote and in what it forks.


def serve(address: str) -> None:
    """Fork a node per connection until standard input ends."""
    configure_logging(LoggingSection(level="error"))
    _rehearse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(address)
        door.listen(64)
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads: a fork would copy one and the others' locks"
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while door in select.select([door, sys.stdin], [], [])[0]:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _live(line)
            line.close()


def _rehearse() -> None:
    """One study from end to end, so that whatever is imported late is imported by now."""
    with tempfile.TemporaryDirectory(prefix="rehearsal") as directory, Archive() as archive:
        place = Path(directory)
        config = Plan(tiny_engine(place), archive.port, quiet_period_s=0.05).write(place / "node")
        with Node(load(config)) as node:
            send(small_study(), Called("127.0.0.1", node.port, AE_TITLE, MODALITY))
            assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(PATIENCE_S)
    gc.collect()
    gc.freeze()


def _live(line: socket.socket) -> None:
    """The forked node's whole life; never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        order = Order(**json.loads(line.makefile().readline()))
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 2)
        configure_logging(LoggingSection(format="json"))
        _run(order, line)
    except BaseException:  # noqa: BLE001 - nothing may run on in the zygote's code
        traceback.print_exc()
    os._exit(1)


def _run(order: Order, line: socket.socket) -> None:
    reader = Sandbox if order.sandboxed else InProcess
    clock = Skewed(Path(order.clock)) if order.clock else time.time
    watcher = Watcher(clock=clock, reached=_doom(order, line), reader=reader)
    config = load(Path(order.config))
    if order.part:
        _run_part(order.part, config, watcher, line)
    with Node(config, watcher) as node:
        _tell(line, node.port)
        node.wait()


def _run_part(name: str, config: Config, watcher: Watcher, line: socket.socket) -> None:
    """As ``ai-node run --only`` does, without its watchdog."""
    site = Site(config, watcher)
    ear = site.bell(name).listen()
    part = PARTS[name](site)
    part.start()
    threading.Thread(target=ear.run, args=(part.crew.wake,), daemon=True).start()
    _tell(line, int(getattr(part, "port", 0)))
    _wait(part.crew)


def _wait(crew: Crew) -> None:
    if crew.running:
        wait_for_end((crew,), None)
    threading.Event().wait()


def _tell(line: socket.socket, port: int) -> None:
    line.sendall(json.dumps({"process": os.getpid(), "port": port}).encode() + b"\n")


def _doom(order: Order, line: socket.socket) -> Reached:
    """Ends the process by SIGKILL at the n-th time of a stage."""
    times = itertools.count(1)

    def reached(stage: Stage, subject: str) -> None:
        if stage.value == order.stage and next(times) == order.occurrence:
            line.sendall(f"reached {stage.value}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


if __name__ == "__main__":
    serve(sys.argv[1])
