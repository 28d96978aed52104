"""Tensors: how a network, a runtime and a window speak of arrays.

They stand here, below the runtimes and the window, because both need them and neither may know
the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by tensor name."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a network: ``shape`` has -1 where an axis is dynamic; ``dtype`` is numpy's."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def admits(self, array: NDArray[Any]) -> bool:
        """Whether an array has this dtype and shape (a dynamic axis takes any length)."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(want in {-1, got} for want, got in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        axes = ", ".join("any" if length < 0 else str(length) for length in self.shape)
        return f"{self.name}: {self.dtype} ({axes})"
