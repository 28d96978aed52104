"""``ai-node run``: every part in a process of its own, started again when it ends or falls silent.

The supervisor is to its children what systemd is to a unit: it gives each a NOTIFY_SOCKET, waits
for READY=1, expects WATCHDOG=1, and ends and restarts whoever stays silent. So a part cannot tell
which of the two started it. It reads no DICOM, loads no engine, and holds no lock.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from node.domain.errors import ConfigError, Fault, NodeError
from node.domain.job import BackOff

_log = structlog.get_logger()

WATCHDOG_S = 60.0
"""A child that proves no progress for so long is ended."""
_READY_S = 300.0
"""Loading engines takes time; a child that is not ready by then is ended too."""
_HEALTHY_S = 60.0
"""A child that ran for so long has its next failure counted as the first."""
_TURN_S = 0.5
_STOP_S = 60.0
_CONFIG_EXIT = 2
_BACK_OFF = BackOff(first=1.0, factor=2.0, longest=30.0)
_CREDENTIALS = struct.Struct("3i")


class NeverReady(NodeError):
    """A part ended before it was ready for the first time."""


@dataclass(slots=True)
class Child:
    """One part's process, and what it has said of itself. Times are of a clock that only rises."""

    name: str
    command: Sequence[str]
    address: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    heard_at: float = 0.0
    ready: bool = False
    was_ready: bool = False
    failures: int = 0
    due_at: float = 0.0
    watchdog_s: float = WATCHDOG_S

    def start(self, now: float) -> None:
        """Start the process with a notify socket of its own."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": f"@{self.address}",
            "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6)),
        }
        environment.pop("WATCHDOG_PID", None)
        self.process = subprocess.Popen(self.command, env=environment)  # noqa: S603 - our own
        self.started_at = self.heard_at = now
        self.ready = False
        _log.info("part started", part=self.name, process=self.process.pid)

    def hear(self, message: str, now: float) -> None:
        """Take in a message of the child's."""
        lines = message.splitlines()
        if "READY=1" in lines:
            self.ready = self.was_ready = True
        if {"READY=1", "WATCHDOG=1"} & set(lines):
            self.heard_at = now

    def silent(self, now: float) -> bool:
        """Whether it should have been heard of by now."""
        patience = self.watchdog_s if self.ready else _READY_S
        return self.process is not None and now - self.heard_at > patience

    def ended(self, now: float) -> int | None:
        """The exit status of a process that has ended; its restart is then due after a while."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is not None:
            self.failures = 1 if now - self.started_at > _HEALTHY_S else self.failures + 1
            self.due_at = now + _BACK_OFF.delay(self.failures)
            self.process = None
        return status


@dataclass(slots=True)
class Supervisor:
    """Runs the parts until it is told to stop.

    ``commands`` are the parts' command lines by name, in the order of starting. ``alive`` is
    called while every part serves; ``ready`` once, when all do for the first time. A part that
    proves no progress for ``watchdog_s`` seconds is ended.
    """

    commands: Mapping[str, Sequence[str]]
    ready: Callable[[], None]
    alive: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    watchdog_s: float = WATCHDOG_S
    children: dict[str, Child] = field(default_factory=dict)
    _announced: bool = False

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Serve until ``stopping``, a wait of so many seconds at most, says that it is time.

        Raises NodeError when a part cannot even begin.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ear:
            address = self._open(ear)
            for name, command in self.commands.items():
                child = Child(name, command, address, watchdog_s=self.watchdog_s)
                self.children[name] = child
            try:
                while not stopping(_TURN_S):
                    self.turn(ear)
            finally:
                self.stop()

    def turn(self, ear: socket.socket) -> None:
        """Hear what the children say, restart what ended, end what is silent."""
        now = self.clock()
        for process, message in _heard(ear):
            for child in self.children.values():
                if child.process is not None and child.process.pid == process:
                    child.hear(message, now)
        for child in self.children.values():
            self._look_after(child, now)
        if all(child.ready and child.process for child in self.children.values()):
            if not self._announced:
                self._announced = True
                self.ready()
            self.alive()

    def reload(self) -> None:
        """Pass SIGHUP on."""
        for child in self.children.values():
            if child.process is not None:
                child.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End every part, the receiver first, each with time to finish what it is at."""
        running = [child for child in self.children.values() if child.process is not None]
        for child in running:
            assert child.process is not None  # noqa: S101 - filtered above
            child.process.terminate()
        for child in running:
            assert child.process is not None  # noqa: S101 - filtered above
            try:
                child.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                _log.error("part does not end, killing it", part=child.name)
                child.process.kill()
                child.process.wait()

    def _look_after(self, child: Child, now: float) -> None:
        status = child.ended(now)
        if status is not None:
            self._refuse_hopeless(child, status)
            _log.error(
                "part ended", part=child.name, status=status, restart_in_s=child.due_at - now
            )
        if child.process is None and now >= child.due_at:
            child.start(now)
        elif child.silent(now):
            _log.error("part is silent, killing it", part=child.name)
            assert child.process is not None  # noqa: S101 - silent() says so
            child.process.kill()

    def _refuse_hopeless(self, child: Child, status: int) -> None:
        """What never worked and says that its configuration is wrong will not work by waiting."""
        if self._announced or child.was_ready:
            return
        if status == _CONFIG_EXIT:
            raise ConfigError((Fault(child.name, "the part found the configuration wrong"),))
        if status == 1:
            raise NeverReady(f"the {child.name} could not start; it says why above")

    def _open(self, ear: socket.socket) -> str:
        address = f"ai-node-{os.getpid()}"
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ear.bind(f"\0{address}")
        ear.setblocking(False)
        return address


def _heard(ear: socket.socket) -> list[tuple[int, str]]:
    """Every waiting message, with the process that the kernel says has sent it."""
    heard: list[tuple[int, str]] = []
    while True:
        try:
            message, ancillary, _, _ = ear.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except BlockingIOError:
            return heard
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                process, _, _ = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])
                heard.append((process, message.decode("utf-8", "replace")))
