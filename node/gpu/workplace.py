"""What the networks on one device share in a process: context, stream, runtime, scratch memory.

The primary context of a device exists once in a process and is current in one thread, so this too
exists once: ``enter`` opens the device for the first network, ``leave`` after the last gives it
back.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from pathlib import Path
from typing import Any

from node.domain.errors import NodeError, RuntimeUnavailable
from node.gpu import kernels
from node.gpu.cuda import open_device
from node.gpu.device import Device, Kernels
from node.gpu.libraries import Library
from node.gpu.plan import Plan, Scratch


class Workplace:
    """A device at work. Belongs to the thread that entered it first."""

    def __init__(self, library: Library, device: Device) -> None:
        self.library = library
        self.device = device
        self.scratch = Scratch(device)
        self.networks = 0
        """How many hold it."""
        self._kernels: Kernels | None = None
        with library.calls("starting the runtime"):
            self._runtime: Any = library.api.Runtime(library.logger)

    def plan(self, content: bytes) -> Plan:
        """Load a plan. Raises InferenceError when it is not one for this library and device."""
        return Plan(self.library, self.device, self._runtime, content).sharing(self.scratch)

    def kernels(self, cache: Path | None = None) -> Kernels:
        """The kernels of the sliding window, compiled for the device the first time.

        ``cache`` is a folder where what is compiled is kept. Raises RuntimeUnavailable without
        NVRTC, and InferenceError.
        """
        if self._kernels is None:
            image = kernels.image(self.device.card.architecture, cache)
            self._kernels = self.device.kernels(image)
        return self._kernels

    def close(self) -> None:
        """Give the device back, in the order that the libraries demand."""
        try:
            self._kernels = None
            self._runtime = None
            self.scratch.free()
        finally:
            self.device.close()


def enter(library: Library, index: int) -> Workplace:
    """The workplace on a device, opened if nobody has it yet; ``leave`` it when done.

    Raises RuntimeUnavailable without driver or device, and for a second device in one process:
    a thread has one context at a time. InferenceError from another thread than the one that has it.
    """
    key = library.flavour, index
    refuse_second(index, {opened for _, opened in _open()})
    if key not in _open():
        device = open_device(index)
        try:
            _open()[key] = Workplace(library, device)
        except NodeError:
            device.close()
            raise
    place = _open()[key]
    place.device.memory()  # refuses another thread
    place.networks += 1
    return place


def refuse_second(index: int, opened: Set[int]) -> None:
    """Raise RuntimeUnavailable when a process has another device open than this one."""
    if opened - {index}:
        raise RuntimeUnavailable(
            f"this worker computes on GPU {min(opened)} already, and one worker serves one GPU: "
            f"give all of its engines the same device, and GPU {index} a worker of its own "
            f"(CUDA_VISIBLE_DEVICES)"
        )


def leave(place: Workplace) -> None:
    """A network does not need it any more; the last one closes it."""
    place.networks -= 1
    if place.networks > 0:
        return
    for key, one in tuple(_open().items()):
        if one is place:
            del _open()[key]
    place.close()


@cache
def _open() -> dict[tuple[str, int], Workplace]:
    """The workplaces of this process."""
    return {}
