"""``ai-node`` with one more runtime: a device that is slow or lost when a file says so.

``python -m tests.acceptance.losing run --config CONFIG --only worker``
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic.dataclasses import dataclass

from node.cli import main
from node.domain.errors import DeviceLost
from node.domain.tensor import Tensors, TensorSpec
from node.runtimes import RUNTIMES, Session
from node.runtimes.onnx import Onnx


@dataclass(frozen=True, config={"extra": "forbid"})
class Losing:
    """ONNX Runtime, as if on a device; while ``marker`` is there, the device is lost."""

    marker: Path
    """A file that somebody makes; each loss removes it."""
    building: Path | None = None
    """While this file is there, the plan is being built, and whoever loads it waits."""

    def load(self, model: Path) -> Session:
        """The network."""
        while self.building is not None and self.building.exists():
            time.sleep(0.05)
        return OnDevice(Onnx(threads=1).load(model), self.marker)


class OnDevice:
    """A network on the device."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    words = "a device that can be lost"

    def __init__(self, session: Session, marker: Path) -> None:
        self._session = session
        self._marker = marker
        self.inputs, self.outputs = session.inputs, session.outputs

    def infer(self, feeds: Tensors) -> Tensors:
        """The network's answer. Raises DeviceLost."""
        if self._marker.exists():
            self._marker.unlink()
            raise DeviceLost("CUDA error 700: an illegal memory access was encountered")
        return self._session.infer(feeds)

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()


if __name__ == "__main__":
    RUNTIMES["losing"] = Losing
    main()
