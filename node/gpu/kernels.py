"""The window's kernels, made for the device at hand by NVRTC: no CUDA toolkit on a hospital's box.

``kernels.cu`` is shipped as source. NVRTC (``libnvrtc.so``, in the wheel nvidia-cuda-nvrtc that the
extra ``tensorrt`` brings) compiles it in about a second, with or without a GPU; what it made is
kept in a folder under the hash of everything that went into it.

A cubin is asked for where NVRTC knows the architecture: unlike PTX it needs no compiler in the
driver, which may be older than NVRTC. A device newer than NVRTC gets PTX.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import structlog

from node.domain.errors import InferenceError, RuntimeUnavailable

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--restrict")
"""How the kernels are compiled, besides the architecture: nothing that trades bits for speed."""

_SOURCE = "kernels.cu"
_SYSTEM = (
    "/usr/local/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
)
_LOG = structlog.get_logger()


def source() -> str:
    """The CUDA C++ text of the kernels, as shipped."""
    return resources.files("node.gpu").joinpath(_SOURCE).read_text(encoding="utf-8")


def entry_points(text: str) -> tuple[str, ...]:
    """The names of the kernels in PTX, sorted."""
    return tuple(sorted(re.findall(r"\.visible \.entry (\w+)\(", text)))


def image(architecture: str, cache: Path | None = None, nvrtc: Nvrtc | None = None) -> bytes:
    """The kernels for an architecture ("sm_90"), as ``Device.kernels`` takes them.

    ``cache`` is a folder for what was compiled; it is made when absent, and where it cannot be used
    nothing is kept. Raises RuntimeUnavailable when NVRTC is missing or the device is older than it
    supports, and InferenceError when the kernels do not compile.
    """
    compiler = nvrtc or find()
    wanted = compiler.suited(architecture)
    text = source()
    if cache is None:
        return compiler.compile(text, wanted)
    kept = cache / f"kernels-{_key(text, wanted, compiler.version)}"
    found = _read(kept)
    if found is not None:
        return found
    made = compiler.compile(text, wanted)
    try:
        _write(kept, made)
    except OSError as error:
        _LOG.warning("compiled kernels cannot be kept", why=str(error))
    _LOG.info("kernels compiled", architecture=wanted, nvrtc=compiler.words, bytes=len(made))
    return made


def find(places: Iterable[Path] | None = None) -> Nvrtc:
    """The first NVRTC that loads: of the Python packages, then of the system.

    ``places`` are the library files to try instead. Raises RuntimeUnavailable.
    """
    refused: list[str] = []
    for path in _candidates() if places is None else places:
        try:
            return Nvrtc.load(path)
        except (OSError, AttributeError) as error:
            refused.append(f"{path.name}: {error}")
    tried = f" ({'; '.join(refused)})" if refused else ""
    raise RuntimeUnavailable(
        f"NVRTC (libnvrtc.so) was not found{tried}: it comes with the package nvidia-cuda-nvrtc, "
        f"which the extra dicom-ai-node[tensorrt] brings"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Nvrtc:
    """NVIDIA's run-time compiler. ``architectures`` are compute capabilities times ten."""

    path: Path
    version: tuple[int, int]
    architectures: tuple[int, ...]
    library: Any

    @classmethod
    def load(cls, path: Path) -> Nvrtc:
        """Load a library file. Raises OSError, or AttributeError when it is no NVRTC."""
        library = ctypes.CDLL(str(path))
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(known)
        return cls(path, (major.value, minor.value), tuple(sorted(known)), library)

    @property
    def words(self) -> str:
        """What it is, for logs and results."""
        return f"NVRTC {self.version[0]}.{self.version[1]}"

    def suited(self, architecture: str) -> str:
        """What to compile for: the architecture itself, or PTX for one that is newer than NVRTC.

        Raises RuntimeUnavailable for a device that is older than NVRTC supports.
        """
        number = int(architecture.removeprefix("sm_"))
        if number in self.architectures:
            return architecture
        older = [known for known in self.architectures if known < number]
        if not older:
            raise RuntimeUnavailable(
                f"{self.words} compiles for compute capability "
                f"{self.architectures[0] / 10:.1f} and newer, this GPU has {number / 10:.1f}: "
                f"install an older nvidia-cuda-nvrtc, or run the engine on the CPU"
            )
        return f"compute_{older[-1]}"

    def compile(self, text: str, architecture: str) -> bytes:
        """A cubin for "sm_90", PTX for "compute_90". Raises InferenceError with NVRTC's words."""
        with self._program(text, architecture) as program:
            return self._bytes("PTX" if architecture.startswith("compute_") else "CUBIN", program)

    @contextmanager
    def _program(self, text: str, architecture: str) -> Iterator[ctypes.c_void_p]:
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            text.encode(),
            _SOURCE.encode(),
            ctypes.c_int(0),
            None,
            None,
        )
        try:
            options = [*OPTIONS, f"--gpu-architecture={architecture}"]
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self.library.nvrtcCompileProgram(program, ctypes.c_int(len(options)), array):
                log = self._bytes("ProgramLog", program).decode(errors="replace").strip("\0\n ")
                raise InferenceError(f"the kernels do not compile for {architecture}: {log}")
            yield program
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        made = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, made)
        return made.raw

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            reason = self.library.nvrtcGetErrorString(code).decode()
            raise InferenceError(f"{self.words}: {name} failed: {reason}")


def _candidates() -> Iterator[Path]:
    """Library files, newest first: in the packages nvidia/*, then where CUDA is installed."""
    found = importlib.util.find_spec("nvidia")
    packages = list(found.submodule_search_locations or ()) if found else []
    for folder in packages:
        yield from sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), key=_major, reverse=True)
    for place in _SYSTEM:
        yield from sorted(Path(place).glob("libnvrtc.so.*"), key=_major, reverse=True)
    yield Path("libnvrtc.so")  # wherever the loader looks


def _major(path: Path) -> tuple[int, ...]:
    """libnvrtc.so.13 -> (13,); libnvrtc.alt.so and the like stand behind."""
    return tuple(int(part) for part in path.name.split(".so.")[-1].split(".") if part.isdigit())


def _key(text: str, architecture: str, version: tuple[int, int]) -> str:
    parts = (text, architecture, f"{version[0]}.{version[1]}", *OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """What was kept, when its hash is still right: it is about to run."""
    try:
        kept = path.read_bytes()
    except OSError:  # absent, or a disk whose trouble the next to write will tell
        return None
    digest, made = kept[:32], kept[32:]
    if hashlib.sha256(made).digest() == digest:
        return made
    _LOG.warning("kept kernels are damaged; they are compiled again", file=path.name)
    return None


def _write(path: Path, made: bytes) -> None:
    """Whole or not at all, for our own eyes only: who can write it can run code on the device."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".kernels-")
    with open(handle, "wb") as file:
        file.write(hashlib.sha256(made).digest() + made)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)
