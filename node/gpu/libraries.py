"""Finding TensorRT or TensorRT-RTX, and saying in one sentence what is missing.

The two have one programming interface. TensorRT comes from NVIDIA's own package index only;
TensorRT-RTX has its bindings on PyPI and its libraries inside of another package there, which the
bindings do not know: they are loaded here before the bindings look for them. Nothing is imported
before ``load_library``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from node.domain.errors import (
    DeviceLost,
    DeviceMemoryFull,
    InferenceError,
    RuntimeUnavailable,
)
from node.gpu.recipe import Flavour

FLAVOURS: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""The libraries by their name in the configuration, in the order in which they are tried."""

OLDEST = (10, 3)
"""The first TensorRT whose interface we use."""

_WHERE: dict[Flavour, str] = {
    "tensorrt": "the extra dicom-ai-node[tensorrt] brings it from NVIDIA's package index, which "
    "pip has to be told with --extra-index-url (PyPI has a stub only)",
    "tensorrt_rtx": "the extra dicom-ai-node[rtx] brings it",
}
_MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
_RTX_HOMES = ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx")
"""Packages that hold the libraries of TensorRT-RTX."""
_RTX_FILES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
_KEPT = 40
"""Last lines of the log that an error may cite."""

_NO_DRIVER = ("error 35", "error: 35", "cudaerror 35", "factory function returned nullptr")
_NO_SUPPORT = ("does not support this compute capability", "not supported on this gpu")
_FULL = ("outofmemory", "out of memory", "cudaerror 2:", "bad_alloc")
_LOST = (
    "illegal memory access",
    "unspecified launch failure",
    "misaligned address",
    "device-side assert",
    "illegal instruction",
    "uncorrectable ecc",
    *(f"cudaerror {code}:" for code in (214, 700, 702, 710, 714, 715, 716, 717, 718, 719)),
)
"""Signs in what the libraries say, in small letters; CUDA's numbers are those of its headers."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded TensorRT."""

    flavour: Flavour
    version: str
    """Of the library itself, not of its bindings, all numbers: "1.7.1.116"."""
    api: Any
    """The Python module."""
    logger: Any
    """The process's one logger of this library, which fills the journal."""
    journal: Journal

    @property
    def title(self) -> str:
        """Name and version, "TensorRT-RTX 1.7.1.116"."""
        return f"{FLAVOURS[self.flavour]} {self.version}"

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which can build without a device."""
        return self.flavour == "tensorrt_rtx"

    @contextmanager
    def calls(self, doing: str) -> Iterator[None]:
        """What the bindings raise inside becomes one of our errors.

        A failed constructor is a TypeError about a null pointer, and its reason only in the log:
        in nearly every case that CUDA has no driver.
        """
        self.journal.clear()
        try:
            yield
        except (TypeError, RuntimeError, ValueError) as error:
            if isinstance(error, TypeError) and "nullptr" not in str(error):
                raise  # wrong arguments are our own fault
            raise self.failure(doing, str(error)) from error

    def failure(self, doing: str, told: str = "") -> InferenceError:
        """The error for something that failed, with what the library said about it.

        RuntimeUnavailable for want of a driver or of support for the device, DeviceMemoryFull,
        DeviceLost, or InferenceError when the network or the plan is to blame.
        """
        said = "; ".join(self.journal.faults()) or told or "it does not say why"
        words = f"{self.title}, {doing}: {said}"
        signs = f"{said} {told}".lower()
        if any(sign in signs for sign in _NO_DRIVER):
            return RuntimeUnavailable(
                f"no usable NVIDIA driver for {self.title}, {doing}: install NVIDIA's driver 580 "
                f"or newer and check with nvidia-smi that it sees the card"
            )
        if any(sign in signs for sign in _NO_SUPPORT):
            other = f"; TensorRT may, and {_WHERE['tensorrt']}" if self.rtx else ""
            return RuntimeUnavailable(
                f"{self.title} does not support this GPU, {doing}: {said}{other}"
            )
        if any(sign in signs for sign in _LOST):
            return DeviceLost(f"{words}: this process has to be started again")
        if any(sign in signs for sign in _FULL):
            return DeviceMemoryFull(words)
        return InferenceError(words)


class Journal:
    """What a library said lately. It speaks of layers and memory; it never sees a patient."""

    def __init__(self) -> None:
        self._lines: deque[tuple[bool, str]] = deque(maxlen=_KEPT)
        self.facts: dict[str, int] = {}
        """Bytes that the builder named: "Total Activation Memory", "Total Weights Memory"."""

    def note(self, severity: str, line: str) -> None:
        """Keep a line; faults and warnings go to our own log too."""
        found = re.match(r"(Total \w+ Memory|Max Scratch Memory): (\d+) bytes", line)
        if found:
            self.facts[found[1]] = int(found[2])
        if severity in {"INTERNAL_ERROR", "ERROR", "WARNING"} and not _idle(line):
            self._lines.append((severity != "WARNING", line))
            _log.debug("tensorrt said", severity=severity.lower(), words=line[:400])

    def faults(self) -> tuple[str, ...]:
        """The errors since the last ``clear``, each once, without the place in its sources."""
        lines = (_shortened(line) for fault, line in self._lines if fault)
        return tuple(dict.fromkeys(lines))

    def warnings(self) -> tuple[str, ...]:
        """The warnings since the last ``clear``, each once."""
        return tuple(dict.fromkeys(line for fault, line in self._lines if not fault))

    def clear(self) -> None:
        """Forget: what comes is about something else."""
        self._lines.clear()
        self.facts.clear()


def load_library(flavour: Flavour | None = None) -> Library:
    """TensorRT of a flavour; without one, the first that is there.

    Raises RuntimeUnavailable; the sentence names what is missing and what brings it.
    """
    if flavour is not None:
        return _loaded(flavour)
    reasons = []
    for one in FLAVOURS:
        try:
            return _loaded(one)
        except RuntimeUnavailable as error:
            reasons.append(str(error))
    raise RuntimeUnavailable("; and ".join(reasons))


@cache
def _loaded(flavour: Flavour) -> Library:
    """Once per process: the libraries take one logger only, and ignore a second one."""
    if flavour == "tensorrt_rtx":
        _preload()
    api = _imported(flavour)
    version = _version(flavour, str(api.__version__))
    journal = Journal()
    return Library(flavour, version, api, _listener(api, journal), journal)


def _preload() -> None:
    """Load the libraries of TensorRT-RTX from whatever package has them.

    Their names as linked then count as loaded, so the bindings find them without a search path.
    """
    homes = [home for name in _RTX_HOMES if (home := _home(name))]
    for file in _RTX_FILES:
        found = [path for home in homes for path in sorted(home.glob(f"{file}.*"))]
        if found:
            _open(found[0])


def _open(path: Path) -> None:
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeUnavailable(
            f"TensorRT-RTX cannot be loaded ({error}): install the extra dicom-ai-node[rtx] again"
        ) from error


def _home(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _imported(flavour: Flavour) -> Any:
    title = FLAVOURS[flavour]
    if not any(importlib.util.find_spec(name) for name in _MODULES[flavour]):
        raise RuntimeUnavailable(f"{title} is not installed: {_WHERE[flavour]}")
    try:
        return _tensorrt() if flavour == "tensorrt" else _tensorrt_rtx()
    except (ImportError, OSError) as error:
        raise RuntimeUnavailable(
            f"{title} has its Python bindings here but not its libraries ({error}): "
            f"{_WHERE[flavour]}"
        ) from error


def _tensorrt() -> Any:
    """Wheels have the bindings as a package of their own, other installations within one."""
    if importlib.util.find_spec("tensorrt"):
        import tensorrt

        return tensorrt
    import tensorrt_bindings

    return tensorrt_bindings


def _tensorrt_rtx() -> Any:
    """The same, but for the wheel around the bindings, which asks for what PyPI has not."""
    if importlib.util.find_spec("tensorrt_rtx_bindings"):
        import tensorrt_rtx_bindings

        return tensorrt_rtx_bindings
    import tensorrt_rtx

    return tensorrt_rtx


def _version(flavour: Flavour, bindings: str) -> str:
    """The version that the loaded library itself tells. Raises RuntimeUnavailable when unfit."""
    title = FLAVOURS[flavour]
    version = _told(flavour, bindings.split(".")[0]) or bindings
    if version.split(".")[:3] != bindings.split(".")[:3]:
        raise RuntimeUnavailable(
            f"{title}'s library is {version}, its Python bindings are {bindings}: install one "
            f"version of both; {_WHERE[flavour]}"
        )
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if flavour == "tensorrt" and numbers < OLDEST:
        raise RuntimeUnavailable(
            f"{title} {version} is too old, {OLDEST[0]}.{OLDEST[1]} or newer is needed: "
            f"{_WHERE[flavour]}"
        )
    return version


def _told(flavour: Flavour, major: str) -> str:
    """All four numbers, from the library; empty when it is too old to tell them."""
    name = "libtensorrt_rtx.so.1" if flavour == "tensorrt_rtx" else f"libnvinfer.so.{major}"
    try:
        library = ctypes.CDLL(name)
        parts = ("Major", "Minor", "Patch", "Build")
        return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    except (OSError, AttributeError):
        return ""


def _listener(api: Any, journal: Journal) -> Any:
    """The one logger that every object of this process gets."""

    class Listener(api.ILogger):  # type: ignore[misc]
        """Hands the library's words to the journal."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, line: str) -> None:
            """Called from the library's threads."""
            journal.note(severity.name, line)

    return Listener()


def _idle(line: str) -> bool:
    """Words at every start that tell nobody anything."""
    return "Thread context has not been set" in line


def _shortened(line: str) -> str:
    """Without the place in NVIDIA's sources."""
    line = re.sub(r"\[\S+::\S+::\d+\] ", "", line)
    return re.sub(r"In \S+ at \S+:\d+ ", "", line)[:300].rstrip(". ")
