"""A session that computes as a GPU's does: ONNX Runtime's network, swept by the host's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import RuntimeUnavailable
from node.domain.tensor import Tensors
from node.gpu.canvas import Labelled, Labelling
from node.gpu.sweep import Sweep
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.windows import Activation, Progress, Window
from tests.hosted.device import HostDevice, HostNetwork


class Sweeping:
    """A session that gives the probabilities of a whole volume."""

    def __init__(self, session: Session, device: HostDevice) -> None:
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.device = device
        self.asked: list[str] = []
        self._session = session
        network = HostNetwork(session.infer, session.inputs, session.outputs)
        self._sweep = Sweep(device, device.kernels(), network)

    def infer(self, feeds: Tensors) -> Tensors:
        """Block by block."""
        self.asked.append("infer")
        return self._session.infer(feeds)

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: Activation = "none",
    ) -> NDArray[np.float32]:
        """All classes come down."""
        self.asked.append("sweep")
        return self._sweep.probability(volumes, window, output, progress, after)

    def close(self) -> None:
        """Nothing is left."""
        self._session.close()
        self.device.close()


class Labels(Sweeping):
    """One that gives labels, too."""

    def labels(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        rule: Labelling,
        progress: Progress | None = None,
    ) -> Labelled:
        """Only labels come down, and what they are worth."""
        self.asked.append("labels")
        return self._sweep.labels(volumes, window, output, rule, progress)


class WithoutKernels(Sweeping):
    """One whose device cannot make labels after all."""

    def labels(self, *_: object) -> Labelled:
        """Never."""
        self.asked.append("labels")
        raise RuntimeUnavailable("NVRTC was not found")


@dataclass
class Hosted:
    """A runtime with sessions of a kind; ``made`` are those that it loaded."""

    library: Path
    kind: type[Sweeping] = Labels
    made: list[Sweeping] = field(default_factory=list)

    def load(self, model: Path) -> Session:
        """The model on a device of its own."""
        session = Onnx(threads=1).load(model)
        self.made.append(self.kind(session, HostDevice(self.library)))
        return self.made[-1]
