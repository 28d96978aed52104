"""Reads the headers of received objects in a process that may be killed.

A few kilobytes can keep a parser busy for minutes and fill the memory with gigabytes: a million
empty items, ten million backslashes in a name. So what came over the wire is parsed in a child
with limits on memory, CPU and time. What kills the child is an object's fault, told in words, and
the next object finds a new child. The child needs no network and may open files only to read.

::

    Sandbox.read(files) --one JSON line per file--> python -m node.sandbox --one line back--> facts
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import structlog

from node.dicom.headers import read_instance, reading
from node.dicom.part10 import read_arrival
from node.domain.errors import HeaderError, NodeError, SandboxError, SpoolError
from node.domain.study import Instance

_log = structlog.get_logger()

Reading = Instance | NodeError
"""What became of one file: an instance; HeaderError when it is the object's fault for good;
SpoolError when the file could not be read, which may pass."""

_PACKAGE = Path(__file__).resolve().parent.parent
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TZ")
_PIPELINED = 8
"""Requests under way at once: few enough for the pipe to hold them, so that no write ever waits."""
_LONGEST_ANSWER = 16 * 2**20
_READY = b'"ready"\n'
_START_S = 30.0
_NO_NEW_PRIVILEGES = 38
"""PR_SET_NO_NEW_PRIVS of Linux's prctl(2)."""
_KILLED = "reading it killed the parser"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one object may cost the child, and how long a child is used."""

    memory: int = 2 * 2**30
    """Bytes of address space."""
    cpu_s: int = 20
    """Seconds of CPU per object."""
    wall_s: float = 30.0
    """Seconds per object by the clock on the wall."""
    served: int = 5000
    """Objects after which a child is replaced."""
    grown: int = 512 * 2**20
    """Bytes of peak memory after which a child is replaced."""
    turn_s: float = 10.0
    """Seconds after which no further object is begun: whoever waits must show that it lives."""


class InProcess:
    """Reads without a child: for objects that we made ourselves, and for tests."""

    def read(self, files: Sequence[Path]) -> list[Reading]:
        """What each spooled file holds, in order."""
        return [_read(file) for file in files]

    def close(self) -> None:
        """There is no child to end."""


class Sandbox:
    """Reads in a child, which starts with the first file. One caller at a time."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Nothing is started before ``read``."""
        self._limits = limits or Limits()
        self._child: _Child | None = None

    def read(self, files: Sequence[Path]) -> list[Reading]:
        """What the spooled files hold, in order; of the first of them only, if they take long.

        Raises SandboxError when no child can be started; then no file is to blame.
        """
        made: list[Reading] = []
        until = time.monotonic() + self._limits.turn_s
        while len(made) < len(files) and (not made or time.monotonic() < until):
            made.extend(self._served(files[len(made) :], until))
        return made

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _served(self, files: Sequence[Path], until: float) -> list[Reading]:
        """What one child makes of the files until it dies or wears, or time is up."""
        made: list[Reading] = []
        child = self._living()
        try:
            for answer in child.answers(files):
                made.append(answer)
                if time.monotonic() >= until and len(made) < len(files):
                    self.close()  # it may be busy for long with what it was asked ahead
                    return made
        except _Death as death:
            self.close()
            # A child that was ended from outside (the machine ran out of memory) may have been
            # at work on an innocent file: that one gets another child to itself.
            guilty = death.words if death.sure else self._alone(files[len(made)])
            made.append(_blamed(guilty) if isinstance(guilty, str) else guilty)
        if child.worn:
            self.close()
        return made

    def _alone(self, file: Path) -> Reading | str:
        child = self._living()
        try:
            return next(child.answers([file]))
        except _Death as death:
            self.close()
            return death.words

    def _living(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._limits)
        return self._child


class _Death(Exception):
    """The child died over the file whose turn it was."""

    def __init__(self, words: str, *, sure: bool) -> None:
        super().__init__(words)
        self.words = words
        self.sure = sure


def _blamed(words: str) -> HeaderError:
    _log.warning("parser killed", reason=words)
    return HeaderError(f"{_KILLED}: {words}")


class _Child:
    """A running child. ``worn`` says that it should be replaced."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.served
        self._buffer = bytearray()
        self._process = _started(limits)
        self._selector = selectors.DefaultSelector()
        self._selector.register(_pipe(self._process.stdout), selectors.EVENT_READ)
        self.worn = False
        try:
            ready = self._line(_START_S)
        except _Death as death:
            self.end()
            raise SandboxError(_not_started(death.words)) from None
        if ready != _READY:
            self.end()
            raise SandboxError(_not_started("it said something else than it must"))

    def answers(self, files: Sequence[Path]) -> Iterator[Reading]:
        """One reading per file, until the child is worn. Raises _Death."""
        ahead, under_way = deque(files), 0
        while ahead or under_way:
            while ahead and under_way < _PIPELINED and not self._wears:
                self._ask(ahead.popleft())
                under_way += 1
            if not under_way:
                break
            yield self._answer()
            under_way -= 1
        self.worn = self._wears

    def end(self) -> None:
        """Kill the child; it holds nothing that is not in the spool."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                _pipe(pipe).close()

    @property
    def _wears(self) -> bool:
        return self._left <= 0

    def _ask(self, file: Path) -> None:
        self._left -= 1
        # A child that is dead already shows it when its answer is read.
        with suppress(BrokenPipeError):
            os.write(_pipe(self._process.stdin).fileno(), json.dumps(str(file)).encode() + b"\n")

    def _answer(self) -> Reading:
        line = self._line(self._limits.wall_s)
        try:
            answer = json.loads(line)
            if answer["peak"] > self._limits.grown:
                self._left = 0
            return _reading(answer)
        except (ValueError, LookupError, TypeError) as error:
            raise _Death("it answered what nobody asked", sure=True) from error

    def _line(self, patience_s: float) -> bytes:
        """The next line of the child. Raises _Death when none comes."""
        until = time.monotonic() + patience_s
        while (end := self._buffer.find(b"\n")) < 0:
            if not self._selector.select(max(0.0, until - time.monotonic())):
                raise _Death(f"time limit ({patience_s:g} s)", sure=True)
            received = os.read(_pipe(self._process.stdout).fileno(), 2**18)
            if not received:
                raise _cause(self._process.wait(), self._limits)
            self._buffer += received
            if len(self._buffer) > _LONGEST_ANSWER:
                raise _Death("its facts are too long", sure=True)
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise SandboxError("the sandbox was started without pipes")
    return stream


def _peak() -> int:
    """The most memory that this program has held, in bytes.

    Not ``ru_maxrss``: across fork and exec that begins with what the parent held.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _started(limits: Limits) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # A numerical library would take a thread and address space per core.
    environment |= {"PYTHONPATH": str(_PACKAGE), "OPENBLAS_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "node.sandbox", str(limits.memory), str(limits.cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A traceback may quote a header, and nobody may read that.
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=environment,
            process_group=0,  # Ctrl-C at a terminal is for us
        )
    except OSError as error:
        raise SandboxError(_not_started(str(error.strerror))) from error


def _not_started(why: str) -> str:
    return (
        f"the process that reads headers could not be started ({why}); arrivals wait in the "
        "spool until it can: see whether memory, processes or file descriptors have run out"
    )


def _cause(code: int, limits: Limits) -> _Death:
    if code == -signal.SIGXCPU:
        return _Death(f"CPU limit ({limits.cpu_s} s)", sure=True)
    if code < 0:
        return _Death(f"{signal.Signals(-code).name}, by itself or for want of memory", sure=False)
    return _Death(f"it ended with code {code}", sure=False)


def _reading(answer: Mapping[str, Any]) -> Reading:
    if "instance" not in answer:
        kinds = {"HeaderError": HeaderError, "SpoolError": SpoolError}
        return kinds[answer["error"]](str(answer["words"]))
    values = answer["instance"]
    facts = {
        keyword: tuple(value) if isinstance(value, list) else value
        for keyword, value in values.pop("facts").items()
    }
    return Instance(**values | {"path": Path(values["path"]), "facts": facts})


# What follows runs in the child.


def _serve(memory: int, cpu_s: int) -> None:
    """Answer one line per line of standard input until it ends."""
    warnings.simplefilter("ignore")
    _confine(memory)
    answers = sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin.buffer:
        spent = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (spent + cpu_s, hardest))
        answer = _answered(Path(json.loads(line)), memory)
        peak = _peak()
        answers.write(json.dumps(answer | {"peak": peak}).encode() + b"\n")
        answers.flush()


def _confine(memory: int) -> None:
    """Give up what reading a file does not need. What is imported is imported by now."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of standard input is what ends us
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def _answered(file: Path, memory: int) -> dict[str, Any]:
    try:
        made = _read(file)
    except MemoryError:
        words = f"{_KILLED}: memory limit ({memory / 2**30:.3g} GiB)"
        return {"error": "HeaderError", "words": words}
    if isinstance(made, Instance):
        plain = {field.name: getattr(made, field.name) for field in fields(made)}
        return {"instance": plain | {"path": str(made.path), "facts": dict(made.facts)}}
    kind = "SpoolError" if isinstance(made, SpoolError) else "HeaderError"
    return {"error": kind, "words": str(made)}


def _read(file: Path) -> Reading:
    try:
        with reading(file):
            arrival = read_arrival(file)
        return read_instance(arrival)
    except NodeError as error:
        return error


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
