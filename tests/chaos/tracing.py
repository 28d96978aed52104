"""strace as an instrument: what a receiver asked of the kernel in which order, and what fails.

The order of system calls is the only witness of durability that does not need a power cut: an
answer that leaves before the file, its name and its directory are synced is a lie, even if every
test that kills the process passes.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.places import tool

_TRACED = (
    "write,writev,pwrite64,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "sendto,sendmsg,sendfile,splice"
)
_ENOUGH = 1024
"""Bytes of each buffer in the trace: a Part 10 envelope, or a whole C-STORE-RSP."""


@functools.cache
def strace() -> str:
    """The path of strace; skips the test where it is absent or may not trace."""
    program = tool("strace")
    tried = subprocess.run([program, "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("strace may not trace here (ptrace is not permitted)")
    return program


_READABLE = ("-y", "-xx", f"-s{_ENOUGH}")
_Traced = AbstractContextManager[None]


@contextmanager
def traced(process: int, output: Path, options: Sequence[str]) -> Iterator[None]:
    """Trace a running process and its threads until the block ends."""
    command = [strace(), "-f", "-o", str(output), *options, "-p", str(process)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert "attached" in said, f"strace does not attach: {said}"
            yield
        finally:
            tracer.terminate()


def recorded(process: int, output: Path) -> _Traced:
    """Record a process in the form that ``judge`` reads."""
    return traced(process, output, [*_READABLE, f"-etrace={_TRACED}"])


def failing(process: int, output: Path, call: str, error: str, number: int) -> _Traced:
    """Record, and let the n-th call of that name fail once, with an error of the kernel's."""
    fault = f"-einject={call}:error={error}:when={number}"
    return traced(process, output, [*_READABLE, f"-etrace={_TRACED},{call}", fault])


def has_failed(output: Path) -> bool:
    """Whether the process came as far as the call that was to fail."""
    return "(INJECTED)" in output.read_text()


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: its buffers and paths decoded, and the lines at which it began and ended."""

    name: str
    texts: tuple[bytes, ...]
    succeeded: bool
    began: int
    ended: int


_STRING = re.compile(r"(?:\\x[0-9a-f]{2})+")
_WHOLE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_BEGIN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_END = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)")


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """The system calls of a trace, in the order in which they ended."""
    under_way: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines):
        if whole := _WHOLE.match(line):
            _, name, arguments, result = whole.groups()
            yield _call(name, arguments, result, (number, number))
        elif begin := _BEGIN.match(line):
            under_way[begin[1]] = (begin[3], number)
        elif (end := _END.match(line)) and end[1] in under_way:
            arguments, began = under_way.pop(end[1])
            yield _call(end[2], arguments + end[3], end[4], (began, number))


def _call(name: str, arguments: str, result: str, lines: tuple[int, int]) -> Call:
    texts = (bytes.fromhex(found.replace("\\x", "")) for found in _STRING.findall(arguments))
    return Call(name, tuple(texts), not result.startswith(("-", "?")), *lines)


_INSTANCE = re.compile(rb"\x02\x00\x03\x00UI(..)", re.DOTALL)
"""(0002,0003) in a Part 10 envelope (PS3.10 section 7.1), explicit VR little endian."""
_FILES = (b".part", b".dcm", b".json")
_P_DATA = 0x04
_RESPONSE = 0x8001
"""C-STORE-RSP in (0000,0100) (PS3.7 section 9.3.1.2)."""
_FIELD, _STATUS, _AFFECTED = 0x0100, 0x0900, 0x1000


@dataclass(slots=True)
class Verdict:
    """What a trace says: the objects answered with 0x0000, and those of them not durable then."""

    acknowledged: int = 0
    premature: list[str] = field(default_factory=list)


class _Judge:
    """Follows every file from its first byte to its synced directory."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._objects: dict[bytes, str] = {}
        self._synced: set[bytes] = set()
        self._named: dict[bytes, int] = {}
        self._durable: set[str] = set()

    def see(self, call: Call) -> None:
        if call.name.startswith(("write", "pwrite")):
            self._written(call)
        elif call.name in ("fsync", "fdatasync") and call.succeeded:
            self._sync(call.texts[0], call.began)
        elif call.name.startswith("rename") and call.succeeded:
            paths = [text for text in call.texts if text.endswith(_FILES)]
            if len(paths) == 2:
                self._rename(paths[0], paths[1], call.ended)
        elif call.name.startswith("send"):
            self._sent(b"".join(call.texts[1:]))

    def _written(self, call: Call) -> None:
        path, content = call.texts[0], b"".join(call.texts[1:])
        if path.startswith(b"socket:"):
            self._sent(content)
            return
        self._synced.discard(path)
        if found := _INSTANCE.search(content):
            self._objects[path] = _uid(content, found)

    def _sync(self, path: bytes, began: int) -> None:
        if path in self._objects:
            self._synced.add(path)
        for file, named in list(self._named.items()):
            if file.rpartition(b"/")[0] == path and named < began:
                self._durable.add(self._objects.pop(file))
                del self._named[file]

    def _rename(self, old: bytes, new: bytes, ended: int) -> None:
        if old in self._synced:
            self._synced.remove(old)
            self._objects[new] = self._objects.pop(old)
            self._named[new] = ended

    def _sent(self, content: bytes) -> None:
        for command in _commands(content):
            if _number(command, _FIELD) == _RESPONSE and _number(command, _STATUS) == 0:
                uid = command.get(_AFFECTED, b"").rstrip(b"\0").decode()
                self.verdict.acknowledged += 1
                if uid not in self._durable:
                    self.verdict.premature.append(uid)


def _commands(content: bytes) -> Iterator[dict[int, bytes]]:
    """The command sets in what was sent: elements of group 0000, implicit VR (PS3.7 6.3.1)."""
    while len(content) >= 6 and content[0] == _P_DATA:
        length = 6 + int.from_bytes(content[2:6], "big")
        # After the PDU's header: length, context id and control header of its only PDV.
        elements, content = content[12:length], content[length:]
        command: dict[int, bytes] = {}
        while len(elements) >= 8:
            end = 8 + int.from_bytes(elements[4:8], "little")
            command[int.from_bytes(elements[2:4], "little")] = elements[8:end]
            elements = elements[end:]
        yield command


def _number(command: dict[int, bytes], element: int) -> int:
    return int.from_bytes(command.get(element, b"\xff\xff"), "little")


def _uid(content: bytes, found: re.Match[bytes]) -> str:
    length = int.from_bytes(found[1], "little")
    return content[found.end() : found.end() + length].rstrip(b"\0").decode()


def judge(trace: Path) -> Verdict:
    """Whether every 0x0000 left after the object's file, name and directory were synced.

    An answer counts from the moment at which its sending began, a sync from when it had ended.
    """
    judge = _Judge()
    with trace.open() as lines:
        seen = sorted(calls(lines), key=_moment)
    for call in seen:
        judge.see(call)
    return judge.verdict


def _moment(call: Call) -> int:
    return call.began if call.name.startswith("send") else call.ended
