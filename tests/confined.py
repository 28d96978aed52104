"""Runs a command under the system call filter that systemd would make of a unit.

``python -m tests.confined UNIT COMMAND...``. Where systemd is not in charge, as in a container,
this shows at least that the node does not need what its units forbid: SystemCallFilter=,
MemoryDenyWriteExecute= and RestrictAddressFamilies=. Their mount namespaces are not imitated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_ALLOW = 0x7FFF0000
_MASKED_EQUAL, _EQUAL = 7, 4
_WRITE, _EXECUTE = 2, 4
_FAMILIES = 46
"""As many address families as any kernel knows."""


def directives(text: str) -> dict[str, list[str]]:
    """Every directive of a unit with its values, in their order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def calls(name: str) -> Iterator[str]:
    """The system calls of a set such as ``@system-service``, as systemd knows them."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines()[1:]:
        entry = line.strip()
        if entry.startswith("@"):
            yield from calls(entry)
        elif entry and not entry.startswith("#"):
            yield entry


def allowed(unit: Mapping[str, list[str]]) -> set[str]:
    """The system calls that a unit lets through."""
    found: set[str] = set()
    for value in unit["SystemCallFilter"]:
        named = {call for name in value.removeprefix("~").split() for call in calls(name)}
        found = found - named if value.startswith("~") else found | named
    return found


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Filters:
    """The filters of a unit; libseccomp makes programs for the kernel of them."""

    unit: Mapping[str, list[str]]

    @cached_property
    def library(self) -> ctypes.CDLL:
        """libseccomp, which systemd needs too."""
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_load.argtypes = [ctypes.c_void_p]
        library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        ]
        return library

    def enter(self) -> None:
        """Put this process, and whatever it starts, under the filters for good."""
        every = allowed(self.unit)
        if self.unit.get("MemoryDenyWriteExecute") == ["yes"]:
            self._deny_code_that_is_written()
        self._deny_families()
        self._allow(every)

    def _allow(self, names: set[str]) -> None:
        context = self.library.seccomp_init(_refuse(errno.EPERM))
        for name in names:
            self._add(context, _ALLOW, name)
        self._load(context)

    def _deny_code_that_is_written(self) -> None:
        context = self.library.seccomp_init(_ALLOW)
        both = _WRITE | _EXECUTE
        self._add(context, _refuse(errno.EPERM), "mmap", _Comparison(2, _MASKED_EQUAL, both, both))
        executable = _Comparison(2, _MASKED_EQUAL, _EXECUTE, _EXECUTE)
        for name in ("mprotect", "pkey_mprotect"):
            self._add(context, _refuse(errno.EPERM), name, executable)
        self._load(context)

    def _deny_families(self) -> None:
        (families,) = self.unit["RestrictAddressFamilies"]
        kept = {getattr(socket, family) for family in families.split()}
        context = self.library.seccomp_init(_ALLOW)
        for family in set(range(1, _FAMILIES)) - kept:
            equal = _Comparison(0, _EQUAL, family, 0)
            self._add(context, _refuse(errno.EAFNOSUPPORT), "socket", equal)
        self._load(context)

    def _add(self, context: int, action: int, name: str, *comparisons: _Comparison) -> None:
        number = self.library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            return  # of another processor
        array = (_Comparison * len(comparisons))(*comparisons)
        self.library.seccomp_rule_add_array(context, action, number, len(comparisons), array)

    def _load(self, context: int) -> None:
        status = self.library.seccomp_load(context)
        if status:
            raise OSError(-status, f"filter not loaded: {os.strerror(-status)}")


def _refuse(error: int) -> int:
    return 0x00050000 | error


if __name__ == "__main__":
    Filters(directives(Path(sys.argv[1]).read_text(encoding="utf-8"))).enter()
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the test's own command
