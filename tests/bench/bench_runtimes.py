"""ONNX Runtime beside OpenVINO: ``python -m tests.bench.bench_runtimes [rounds]``.

On the engine that the node ships, with its batch of 8 stacks of 128 x 128, and on a 3-D U-Net in
the manner of MONAI (3 levels, instance norm, two convolutions a level, 1.4 million weights) with a
block of 96 x 96 x 96. The runtimes take turns after one round that warms up. Printed are
milliseconds of a batch: the median and, in brackets, the quickest and the slowest; the ratio of the
medians and of the quickest, above 1 where OpenVINO is faster; and the largest difference as a share
of the largest value. A precision that the processor lacks is left out with its reason.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from node.domain.errors import RuntimeUnavailable
from node.runtimes import Runtime, Session
from node.runtimes.onnx import Onnx
from node.runtimes.openvino import OpenVino
from tests.places import ROOT
from tests.runtimes.networks import FLOAT, Tensors, kernel, model

ROUNDS = 15
SIDE = 96
WIDTHS = (32, 64, 128)
RIVALS: Mapping[str, Runtime] = {
    "onnx fp32": Onnx(),
    "openvino fp32": OpenVino(),
    "openvino bf16": OpenVino(precision="bf16"),
}


@dataclass
class Drawing:
    """The nodes and weights of a network that is being drawn."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, kind: str, sources: list[str], **options: Any) -> str:
        """A node with one output, whose name it gives."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, sources, [name], **options))
        return name

    def weight(self, array: NDArray[np.float32]) -> str:
        """The name of some weights."""
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def unit(self, source: str, wide: int, narrow: int, stride: int = 1) -> str:
        """Convolution, instance norm, leaky rectifier; ``narrow`` channels in, ``wide`` out."""
        weight = self.weight(kernel(wide, narrow, 3, 3, 3))
        made = self.add("Conv", [source, weight], pads=[1] * 6, strides=[stride] * 3)
        scale = self.weight(np.ones(wide, np.float32))
        shift = self.weight(np.zeros(wide, np.float32))
        made = self.add("InstanceNormalization", [made, scale, shift])
        return self.add("LeakyRelu", [made], alpha=0.01)


def unet(path: Path) -> Path:
    """A 3-D U-Net with two classes, saved."""
    drawing, tensor, narrow = Drawing(), "image", 1
    skips: list[tuple[str, int]] = []
    for level, wide in enumerate(WIDTHS):
        tensor = drawing.unit(tensor, wide, narrow, stride=2 if level else 1)
        tensor = drawing.unit(tensor, wide, wide)
        skips.append((tensor, wide))
        narrow = wide
    for skip, wide in reversed(skips[:-1]):
        weight = drawing.weight(kernel(narrow, wide, 2, 2, 2))
        up = drawing.add("ConvTranspose", [tensor, weight], strides=[2] * 3)
        both = drawing.add("Concat", [skip, up], axis=1)
        tensor = drawing.unit(drawing.unit(both, wide, 2 * wide), wide, wide)
        narrow = wide
    logits = drawing.add("Conv", [tensor, drawing.weight(kernel(2, narrow, 1, 1, 1))])
    drawing.nodes.append(helper.make_node("Softmax", [logits], ["probability"], axis=1))
    shape = [1, 1, SIDE, SIDE, SIDE]
    outputs: Tensors = {"probability": (FLOAT, [1, 2, SIDE, SIDE, SIDE])}
    return model(path, drawing.nodes, {"image": (FLOAT, shape)}, outputs, drawing.weights)


def rounds(sessions: Mapping[str, Session], feed: NDArray[np.float32], count: int) -> Timings:
    """Seconds by runtime, and what each gave; they take turns, so that a busy machine hits all."""
    timings = Timings({name: [] for name in sessions}, {})
    for number in range(count + 1):
        for name, session in sessions.items():
            begun = time.perf_counter()
            found = session.infer({session.inputs[0].name: feed})
            if number:
                timings.seconds[name].append(time.perf_counter() - begun)
            timings.given[name] = next(iter(found.values()))
    return timings


@dataclass
class Timings:
    """What a bench has measured."""

    seconds: dict[str, list[float]]
    given: dict[str, NDArray[np.float32]]

    def lines(self) -> Iterator[str]:
        """One for each runtime, the first of which is what the others are compared with."""
        first = next(iter(self.seconds))
        for name, seconds in self.seconds.items():
            wanted = self.given[first]
            error = float(np.abs(self.given[name] - wanted).max() / np.abs(wanted).max())
            median, least, most = statistics.median(seconds), min(seconds), max(seconds)
            ratio = statistics.median(self.seconds[first]) / median
            best = min(self.seconds[first]) / least
            yield (
                f"  {name:14} {median * 1e3:8.1f} ms [{least * 1e3:.1f} to {most * 1e3:.1f}]  "
                f"ratio {ratio:.2f}, of the quickest {best:.2f}  difference {error:.1e}"
            )


def report(count: int, folder: Path) -> Iterator[str]:
    """The lines of the bench."""
    yield f"{count} rounds, {len(os.sched_getaffinity(0))} cores"
    shipped = ROOT / "engines" / "mr-brain-lesion" / "model.onnx"
    generator = np.random.default_rng(0)
    networks = {
        "mr-brain-lesion, 8 x 3 x 128 x 128": (shipped, (8, 3, 128, 128)),
        f"3-D U-Net, {SIDE} x {SIDE} x {SIDE}": (
            unet(folder / "unet.onnx"),
            (1, 1, SIDE, SIDE, SIDE),
        ),
    }
    for title, (path, shape) in networks.items():
        yield title
        sessions: dict[str, Session] = {}
        for name, runtime in RIVALS.items():
            try:
                sessions[name] = runtime.load(path)
            except RuntimeUnavailable as error:
                yield f"  {name}: left out, {error}"
        feed = generator.standard_normal(shape, np.float32)
        yield from rounds(sessions, feed, count).lines()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        for line in report(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS, Path(folder)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
