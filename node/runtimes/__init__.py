"""Runtimes: what computes a network.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``RUNTIMES``. Heavy libraries are imported inside ``load``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from node.domain.tensor import Tensors as Tensors
from node.domain.tensor import TensorSpec as TensorSpec
from node.gpu.canvas import Labelled, Labelling
from node.runtimes.onnx import Onnx
from node.runtimes.openvino import OpenVino
from node.runtimes.tensorrt import TensorRt
from node.windows import Activation, Progress, Window


class Session(Protocol):
    """A loaded network. Not shared between threads."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name. Raises InferenceError."""

    def close(self) -> None:
        """Give back memory and devices; the session is unusable afterwards."""


@runtime_checkable
class Sweeper(Protocol):
    """What a session may be besides: one that takes a volume's whole sliding window at once."""

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: Activation = "none",
    ) -> NDArray[np.float32]:
        """What ``node.windows.predict`` gives with this session's ``infer``: (classes, k, j, i).

        ``after`` makes probabilities of what was blended. Raises InferenceError.
        """


@runtime_checkable
class Labeller(Protocol):
    """What a Sweeper may be besides: one that gives labels instead of what it swept."""

    def labels(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        rule: Labelling,
        progress: Progress | None = None,
    ) -> Labelled:
        """Labels (k, j, i) by a rule, of what ``sweep`` would give.

        Raises RuntimeUnavailable where this device cannot make them; InferenceError.
        """


@runtime_checkable
class Named(Protocol):
    """What a session may be besides: one that says precisely what computes."""

    @property
    def words(self) -> str:
        """Library, version, precision and device, as they are written into results."""


@runtime_checkable
class Measured(Protocol):
    """What a session may be besides: one that knows what memory it takes."""

    @property
    def used(self) -> Mapping[str, int]:
        """Bytes by place: "device bytes", of these "scratch bytes" that all networks on the
        device share, and "host bytes"."""


class Runtime(Protocol):
    """Options of a runtime, and the way to a loaded network."""

    def load(self, model: Path) -> Session:
        """Load a model file.

        Raises RuntimeUnavailable, which names what is missing and what brings it; InferenceError.
        """


RUNTIMES: dict[str, type[Runtime]] = {"onnx": Onnx, "openvino": OpenVino, "tensorrt": TensorRt}
