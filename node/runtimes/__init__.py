"""Runtimes: what computes a network.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``RUNTIMES``. Heavy libraries are imported inside ``load``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network: ``shape`` has -1 where an axis is dynamic; ``dtype`` is numpy's."""

    name: str
    shape: tuple[int, ...]
    dtype: str


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
