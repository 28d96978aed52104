"""What a sweep has to do, and how large a portion of it lies on the device at once.

Sizes only, before anything is allocated: which tensors a batch needs, how many slices of the sum
fit beside them, and what to try when the device says that it is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import DeviceMemoryFull, InferenceError
from node.domain.tensor import TensorSpec
from node.gpu.blocks import FLOAT, Cut, native, refuse_unfit
from node.sight import Window
from node.tiling import Lengths

Shapes = Mapping[str, tuple[int, ...]]
"""Lengths of tensors by name, without -1."""

_ANSWERS = ("float32", "float16")
"""Number types of a network's output that the kernels blend."""
_PLACE = 24
"""Bytes of a block in the table of places."""
_MARK = 4
"""Bytes that tell whether a block is air."""


class DeviceNetwork(Protocol):
    """A network whose tensors lie on the device."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, -1 where a length is free."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, -1 where a length is free."""

    @property
    def smallest_batch(self) -> int:
        """The fewest blocks that one run takes; a shorter batch repeats its last block."""

    @property
    def max_batch(self) -> int:
        """The most blocks that one run takes (the profile's greatest batch)."""

    @property
    def scratch(self) -> int:
        """Bytes that a run may yet ask of the device, besides its tensors."""

    def shapes(self, inputs: Shapes) -> Shapes:
        """What every output's lengths are when the inputs have these. Raises InferenceError."""

    def run(self, addresses: Mapping[str, int], inputs: Shapes) -> None:
        """Queue one run on the device's stream: every tensor (input and output) by its address.

        Does not wait for it. Raises InferenceError, DeviceMemoryFull (scratch memory) or
        DeviceLost.
        """


@dataclass(frozen=True, slots=True)
class Portion:
    """How much lies on the device at once: blocks in a batch, slices of the sum."""

    batch: int
    slices: int


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A network to be swept over volumes.

    ``labels`` are the bytes that labels need for a voxel of the sum; 0 for probabilities.
    """

    network: DeviceNetwork
    volumes: Mapping[str, NDArray[Any]]
    cut: Cut
    output: str
    labels: int

    @classmethod
    def of(
        cls,
        network: DeviceNetwork,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        labels: int = 0,
    ) -> Task:
        """The task, with volumes as they can go up. Raises InferenceError when nothing fits."""
        names = {spec.name for spec in network.inputs}
        if names != volumes.keys():
            raise InferenceError(
                f"the network takes the tensors {sorted(names)}, it was given {sorted(volumes)}"
            )
        _refuse_output(network, output)
        size = _common_size(volumes)
        ready = {name: native(volume) for name, volume in volumes.items()}
        for spec in network.inputs:
            refuse_unfit(spec, ready[spec.name])
        return cls(network, ready, Cut.of(size, window), output, labels)

    @property
    def fixed(self) -> int:
        """Blocks that every run takes, no more and no less; 0: any number up to the most."""
        window = self.cut.window
        lengths = [spec.shape[0] for spec in self.network.inputs if spec.shape[0] > 0]
        return lengths[0] if lengths else window.batch * window.fixed_batch

    @property
    def least(self) -> int:
        """The fewest slices that the sum can have: those of a block."""
        return min(self.cut.tiling.block[0], self.cut.size[0])

    def inputs(self, batch: int) -> Shapes:
        """Lengths of the input tensors."""
        return {name: self.cut.fed(batch, len(one)) for name, one in self.volumes.items()}

    def outputs(self, batch: int) -> Shapes:
        """Lengths of the output tensors. Raises InferenceError when they are no answer."""
        shapes = self.network.shapes(self.inputs(batch))
        got = shapes[self.output]
        classes = got[-1 if self.cut.window.channels_last else 1] if len(got) > 1 else 0
        if classes < 1 or got != self.cut.answered(batch, classes):
            wanted = self.cut.answered(batch, -1)
            raise InferenceError(
                f"the output {self.output!r} has shape {got}; this window needs {wanted} with one "
                f"probability per class (-1) and voxel"
            )
        return shapes

    def classes(self, batch: int) -> int:
        """Classes that the network tells apart."""
        return prod(self.outputs(batch)[self.output]) // (batch * self.voxels)

    @property
    def voxels(self) -> int:
        """Of a block."""
        return prod(self.cut.tiling.block)

    def tensors(self, batch: int) -> dict[str, tuple[str, int]]:
        """Number type and bytes of every tensor of the network."""
        shapes = {**self.inputs(batch), **self.outputs(batch)}
        specs = (*self.network.inputs, *self.network.outputs)
        return {
            spec.name: (spec.dtype, prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize)
            for spec in specs
        }

    def bytes(self, portion: Portion) -> int:
        """What a portion needs on the device, the network's own memory not counted."""
        rows = self.cut.size[1] * self.cut.size[2]
        each = self.classes(portion.batch) * FLOAT + self.labels
        return self._beside(portion.batch) + portion.slices * rows * each

    def first(self, budget: int) -> Portion:
        """The greatest portion within so many bytes of the device: fewer slices cost little time,
        smaller batches more.

        Raises DeviceMemoryFull when the smallest portion needs more.
        """
        least = 0
        for batch in self._batches():
            none, one = self.bytes(Portion(batch, 0)), self.bytes(Portion(batch, 1))
            slices = min((budget - none) // (one - none), self.cut.size[0])
            if slices >= self.least:
                return Portion(batch, slices)
            least = self.bytes(Portion(batch, self.least))
        raise DeviceMemoryFull(
            f"the sliding window needs {least / 1e6:.0f} MB of the GPU's memory at least, and "
            f"{max(budget, 0) / 1e6:.0f} MB are free for it: free memory, or run the engine on "
            f"the CPU"
        )

    def fed(self, blocks: int) -> int:
        """Blocks that a run takes for so many."""
        return self.fixed or max(blocks, self.network.smallest_batch)

    def smaller(self, portion: Portion) -> Portion | None:
        """Half the batch, then half the slices; None when neither goes."""
        half = self.fed(portion.batch // 2)
        if half < portion.batch:
            return Portion(half, portion.slices)
        if portion.slices > self.least:
            return Portion(portion.batch, max(portion.slices // 2, self.least))
        return None

    def _batches(self) -> Iterator[int]:
        """From the greatest to the smallest."""
        batch = self.fed(min(self.cut.window.batch, self.network.max_batch, self._blocks))
        yield batch
        while (half := self.fed(batch // 2)) < batch:
            yield half
            batch = half

    @property
    def _blocks(self) -> int:
        return prod(len(starts) for starts in self.cut.tiling.starts)

    def _beside(self, batch: int) -> int:
        """Bytes of everything but the sum and its labels."""
        raised, filled = self.cut.raised, prod(self.cut.tiling.shape)
        weights = 0 if raised is None else raised.nbytes + filled * FLOAT
        turned = len(self.cut.window.flips) > 1
        mean = self.classes(batch) * batch * self.voxels * FLOAT if turned else 0
        return (
            sum(volume.nbytes for volume in self.volumes.values())
            + sum(size for _, size in self.tensors(batch).values())
            + weights
            + (_PLACE + _MARK * self.cut.window.skip_air) * self._blocks
            + mean
        )


def _refuse_output(network: DeviceNetwork, output: str) -> None:
    specs = {spec.name: spec for spec in network.outputs}
    if output not in specs:
        raise InferenceError(f"the network has no output {output!r}; it has {sorted(specs)}")
    if specs[output].dtype not in _ANSWERS:
        raise InferenceError(
            f"the network's output is {specs[output]}; the GPU blends {' and '.join(_ANSWERS)}: "
            f"export the network with such an output, or run the engine on the CPU"
        )


def _common_size(volumes: Mapping[str, NDArray[Any]]) -> Lengths:
    shapes = {name: volume.shape for name, volume in volumes.items()}
    sizes = {shape[1:] for shape in shapes.values()}
    if len(sizes) != 1 or any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise InferenceError(
            f"a sweep needs volumes (channels, k, j, i) on one grid, and got {shapes}"
        )
    k, j, i = sizes.pop()
    return (k, j, i)
