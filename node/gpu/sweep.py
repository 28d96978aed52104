"""The sliding window on the device: the volume goes up once, labels or probabilities come back.

The meaning is that of ``node.windows.predict``, and so is the order of every sum: without an
activation the probabilities are the same bits, with one they differ by the device's ``exp``.
Nothing else crosses the bus: blocks are cut, blended and labelled where the network runs.

Where memory runs out the batch is halved, then the slices of the sum (``canvas.py``), and the
sweep begins again; neither changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from node.domain.errors import DeviceMemoryFull, InferenceError
from node.gpu.blocks import FLOAT, Batch, Source, Tables, Tensor, Workspace, parted
from node.gpu.canvas import (
    Activated,
    After,
    Answer,
    Canvas,
    Labelled,
    Labelling,
    LabelMap,
    Mean,
    Probabilities,
    Reader,
    Sum,
)
from node.gpu.device import Device, Kernels
from node.gpu.task import DeviceNetwork as DeviceNetwork
from node.gpu.task import Portion as Portion
from node.gpu.task import Shapes as Shapes
from node.gpu.task import Task
from node.sight import Window
from node.tiling import Lengths
from node.windows import Progress

Told = Callable[[Portion, Portion, str], None]
"""Called with what did not fit, what is tried next, and the device's reason."""

_REPORTS = 100
"""The device is waited for, and progress told, about so many times in a sweep."""
_MARGIN = 0.9
"""Share of the free memory that a sweep takes when it has no budget."""
_LOG = structlog.get_logger()

_Reader = TypeVar("_Reader", bound=Reader)


def log_retreat(before: Portion, after: Portion, reason: str) -> None:
    """Write a warning: the ordinary way of telling that a sweep had to be made smaller."""
    _LOG.warning(
        "sweep does not fit on the device and is made smaller",
        batch=f"{before.batch} -> {after.batch}",
        slices=f"{before.slices} -> {after.slices}",
        reason=reason,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """A network and the device on which it is swept over volumes.

    ``kernels`` are those of ``kernels.cu``. ``budget`` is the device memory in bytes that volumes,
    tensors and the sum may take (not the network's own); None: nine tenths of what is free, less
    what the network may yet ask for.
    """

    device: Device
    kernels: Kernels
    network: DeviceNetwork
    budget: int | None = None
    told: Told = log_retreat

    def probability(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: After = "none",
    ) -> NDArray[np.float32]:
        """The network's output over whole volumes: float32 (classes, k, j, i).

        ``volumes`` are the inputs by tensor name, (c, k, j, i) on one grid, in any number type of
        ``blocks.SOURCES``; they become the type that the network wants on the device. ``progress``
        is told about a hundred times, when the device has come so far. ``after`` is done to the
        blended volume before it comes down. Raises InferenceError as
        ``windows.predict`` does, DeviceMemoryFull when the smallest portion does not fit, and
        DeviceLost.
        """
        task = Task.of(self.network, volumes, window, output)
        return self._swept(task, lambda _, total: Probabilities(total), after, progress).found

    def labels(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        rule: Labelling,
        progress: Progress | None = None,
    ) -> Labelled:
        """Labels (k, j, i) uint8 by a rule, made of the same probabilities on the device.

        Raises what ``probability`` raises, and InferenceError when the rule does not fit the
        number of classes.
        """
        task = Task.of(self.network, volumes, window, output, rule.bytes)
        made = self._swept(
            task, lambda room, total: LabelMap(room, total, rule), rule.after, progress
        )
        return made.found

    def _swept(
        self,
        task: Task,
        reading: Callable[[Workspace, Sum], _Reader],
        after: After,
        progress: Progress | None,
    ) -> _Reader:
        portion = task.first(self._room() if self.budget is None else self.budget)
        while True:
            try:
                with Workspace(self.device, self.kernels) as room:
                    run = _Run(room, task, portion)
                    reader = reading(room, run.total)
                    run.sweep(Activated(reader, after), progress)
                    return reader
            except DeviceMemoryFull as error:
                smaller = task.smaller(portion)
                if smaller is None:
                    raise
                self.told(portion, smaller, str(error))
                portion = smaller

    def _room(self) -> int:
        """What may be taken when nobody says how much."""
        return int(self.device.memory()[0] * _MARGIN) - self.network.scratch


class _Run:
    """One attempt at a task: all of its memory, and the way through the blocks."""

    def __init__(self, room: Workspace, task: Task, portion: Portion) -> None:
        self._room = room
        self._task = task
        self._portion = portion
        cut = task.cut
        self._sources = {
            spec.name: Source(room, task.volumes[spec.name], cut, spec.dtype)
            for spec in task.network.inputs
        }
        self._places = cut.tiling.places()
        self._tables = Tables.of(room, cut, self._places)
        self._air: list[Lengths] = []
        if cut.window.skip_air:
            self._part()
        self._tensors = {
            name: Tensor(room.allocate(size), dtype)
            for name, (dtype, size) in task.tensors(portion.batch).items()
        }
        classes = task.classes(portion.batch)
        self._flips = cut.window.flips
        self._mean: Mean | None = None
        if len(self._flips) > 1:
            cells = room.allocate(classes * portion.batch * task.voxels * FLOAT)
            self._mean = Mean(cells, len(self._flips), task.voxels)
        self.total = Sum.of(room, self._tables.frame, cut.size, classes, portion.slices)

    def sweep(self, reader: Reader, progress: Progress | None) -> None:
        """Every block, and the slices to the reader."""
        canvas = Canvas(self._room, self._task.cut, self._tables, self.total, reader)
        background = self._air if self._task.cut.window.exclusive else []
        canvas.expect([*self._places, *background], len(background))
        reports = _Reports(progress, len(self._places) * len(self._flips), self._portion.batch)
        for batch in self._batches():
            canvas.add(self._answer(batch, reports), batch)
        canvas.finish()
        self._wait()
        reports.finish()

    def _part(self) -> None:
        """Leave out blocks of air, and move them to the end of the table."""
        sources = tuple(self._sources.values())
        self._places, self._air = parted(self._room, sources, self._tables, self._places)
        self._tables.reordered(self._room, self._task.cut, [*self._places, *self._air])

    def _batches(self) -> list[Batch]:
        size, count = self._portion.batch, len(self._places)
        lengths = [(start, min(size, count - start)) for start in range(0, count, size)]
        return [Batch(start, n, self._task.fed(n)) for start, n in lengths]

    def _answer(self, batch: Batch, reports: _Reports) -> Answer:
        """The network's answer to a batch: as it is, or the mean over all turns."""
        answer = Answer.of(self._tensors[self._task.output], self._task.cut.window)
        for number, flip in enumerate(self._flips):
            for name, source in self._sources.items():
                source.gather(self._room, self._tables, batch, flip, self._tensors[name])
            addresses = {name: tensor.block.address for name, tensor in self._tensors.items()}
            self._task.network.run(addresses, self._task.inputs(batch.fed))
            if self._mean:
                self._mean.add(self._room, answer, batch, (number, flip), self.total)
            if reports.due(batch.count):
                self._wait()
                reports.tell()
        return self._mean.answer if self._mean else answer

    def _wait(self) -> None:
        """Wait for the device. Raises InferenceError when an output was not finite."""
        broken = np.zeros(1, np.int32)
        self._room.device.download(broken, self.total.broken)
        self._room.device.synchronise()
        if broken[0]:
            raise InferenceError(f"the output {self._task.output!r} holds NaN or infinite values")


class _Reports:
    """Counts blocks and tells of them now and then: telling means waiting for the device."""

    def __init__(self, progress: Progress | None, total: int, batch: int) -> None:
        self._progress = progress
        self._total = total
        self._step = max(total // _REPORTS, batch)
        self._done = 0
        self._told = 0

    def due(self, blocks: int) -> bool:
        """Count blocks; whether it is time to tell, the end excepted."""
        self._done += blocks
        return self._told + self._step <= self._done < self._total

    def tell(self) -> None:
        """Tell of what is done."""
        self._told = self._done
        if self._progress:
            self._progress(self._done, self._total)

    def finish(self) -> None:
        """Tell that all is done."""
        self.tell()
