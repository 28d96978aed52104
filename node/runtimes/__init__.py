"""Runtimes: what computes a network.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``RUNTIMES``. Heavy libraries are imported inside ``load``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from node.domain.tensor import Tensors as Tensors
from node.domain.tensor import TensorSpec as TensorSpec
from node.runtimes.onnx import Onnx


class Session(Protocol):
    """A loaded network. Not shared between threads."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name. Raises InferenceError."""

    def close(self) -> None:
        """Give back memory and devices; the session is unusable afterwards."""


class Runtime(Protocol):
    """Options of a runtime, and the way to a loaded network."""

    def load(self, model: Path) -> Session:
        """Load a model file. Raises InferenceError with the reason and what to install."""


RUNTIMES: dict[str, type[Runtime]] = {"onnx": Onnx}
