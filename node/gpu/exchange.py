"""Arrays of the host through a plan: up, run, down, by page-locked buffers that are made once."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import InferenceError
from node.domain.tensor import Tensors, TensorSpec
from node.gpu.device import Block, Device
from node.gpu.task import DeviceNetwork


@dataclass(frozen=True, slots=True)
class _Pair:
    """Memory for one tensor on both sides."""

    host: NDArray[np.uint8]
    block: Block


class Exchange:
    """The buffers of one network; a longer tensor than any before makes its buffers anew."""

    def __init__(self, device: Device, network: DeviceNetwork) -> None:
        self._device = device
        self._network = network
        self._pairs: dict[str, _Pair] = {}

    @property
    def size(self) -> int:
        """Bytes on the device; as many are locked on the host."""
        return sum(pair.block.size for pair in self._pairs.values())

    def infer(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name; a batch larger than the network's is computed in parts.

        The feeds are what the network takes (``refuse_other`` was asked). Raises InferenceError,
        DeviceMemoryFull or DeviceLost.
        """
        batch = _batch(self._network.inputs, feeds)
        if batch is None:
            return self._once(feeds)
        size = self._network.max_batch
        parts = [
            self._part(feeds, first, min(first + size, batch)) for first in range(0, batch, size)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Give the buffers back, when nothing runs any more."""
        pairs, self._pairs = self._pairs, {}
        for pair in pairs.values():
            pair.block.free()

    def _part(self, feeds: Tensors, first: int, end: int) -> dict[str, NDArray[Any]]:
        """A part of a batch, filled up with its last block where the network wants more."""
        short = max(self._network.smallest_batch - (end - first), 0)
        if not short:
            return self._once({name: array[first:end] for name, array in feeds.items()})
        rows = [*range(first, end), *[end - 1] * short]
        found = self._once({name: array[rows] for name, array in feeds.items()})
        return {name: array[: end - first] for name, array in found.items()}

    def _once(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """One run: up, compute, down."""
        shapes = {name: array.shape for name, array in feeds.items()}
        results = self._network.shapes(shapes)
        given = {spec.name: self._view(spec, shapes[spec.name]) for spec in self._network.inputs}
        taken = {spec.name: self._view(spec, results[spec.name]) for spec in self._network.outputs}
        for name, view in given.items():
            np.copyto(view, feeds[name])
            self._device.upload(self._pairs[name].block, view)
        addresses = {name: pair.block.address for name, pair in self._pairs.items()}
        self._network.run(addresses, shapes)
        for name, view in taken.items():
            self._device.download(view, self._pairs[name].block)
        self._device.synchronise()
        return {name: view.copy() for name, view in taken.items()}

    def _view(self, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
        """The host's buffer as an array of this shape."""
        size = prod(shape) * np.dtype(spec.dtype).itemsize
        pair = self._pairs.get(spec.name)
        if pair is None or pair.block.size < size:
            pair = self._renewed(spec.name, size)
        return pair.host[:size].view(spec.dtype).reshape(shape)

    def _renewed(self, name: str, size: int) -> _Pair:
        before = self._pairs.pop(name, None)
        if before is not None:
            self._device.synchronise()
            before.block.free()
        block = self._device.allocate(size)
        try:
            host = self._device.pinned((size,), np.uint8)
        except BaseException:
            block.free()
            raise
        self._pairs[name] = _Pair(host, block)
        return self._pairs[name]


def _batch(inputs: tuple[TensorSpec, ...], feeds: Tensors) -> int | None:
    """The batch, where every input's first axis is free; None where the network fixes it."""
    if not all(spec.shape and spec.shape[0] < 0 for spec in inputs):
        return None
    lengths = {len(feeds[spec.name]) for spec in inputs}
    if len(lengths) != 1 or not min(lengths):
        raise InferenceError(f"the inputs differ in their batch, or it is empty: {sorted(lengths)}")
    return lengths.pop()
