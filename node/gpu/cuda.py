"""The device by pycuda: its primary context, one stream, and its errors in our words.

The only module that touches pycuda, and pycuda's driver module is imported on opening a device:
importing it needs libcuda.so.1, which comes with NVIDIA's driver. Never ``pycuda.autoinit``: it
makes a second context in which nothing of TensorRT works.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import DTypeLike, NDArray

from node.domain.errors import DeviceLost, DeviceMemoryFull, InferenceError, RuntimeUnavailable
from node.gpu.device import (
    Argument,
    Block,
    Card,
    Device,
    Kernels,
    Mark,
    Shape3,
    number_as_the_driver,
)

_log = structlog.get_logger()

_NON_BLOCKING = 1
"""CUDA's stream flag: the stream does not wait for whatever runs on stream 0."""

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def open_device(index: int = 0) -> Device:
    """A GPU by its number (as nvidia-smi counts), for the calling thread.

    Raises RuntimeUnavailable when pycuda, the driver or the device is missing; one sentence says
    which, and what brings it.
    """
    cuda = _pycuda()
    number_as_the_driver()
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise RuntimeUnavailable(
            f"no usable NVIDIA driver or GPU ({error}): install NVIDIA's driver 580 or newer and "
            f"check with nvidia-smi that it sees the card"
        ) from error
    if not 0 <= index < count:
        raise RuntimeUnavailable(
            f"there is no GPU number {index}: the driver shows {count}, counted from 0; correct "
            f"device in the engine's runtime table"
        )
    return CudaDevice(cuda, index)


def _pycuda() -> Any:
    """pycuda's driver module, which needs libcuda.so.1 at import."""
    try:
        from pycuda import driver
    except ImportError as error:
        if "libcuda" in str(error):
            raise RuntimeUnavailable(
                "libcuda.so.1 is missing: it comes with NVIDIA's driver (580 or newer), not with "
                "any Python package"
            ) from error
        raise RuntimeUnavailable(
            f"pycuda cannot be used ({error}): it comes with the extra dicom-ai-node[tensorrt] "
            f"and is compiled on installing, which needs g++ and the CUDA toolkit"
        ) from error
    return driver


class CudaDevice:
    """A Device by pycuda; made by ``open_device``."""

    def __init__(self, cuda: Any, index: int) -> None:
        self._cuda = cuda
        self._owner = threading.get_ident()
        self._blocks: set[_CudaBlock] = set()
        self._closed = False
        self._context: Any = None
        with self.calls("opening the device"):
            device = cuda.Device(index)
            self._card = _card(cuda, device, index)
            self._context = _primary(cuda, index)
            self._context.push()
        try:
            with self.calls("making a stream"):
                self._stream = cuda.Stream(flags=_NON_BLOCKING)
        except InferenceError:
            self._leave()
            raise
        # pycuda aborts a process that ends with a context on a thread's stack.
        atexit.register(self._end)

    @property
    def card(self) -> Card:
        """What the device is."""
        return self._card

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        with self.calls("asking for the stream"):
            return int(self._stream.handle)

    @property
    def queue(self) -> Any:
        """pycuda's stream. Nobody else keeps it: it has to end before the context."""
        return self._stream

    @property
    def used(self) -> int:
        """Bytes of all blocks that were handed out and not freed."""
        return sum(block.size for block in self._blocks)

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total) on the device."""
        with self.calls("asking for free memory"):
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> Block:
        """Memory of the device."""
        with self.calls(f"allocating {size} bytes"):
            block = _CudaBlock(self, self._cuda.mem_alloc(max(size, 1)), size)
        self._blocks.add(block)
        return block

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked array of the host."""
        with self.calls(f"locking host memory for {tuple(shape)}"):
            array: NDArray[Any] = self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))
        return array

    def upload(self, block: Block, array: NDArray[Any], offset: int = 0) -> None:
        """Host to device."""
        _refuse_overrun(block, array, offset)
        with self.calls("copying to the device"):
            self._cuda.memcpy_htod_async(block.address + offset, array, self._stream)

    def download(self, array: NDArray[Any], block: Block, offset: int = 0) -> None:
        """Device to host."""
        _refuse_overrun(block, array, offset)
        with self.calls("copying from the device"):
            self._cuda.memcpy_dtoh_async(array, block.address + offset, self._stream)

    def clear(self, block: Block) -> None:
        """Zeros."""
        with self.calls("clearing memory"):
            self._cuda.memset_d8_async(block.address, 0, block.size, self._stream)

    def kernels(self, image: bytes) -> Kernels:
        """Load compiled kernels."""
        with self.calls("loading kernels"):
            return _CudaKernels(self, self._cuda.module_from_buffer(image))

    def mark(self) -> Mark:
        """A point in the stream."""
        with self.calls("marking the stream"):
            event = self._cuda.Event()
            event.record(self._stream)
            return _CudaMark(self, event)

    def synchronise(self) -> None:
        """Wait for the stream."""
        with self.calls("waiting for the device"):
            self._stream.synchronize()

    def close(self) -> None:
        """Free what is left and give the context back; closing twice is no error."""
        if self._closed:
            return
        try:
            for block in tuple(self._blocks):
                block.free()
        finally:
            self._closed = True
            self._stream = None
            self._leave()
            atexit.unregister(self._end)

    def forget(self, block: _CudaBlock) -> None:
        """A block was freed."""
        self._blocks.discard(block)

    @contextmanager
    def calls(self, doing: str) -> Iterator[None]:
        """Whatever CUDA refuses inside becomes one of our errors."""
        if threading.get_ident() != self._owner:
            raise InferenceError(
                f"{doing}: the GPU belongs to the thread that opened it; use it from there only"
            )
        if self._closed:
            raise InferenceError(f"{doing}: the GPU was given back; open it again")
        try:
            yield
        except self._cuda.MemoryError as error:
            raise DeviceMemoryFull(f"{doing}: {error}") from error
        except self._cuda.Error as error:
            if self._lost():
                raise DeviceLost(
                    f"{doing}: {error}: the GPU cannot be used any more in this process, which "
                    f"has to be started again"
                ) from error
            raise InferenceError(f"{doing}: {error}") from error

    def _lost(self) -> bool:
        """Whether the context is beyond repair: then every call fails, this one too."""
        if self._context is None:
            return False
        try:
            self._cuda.Context.synchronize()
        except self._cuda.Error:
            return True
        return False

    def _leave(self) -> None:
        """Take the context from the thread's stack; the right to it is kept."""
        self._context = None
        try:
            self._cuda.Context.pop()
        except self._cuda.Error as error:
            _log.warning("the GPU's context could not be given back", reason=str(error))

    def _end(self) -> None:
        """The process ends, and nobody has closed the device."""
        if threading.get_ident() == self._owner:
            try:
                self.close()
            except InferenceError as error:
                _log.warning("the GPU could not be given back", reason=str(error))


class _CudaBlock:
    """Memory of a device."""

    def __init__(self, device: CudaDevice, allocation: Any, size: int) -> None:
        self._device = device
        self._allocation = allocation
        self._size = size

    @property
    def address(self) -> int:
        """Its address on the device."""
        if self._allocation is None:
            raise InferenceError("a block of the GPU's memory is used after it was freed")
        return int(self._allocation)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def free(self) -> None:
        """Give it back."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            self._device.forget(self)
            with self._device.calls("freeing memory"):
                allocation.free()


class _CudaKernels:
    """A loaded module of kernels."""

    def __init__(self, device: CudaDevice, module: Any) -> None:
        self._device = device
        self._module = module
        self._functions: dict[tuple[str, str], Any] = {}

    def launch(self, name: str, grid: Shape3, threads: Shape3, *arguments: Argument) -> None:
        """Put a kernel into the stream."""
        numbers = [_number(argument) for argument in arguments]
        layout = "".join(number.dtype.char for number in numbers)
        with self._device.calls(f"kernel {name}"):
            function = self._function(name, layout)
            function.prepared_async_call(grid, threads, self._device.queue, *numbers)

    def _function(self, name: str, layout: str) -> Any:
        """The kernel, prepared for arguments of these types.

        Prepared because pycuda's plain call may keep packed arguments for numbers that are equal
        and of different types.
        """
        if (name, layout) not in self._functions:
            function = self._module.get_function(name)
            function.prepare(layout)
            self._functions[name, layout] = function
        return self._functions[name, layout]


class _CudaMark:
    """A point in the stream."""

    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device = device
        self._event = event

    def milliseconds_since(self, earlier: Mark) -> float:
        """Device time between two marks."""
        if not isinstance(earlier, _CudaMark):
            raise TypeError("marks are compared with marks of the same device")
        with self._device.calls("waiting for a mark"):
            self._event.synchronize()
            return float(self._event.time_since(earlier._event))


def _number(argument: Argument) -> np.number[Any]:
    return argument if isinstance(argument, np.number) else np.uintp(argument.address)


def _refuse_overrun(block: Block, array: NDArray[Any], offset: int) -> None:
    """A copy beyond a block would silently change another's memory."""
    if not array.flags.c_contiguous:
        raise ValueError("an array that is copied to or from the GPU must be C-contiguous")
    if offset < 0 or offset + array.nbytes > block.size:
        raise ValueError(
            f"{array.nbytes} bytes at {offset} do not lie in a block of {block.size} bytes"
        )


@cache
def _primary(cuda: Any, index: int) -> Any:
    """The device's primary context, retained once and until the process ends.

    pycuda puts a context that it gives up on CUDA's stack again and leaves it there; one that was
    destroyed meanwhile would stay current in this thread.
    """
    context = cuda.Device(index).retain_primary_context()

    def end() -> None:
        with suppress(cuda.Error):
            context.detach()

    atexit.register(end)
    return context


def _card(cuda: Any, device: Any, index: int) -> Card:
    major, minor = device.compute_capability()
    version = cuda.get_driver_version()
    works = f"CUDA {version // 1000}.{version % 1000 // 10}"
    module = kernel_driver()
    return Card(
        index=index,
        name=str(device.name()),
        capability=(int(major), int(minor)),
        driver=f"{module} ({works})" if module else works,
        memory=int(device.total_memory()),
    )


def kernel_driver(path: Path = _KERNEL_MODULE) -> str:
    """The version of the driver's kernel module, "580.159.04"; empty when it is not told."""
    try:
        words = path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "")
