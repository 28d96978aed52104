"""A GPU as the rest of this folder sees it: about ten functions; pycuda stands behind them.

Everything that touches the device goes through ``Device``: memory, copies, kernels, one stream.
What a sliding window (``sweep.py``, ``kernels.py``) and a plan (``plan.py``) may count on:

======================================  ===========================================================
``cuda.open_device(index)``             a Device; the calling thread owns it until ``close``
``device.card``                         index, name, compute capability, driver, total bytes
``device.stream``                       the handle (int) of the one stream on which everything runs
``device.memory()``                     (free, total) bytes of the device now, other processes too
``device.used``                         bytes of the blocks that this Device has handed out
``device.allocate(size)``               a Block: ``.address`` (int), ``.size``, ``.free()``
``device.pinned(shape, dtype)``         a page-locked array of the host; drop it before ``close``
``device.upload(block, array, offset)``  host to device, in the stream
``device.download(array, block, ...)``  device to host, in the stream
``device.clear(block)``                 zeros, in the stream
``device.kernels(image)``               Kernels of a cubin or PTX: ``.launch(name, grid, threads,
                                        *arguments)``, in the stream
``device.mark()``                       a point in the stream: ``.milliseconds_since(earlier)``
``device.synchronise()``                waits for the stream
``device.close()``                      frees what is left; the thread does not own it any more
======================================  ===========================================================

Rules that hold: one thread (the one that opened it); everything in the order in which it was
asked for, on one stream that is never stream 0; an array given to ``upload`` or ``download`` must
live, and must not be read or changed, until ``synchronise``. Errors are InferenceError, or

- DeviceMemoryFull: no memory for this block; what was there before is untouched,
- DeviceLost: the context is beyond repair (an illegal address, a failed launch: CUDA's "sticky"
  errors 700, 719, ...). Every later call fails too; the process has to end.

The context is the device's primary one, because TensorRT's CUDA runtime uses that one; a context
of our own would make its calls fail with error 400.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Shape3 = tuple[int, int, int]
"""Blocks or threads along x, y, z."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a device is. ``capability`` is CUDA's compute capability, ``memory`` is in bytes."""

    index: int
    name: str
    capability: tuple[int, int]
    driver: str
    """The driver and the CUDA version up to which it works, "580.159.04 (CUDA 13.0)"."""
    memory: int

    @property
    def architecture(self) -> str:
        """As NVRTC and nvcc name it, "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


class Block(Protocol):
    """Memory of a device."""

    @property
    def address(self) -> int:
        """Its address on the device; address + n is its nth byte."""

    @property
    def size(self) -> int:
        """Bytes."""

    def free(self) -> None:
        """Give it back, once what uses it has run (``synchronise``); twice is no error."""


class Kernels(Protocol):
    """A loaded module of kernels."""

    def launch(self, name: str, grid: Shape3, threads: Shape3, *arguments: Argument) -> None:
        """Put a kernel into the stream: ``grid`` blocks of ``threads``.

        Raises InferenceError when there is no kernel of that name or it cannot be launched.
        """


class Mark(Protocol):
    """A point in the stream."""

    def milliseconds_since(self, earlier: Mark) -> float:
        """Device time between two marks; waits until this one has been reached."""


Argument = np.number[Any] | Block
"""Of a kernel: a number of the very width that the kernel declares (np.int32, np.float32,
np.uintp for an address inside a block), or a block for a pointer to its first byte."""


class Device(Protocol):
    """One GPU and one stream on it. Belongs to the thread that opened it."""

    @property
    def card(self) -> Card:
        """What the device is."""

    @property
    def stream(self) -> int:
        """The handle of the stream, as TensorRT takes it."""

    @property
    def used(self) -> int:
        """Bytes of all blocks that were handed out and not freed."""

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total) on the device, all processes counted."""

    def allocate(self, size: int) -> Block:
        """Memory of ``size`` bytes, not cleared. Raises DeviceMemoryFull."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked array, not cleared: copies to and from it need no detour.

        Locking pages is slow: allocate once, use often. Raises DeviceMemoryFull when the host
        has no such memory.
        """

    def upload(self, block: Block, array: NDArray[Any], offset: int = 0) -> None:
        """Copy a C-contiguous array into a block, ``offset`` bytes from its beginning."""

    def download(self, array: NDArray[Any], block: Block, offset: int = 0) -> None:
        """Fill a C-contiguous array from a block, ``offset`` bytes from its beginning."""

    def clear(self, block: Block) -> None:
        """Fill a block with zero bytes."""

    def kernels(self, image: bytes) -> Kernels:
        """Load compiled kernels: a cubin for this architecture, or PTX."""

    def mark(self) -> Mark:
        """A point in the stream after everything asked for so far."""

    def synchronise(self) -> None:
        """Wait for the stream. Raises DeviceLost when what ran in it broke the context."""

    def close(self) -> None:
        """Free all blocks and leave the device. Plans must be closed before.

        The device's context stays until the process ends, as it does for TensorRT's own sake.
        """


def number_as_the_driver() -> None:
    """Have CUDA number the devices by their slots, as nvidia-smi does, and not by their speed.

    It counts once, when it is first asked in a process.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
