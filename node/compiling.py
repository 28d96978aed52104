"""Plans are built in a process of their own: it may crash, leak, hang, or take an hour.

The child (``node.gpu.building``, or another that speaks as it does) reads an order from standard
input and writes lines of JSON. It has the lowest priority there is, a session of its own, and dies
with us. What kills it is an InferenceError here, in words.

::

    compile(order) --one JSON object--> child --{"progress": 0.4, "phase": ...}--> on_progress
                                              --{"done": {...}} | {"failed": {...}}--> Built | raise
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import structlog

from node.domain import errors
from node.domain.errors import DeviceLost, InferenceError, JobCancelled
from node.gpu.recipe import Recipe

_log = structlog.get_logger()

BUILDER = (sys.executable, "-m", "node.gpu.building")
"""What builds, unless another command is given."""

OnProgress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done."""
Cancelled = Callable[[], bool]

_PACKAGE = Path(__file__).resolve().parent.parent
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_TURN_S = 0.2
_LONGEST_LINE = 1 << 20
_LAST_WORDS = 4096
_LOWEST = 19
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
"""PR_SET_PDEATHSIG and PR_SET_NO_NEW_PRIVS of Linux's prctl(2)."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IDLE = 3 << 13
"""IOPRIO_CLASS_IDLE of Linux's ioprio_set(2)."""


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build, where to write it, and what was measured before (may be absent)."""

    recipe: Recipe
    out: Path
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a build may cost."""

    timeout_s: float = 1200.0
    """Seconds by the clock on the wall; fewer than a unit has to start (TimeoutStartSec)."""
    grace_s: float = 20.0
    """Seconds that a builder which was told to stop gets before it is killed."""
    memory: int = 0
    """Bytes of address space; 0: any. A builder on a GPU maps far more than it uses."""


@dataclass(frozen=True, slots=True)
class Built:
    """A plan on disk, and what its builder told of it."""

    out: Path
    told: Mapping[str, Any]


def unreported(done: float, phase: str) -> None:
    """Nobody wants to know how far it is."""


def uncancelled() -> bool:
    """Nobody cancels it."""
    return False


def compile(  # the name that the commands use too
    order: BuildOrder,
    bounds: Bounds | None = None,
    on_progress: OnProgress = unreported,
    cancelled: Cancelled = uncancelled,
    command: Sequence[str] = BUILDER,
) -> Built:
    """Build a plan in a child process and wait for it.

    ``cancelled`` is asked several times a second. Raises JobCancelled when it says so;
    InferenceError when the child fails, crashes, takes too long or cannot be started, of the class
    that the child names, but never DeviceLost: only the child had that device.
    """
    order.out.unlink(missing_ok=True)
    builder = _Builder(order.recipe.model.name, bounds or Bounds(), command)
    told: Mapping[str, Any] | None = None
    try:
        builder.ask(order.recipe.order(order.out, order.timing_cache))
        builder.listen(on_progress, cancelled)
        told = builder.verdict()
    finally:
        builder.end()
        if told is None:
            order.out.unlink(missing_ok=True)
    if not order.out.is_file() or not order.out.stat().st_size:
        raise InferenceError(f"{builder.name} was built, but there is no plan at {order.out}")
    return Built(order.out, told)


class _Builder:
    """A running child."""

    def __init__(self, model: str, bounds: Bounds, command: Sequence[str]) -> None:
        self.name = f"the plan of {model}"
        self._bounds = bounds
        self._begun = time.monotonic()
        self._stopped = ""
        self._buffer = bytearray()
        self._told: dict[str, Any] = {}
        self._last_words = b""
        self._process = _started(bounds, command)
        self._selector = selectors.DefaultSelector()
        for pipe in (self._process.stdout, self._process.stderr):
            self._selector.register(_pipe(pipe), selectors.EVENT_READ)

    def ask(self, order: Mapping[str, Any]) -> None:
        """Hand over the order."""
        # A child that is dead already shows it when its answer is read.
        with suppress(BrokenPipeError), _pipe(self._process.stdin) as stdin:
            stdin.write(json.dumps(order).encode() + b"\n")

    def listen(self, on_progress: OnProgress, cancelled: Cancelled) -> None:
        """Until the child has ended, by itself or because it had to."""
        until = self._begun + self._bounds.timeout_s
        while self._selector.get_map():
            heard = self._selector.select(_TURN_S)
            for key, _ in heard:
                self._hear(key.fileobj, on_progress)
            if not heard and self._ended():
                return  # somebody whom it started still has its pipes
            if time.monotonic() >= until:
                if self._stopped:
                    self._kill()
                    return
                self._stop(f"took more than {self._bounds.timeout_s:g} s")
                until = time.monotonic() + self._bounds.grace_s
            elif not self._stopped and cancelled():
                self._stop("was cancelled")
                until = time.monotonic() + self._bounds.grace_s

    def verdict(self) -> Mapping[str, Any]:
        """What the child told of a plan that it has built; raises why there is none."""
        code = self._wait()
        failed, done = self._told.get("failed"), self._told.get("done")
        if self._stopped == "was cancelled":
            raise JobCancelled(f"building {self.name} was cancelled")
        if self._stopped:
            raise InferenceError(
                f"building {self.name} {self._stopped} and was stopped: raise the time limit, or "
                f"lower the builder's level"
            )
        if isinstance(failed, dict):
            raise _failure(self.name, failed)
        if code == 0 and isinstance(done, dict):
            return done
        _log.warning("builder died", code=code, last_words=self._last_line())
        raise InferenceError(f"building {self.name} failed: {_cause(code)}{self._last_line()}")

    def end(self) -> None:
        """Leave nothing of it: the child, whom it started, the pipes."""
        self._kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                _pipe(pipe).close()

    def _hear(self, source: Any, on_progress: OnProgress) -> None:
        received = os.read(source.fileno(), 1 << 16)
        if not received:
            self._selector.unregister(source)
        elif source is self._process.stderr:
            self._last_words = (self._last_words + received)[-_LAST_WORDS:]
        else:
            self._buffer += received
            *lines, rest = self._buffer.split(b"\n")
            self._buffer = rest[-_LONGEST_LINE:]
            for line in lines:
                self._take(bytes(line), on_progress)

    def _take(self, line: bytes, on_progress: OnProgress) -> None:
        """One line. What is no JSON object was printed by a library, and means nothing."""
        with suppress(ValueError):
            words = json.loads(line)
            if isinstance(words, dict):
                self._told |= words
                if isinstance(words.get("progress"), int | float):
                    done = min(max(float(words["progress"]), 0.0), 1.0)
                    on_progress(done, str(words.get("phase", "")))

    def _stop(self, why: str) -> None:
        self._stopped = why
        _log.info("builder is told to stop", why=why)
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def _kill(self) -> None:
        # Before it is waited for: afterwards its number may be somebody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ended(self) -> bool:
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _wait(self) -> int:
        """The child's own end. It has closed its pipes, so that is near; if not, it is killed."""
        until = time.monotonic() + self._bounds.grace_s
        while not self._ended() and time.monotonic() < until:
            time.sleep(_TURN_S / 10)
        self._kill()
        return self._process.wait()

    def _last_line(self) -> str:
        lines = self._last_words.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({last[:200]})" if last else ""


def _started(bounds: Bounds, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH"))))
    shim = [sys.executable, "-m", "node.compiling", str(bounds.memory), str(os.getpid())]
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter, and the caller's command
            [*shim, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment | {"PYTHONPATH": path},
            start_new_session=True,
        )
    except OSError as error:
        raise InferenceError(
            f"the process that builds plans could not be started ({error.strerror}): see whether "
            f"memory, processes or file descriptors have run out"
        ) from error


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise InferenceError("the builder was started without pipes")
    return stream


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), as happens when the machine runs out of memory"
    if code < 0:
        return f"it crashed with {signal.Signals(-code).name}"
    return f"it ended with code {code} and without a word"


def _failure(name: str, failed: Mapping[str, Any]) -> errors.NodeError:
    """The child's error as ours."""
    reason = str(failed.get("reason", "it does not say why"))
    kind = getattr(errors, str(failed.get("error")), InferenceError)
    if kind is JobCancelled:
        return JobCancelled(reason)
    known = isinstance(kind, type) and issubclass(kind, InferenceError)
    if not known or issubclass(kind, DeviceLost):
        kind = InferenceError
    made: errors.NodeError = kind(f"building {name} failed: {reason}")
    return made


# What follows runs in the child, until it becomes the builder.


def _become(memory: int, parent: int, command: Sequence[str]) -> None:
    """Give way to everybody else, die with the parent, and become the command."""
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.prctl(_DIE_WITH_PARENT, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it died before it could take us along
    with suppress(OSError):  # a service may be forbidden to change it
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        libc.syscall(number, 1, 0, _IDLE)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - what the parent was told to run
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
