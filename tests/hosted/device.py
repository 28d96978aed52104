"""A device whose memory is the host's: ``node.gpu.device.Device`` with kernels compiled by g++."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from node.domain.errors import DeviceMemoryFull, InferenceError
from node.domain.tensor import Tensors, TensorSpec
from node.gpu import kernels
from node.gpu.device import Argument, Block, Card, Kernels, Mark, Shape3
from node.gpu.task import Shapes

_SHIM = Path(__file__).with_name("shim.cpp")
_MARGIN = 64
"""Bytes before and after every block that nothing may write."""
_UNTOUCHED = 0xA5
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-function",
    "-shared",
    "-fPIC",
)


def names() -> tuple[str, ...]:
    """Every kernel of ``kernels.cu``, those that macros make too."""
    text = kernels.source()
    plain = re.findall(r'^extern "C" __global__ void (\w+)\(', text, re.MULTILINE)
    made = re.findall(r"^(GATHER|MARK|TURN|BLEND)\((\w+)", text, re.MULTILINE)
    return tuple(sorted([*plain, *(f"{macro.lower()}_{name}" for macro, name in made)]))


def compiled(folder: Path) -> Path:
    """``kernels.cu`` as a shared library in a folder; skips where there is no g++."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ is missing: apt-get install g++")
    source, library = folder / "kernels.cu", folder / "kernels.so"
    source.write_text(kernels.source(), encoding="utf-8")
    exports = " ".join(f"EXPORT({name})" for name in names())
    defined = [f'-DKERNELS="{source}"', f"-DEXPORTS={exports}"]
    command = [compiler, *_FLAGS, *defined, "-o", str(library), str(_SHIM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return library


class HostBlock:
    """Memory between two margins, filled with what no number should be."""

    def __init__(self, device: HostDevice, size: int) -> None:
        self._device = device
        self._bytes = np.full(size + 2 * _MARGIN + 64, _UNTOUCHED, np.uint8)
        start = self._bytes.ctypes.data + _MARGIN
        self._first = _MARGIN + -start % 64
        self._size = size
        self.freed = False

    @property
    def address(self) -> int:
        """Where it lies; a multiple of 64."""
        assert not self.freed, "memory is used after it was freed"
        return int(self._bytes.ctypes.data) + self._first

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """What lies in it."""
        return self._bytes[self._first : self._first + self._size]

    def free(self) -> None:
        """Give it back, and look whether anything was written beside it."""
        outside = np.ones(len(self._bytes), bool)
        outside[self._first : self._first + self._size] = False
        assert (self._bytes[outside] == _UNTOUCHED).all(), "something was written beside a block"
        self.freed = True
        self._device.blocks.discard(self)


class HostDevice:
    """``total`` bytes of memory; ``backward``: threads run from the last to the first."""

    def __init__(self, library: Path, total: int = 1 << 30, backward: bool = False) -> None:
        self.blocks: set[HostBlock] = set()
        self.launched: list[str] = []
        self.uploaded = 0
        self.downloaded = 0
        self._library = ctypes.CDLL(str(library))
        self._total = total
        self._backward = backward

    @property
    def card(self) -> Card:
        """No card at all."""
        return Card(0, "host", (0, 0), "none", self._total)

    @property
    def stream(self) -> int:
        """There is none: everything is done at once."""
        return 0

    @property
    def used(self) -> int:
        """Bytes handed out."""
        return sum(block.size for block in self.blocks)

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total)."""
        return self._total - self.used, self._total

    def allocate(self, size: int) -> Block:
        """Memory, as long as there is some."""
        if size > self._total - self.used:
            raise DeviceMemoryFull(f"allocating {size} bytes: out of memory")
        block = HostBlock(self, size)
        self.blocks.add(block)
        return block

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An ordinary array."""
        return np.empty(tuple(shape), dtype)

    def upload(self, block: Block, array: NDArray[Any], offset: int = 0) -> None:
        """Copy into a block."""
        assert array.flags.c_contiguous
        assert 0 <= offset <= block.size - array.nbytes
        self.uploaded += array.nbytes
        ctypes.memmove(block.address + offset, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], block: Block, offset: int = 0) -> None:
        """Copy out of a block."""
        assert array.flags.c_contiguous
        assert 0 <= offset <= block.size - array.nbytes
        self.downloaded += array.nbytes
        ctypes.memmove(array.ctypes.data, block.address + offset, array.nbytes)

    def clear(self, block: Block) -> None:
        """Zeros."""
        ctypes.memset(block.address, 0, block.size)

    def kernels(self, image: bytes = b"") -> Kernels:
        """The kernels that g++ compiled, whatever the image."""
        return _HostKernels(self, self._library, self._backward)

    def mark(self) -> Mark:
        """Time stands still."""
        return _HostMark()

    def synchronise(self) -> None:
        """Everything is done already."""

    def close(self) -> None:
        """Nothing may be left."""
        assert not self.blocks, "memory was not given back"


class _HostMark:
    def milliseconds_since(self, earlier: Mark) -> float:
        """No time passes."""
        return 0.0


class _HostKernels:
    def __init__(self, device: HostDevice, library: ctypes.CDLL, backward: bool) -> None:
        self._device = device
        self._library = library
        self._backward = backward

    def launch(self, name: str, grid: Shape3, threads: Shape3, *arguments: Argument) -> None:
        """Run every thread of a kernel."""
        assert grid[1:] == threads[1:] == (1, 1)
        if name not in names():
            raise InferenceError(f"there is no kernel {name}")
        assert getattr(self._library, f"arguments_{name}")() == len(arguments), name
        held = [_held(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(one) for one in held))
        self._device.launched.append(name)
        run = getattr(self._library, f"run_{name}")
        run(grid[0], threads[0], int(self._backward), pointers)


def _held(argument: Argument) -> ctypes.c_int | ctypes.c_float | ctypes.c_void_p:
    """A C value of the width that the argument has."""
    if isinstance(argument, np.int32):
        return ctypes.c_int(int(argument))
    if isinstance(argument, np.float32):
        return ctypes.c_float(float(argument))
    if isinstance(argument, np.number):
        assert argument.dtype == np.uintp, argument.dtype
        return ctypes.c_void_p(int(argument) or None)
    return ctypes.c_void_p(argument.address)


class HostNetwork:
    """A network whose tensors lie in a host device: any function, an ONNX session's for one."""

    def __init__(
        self,
        infer: Callable[[Tensors], Tensors],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        max_batch: int = 64,
        smallest_batch: int = 1,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch = max_batch
        self.smallest_batch = smallest_batch
        self.scratch = 0
        self.runs: list[Shapes] = []
        self.infer = infer

    def shapes(self, inputs: Shapes) -> Shapes:
        """Found by asking the network about nothing."""
        answers = self.infer({s.name: np.zeros(inputs[s.name], s.dtype) for s in self.inputs})
        return {spec.name: answers[spec.name].shape for spec in self.outputs}

    def run(self, addresses: Mapping[str, int], inputs: Shapes) -> None:
        """Read the inputs where they lie, and write the outputs where they belong."""
        self.runs.append(inputs)
        feeds = {s.name: _view(addresses[s.name], inputs[s.name], s.dtype) for s in self.inputs}
        answers = self.infer(feeds)
        for spec in self.outputs:
            answer = answers[spec.name]
            assert answer.dtype == spec.dtype, spec
            _view(addresses[spec.name], answer.shape, spec.dtype)[...] = answer


def _view(address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
