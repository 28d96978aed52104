"""The weighted sum of all blocks, on the device, and what is read from it.

Blocks come in the order of their first slice, so slices that no later block sees are final: they
are read and their place is used again. That is how a volume is tiled along z here: the sum holds
``height`` slices, at least as many as a block. Every voxel still gets the same sums in the same
order, so the height changes no bit of the answer, and no block is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import InferenceError
from node.gpu.blocks import FLOAT, NULL, Batch, Cut, Tables, Tensor, Workspace, bits
from node.gpu.device import Argument, Block
from node.sight import Flip, Window
from node.tiling import Lengths

After = Literal["none", "sigmoid", "softmax"]
"""What makes probabilities of a sum that was blended of raw values."""

_ACTIVATIONS: dict[After, int] = {"none": 0, "sigmoid": 1, "softmax": 2}


@dataclass(frozen=True, slots=True)
class Labelling:
    """How labels are made of probabilities; the same rules as the mask steps of that name.

    Without ``values`` the most probable class decides (argmax); with them a class must reach its
    own (threshold). ``labels`` are the classes' labels, 0 to 255: empty counts from 0 for argmax
    and from 1 for threshold.
    """

    labels: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    certainty: bool = False
    """The probability behind each voxel's label is wanted too."""
    after: After = "none"
    """What makes probabilities of the blended volume, where ``Window.logits`` does not."""

    @property
    def bytes(self) -> int:
        """What a voxel needs on the device and on the bus."""
        return 1 + FLOAT * self.certainty

    def table(self, classes: int) -> NDArray[np.uint8]:
        """Every class's label. Raises InferenceError when the numbers differ."""
        first = 1 if self.values else 0
        labels = self.labels or tuple(range(first, first + classes))
        if len(labels) != classes or (self.values and len(self.values) != classes):
            raise InferenceError(
                f"the network gives {classes} channels and the mask step has "
                f"{len(labels)} labels and {len(self.values)} values; correct it in the engine's "
                f"manifest"
            )
        if max(labels) > 255:
            raise InferenceError(f"a label map holds labels up to 255, not {max(labels)}")
        return np.array(labels, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labels (k, j, i) uint8; ``certainty`` float32 beside them when it was asked for."""

    labels: NDArray[np.uint8]
    certainty: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """The sum as it lies on the device: (classes, height, j, i), slice z in place z % height."""

    cells: Block
    broken: Block
    """An int32 that becomes 1 where an output is not finite."""
    frame: Block
    size: Lengths
    classes: int
    height: int

    @classmethod
    def of(cls, room: Workspace, frame: Block, size: Lengths, classes: int, height: int) -> Sum:
        """A sum of nothing."""
        cells = room.allocate(classes * height * size[1] * size[2] * FLOAT)
        broken = room.allocate(FLOAT)
        room.device.clear(cells)
        room.device.clear(broken)
        return cls(cells, broken, frame, size, classes, height)

    @property
    def plane(self) -> int:
        """Voxels of a slice."""
        return self.size[1] * self.size[2]

    def runs(self, z: int, end: int) -> Iterator[tuple[int, int]]:
        """Slices z to end - 1 in parts that lie together."""
        while z < end:
            stop = min(end, z - z % self.height + self.height)
            yield z, stop
            z = stop


class Reader(Protocol):
    """Takes final slices from the device."""

    def read(self, room: Workspace, total: Sum, z: int, end: int) -> None:
        """Take slices z to end - 1 of the real volume."""


class Probabilities:
    """All classes' probabilities: weights add up to 1 already, so the sum is the mean."""

    def __init__(self, total: Sum) -> None:
        self.found = np.empty((total.classes, *total.size), np.float32)

    def read(self, room: Workspace, total: Sum, z: int, end: int) -> None:
        """Copy the slices of every class."""
        for start, stop in total.runs(z, end):
            for number, channel in enumerate(self.found):
                offset = (number * total.height + start % total.height) * total.plane * FLOAT
                room.device.download(channel[start:stop], total.cells, offset)


class LabelMap:
    """Labels made on the device; only they, one byte for each voxel, come back."""

    def __init__(self, room: Workspace, total: Sum, rule: Labelling) -> None:
        voxels = total.height * total.plane
        self._table = room.uploaded(rule.table(total.classes))
        self._labels = room.allocate(voxels)
        self._values: Argument = NULL
        self._certainty: Block | None = None
        self.found = Labelled(np.empty(total.size, np.uint8))
        if rule.values:
            self._values = room.uploaded(np.array(rule.values, np.float32))
        if rule.certainty:
            self._certainty = room.allocate(voxels * FLOAT)
            self.found = replace(self.found, certainty=np.empty(total.size, np.float32))

    def read(self, room: Workspace, total: Sum, z: int, end: int) -> None:
        """Label the slices and copy the labels."""
        room.launch(
            "label",
            (end - z) * total.plane,
            total.cells,
            self._labels,
            self._certainty or NULL,
            self._table,
            self._values,
            total.frame,
            total.classes,
            total.height,
            z,
            end - z,
        )
        room.device.download(self.found.labels[z:end], self._labels)
        if self._certainty and self.found.certainty is not None:
            room.device.download(self.found.certainty[z:end], self._certainty)


@dataclass(frozen=True, slots=True, eq=False)
class Activated:
    """Another reader's slices, after probabilities were made of them in their place."""

    reader: Reader
    after: After

    def read(self, room: Workspace, total: Sum, z: int, end: int) -> None:
        """Activate the slices and hand them on."""
        if self.after != "none":
            room.launch(
                "activate",
                (end - z) * total.plane,
                total.cells,
                total.frame,
                total.classes,
                _ACTIVATIONS[self.after],
                total.height,
                z,
                end - z,
            )
        self.reader.read(room, total, z, end)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Outputs of a network for a batch, and how they become probabilities."""

    tensor: Tensor
    activation: int
    """The kernels' number: 0 none, 1 sigmoid, 2 softmax over the classes."""
    last: bool
    """The classes are the tensor's last axis."""

    @classmethod
    def of(cls, tensor: Tensor, window: Window) -> Answer:
        """The network's own tensor."""
        after: After = ("softmax" if window.exclusive else "sigmoid") if window.logits else "none"
        return cls(tensor, _ACTIVATIONS[after], window.channels_last)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The mean of what the network says to blocks that are turned round, (n, classes, k, j, i)."""

    cells: Block
    turns: int
    voxels: int
    """Of a block."""

    def add(
        self, room: Workspace, answer: Answer, batch: Batch, turn: tuple[int, Flip], total: Sum
    ) -> None:
        """Add the answers to one turn, by its number and axes; turn number 0 begins anew."""
        room.launch(
            f"turn_{answer.tensor.dtype}",
            batch.count * self.voxels,
            answer.tensor.block,
            self.cells,
            total.broken,
            total.frame,
            batch.count,
            total.classes,
            answer.activation,
            int(answer.last),
            bits(turn[1]),
            turn[0],
            self.turns,
        )

    @property
    def answer(self) -> Answer:
        """The mean in place of the network's tensor."""
        return Answer(Tensor(self.cells, "float32"), 0, False)


class Canvas:
    """Sums blocks, and hands slices to a reader when they are final.

    ``blocks`` are those of the table of places: first the ones that the network computes, then
    ``air`` of them that are background.
    """

    def __init__(
        self, room: Workspace, cut: Cut, tables: Tables, total: Sum, reader: Reader
    ) -> None:
        self._room = room
        self._cut = cut
        self._tables = tables
        self._total = total
        self._reader = reader
        self._origins: list[Lengths] = []
        self._air = range(0)
        self._low = 0

    def expect(self, blocks: list[Lengths], air: int) -> None:
        """Say which blocks will come."""
        self._origins = [self._cut.tiling.origin(place) for place in blocks]
        self._air = range(len(blocks) - air, len(blocks))

    def add(self, answer: Answer, batch: Batch) -> None:
        """Add a batch by the blocks' importance, in order; batches come in order too."""
        numbers = range(batch.first, batch.first + batch.count)
        for start, group in groupby(numbers, lambda number: self._origins[number][0]):
            self._admit(start)
            self._blend(answer, list(group), batch.first)

    def finish(self) -> None:
        """Hand over the slices that are left."""
        self._hand_over(self._cut.size[0])

    def _blend(self, answer: Answer, blocks: list[int], first: int) -> None:
        j, i, rows, columns = self._box(blocks)
        self._room.launch(
            f"blend_{answer.tensor.dtype}",
            self._cut.tiling.block[0] * rows * columns,
            answer.tensor.block,
            self._total.cells,
            self._total.broken,
            *self._tables.weights,
            self._tables.frame,
            self._tables.places,
            blocks[0],
            len(blocks),
            blocks[0] - first,
            self._total.classes,
            answer.activation,
            int(answer.last),
            self._total.height,
            j,
            i,
            rows,
            columns,
        )

    def _admit(self, start: int) -> None:
        """Make room for blocks that begin at a filled slice; all slices before it are final."""
        first = start - self._cut.tiling.before[0]
        end = min(first + self._cut.tiling.block[0], self._cut.size[0])
        if end > self._low + self._total.height:
            self._hand_over(max(first, 0))

    def _hand_over(self, end: int) -> None:
        """All slices before this one; where air was skipped they may be more than the sum has."""
        while self._low < end:
            z, self._low = self._low, min(self._low + self._total.height, end)
            self._add_air(z, self._low)
            self._reader.read(self._room, self._total, z, self._low)
            if self._low < self._cut.size[0]:
                self._clear(z, self._low)

    def _clear(self, z: int, end: int) -> None:
        self._room.launch(
            "clear",
            self._total.classes * (end - z) * self._total.plane,
            self._total.cells,
            self._tables.frame,
            self._total.classes,
            self._total.height,
            z,
            end - z,
        )

    def _add_air(self, z: int, end: int) -> None:
        """Background, where air was skipped, into slices that have all of their other blocks."""
        before, depth = self._cut.tiling.before[0], self._cut.tiling.block[0]
        low, high = z + before, end + before
        seen = [n for n in self._air if low - depth < self._origins[n][0] < high]
        for _, group in groupby(seen, lambda number: self._origins[number][:2]):
            blocks = list(group)
            j, i, rows, columns = self._box(blocks)
            self._room.launch(
                "blend_air",
                (high - low) * rows * columns,
                self._total.cells,
                *self._tables.weights,
                self._tables.frame,
                self._tables.places,
                blocks[0],
                len(blocks),
                self._total.height,
                low,
                j,
                i,
                high - low,
                rows,
                columns,
            )

    def _box(self, blocks: list[int]) -> tuple[int, int, int, int]:
        """First row and column, then rows and columns, of a box that holds all of the blocks."""
        _, rows, columns = self._cut.tiling.block
        j, i = ([self._origins[number][axis] for number in blocks] for axis in (1, 2))
        return min(j), min(i), max(j) - min(j) + rows, max(i) - min(i) + columns
