"""Tensors: how a network, a runtime and a window speak of arrays.

They stand here, below the runtimes and the window, because both need them and neither may know
the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from node.domain.errors import InferenceError

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


def refuse_other(feeds: Tensors, wanted: Sequence[TensorSpec], network: str) -> None:
    """Raise InferenceError unless the feeds are exactly what a network takes.

    Every runtime asks this before it computes, so that a wrong tensor is told in the same words
    wherever the network runs. ``network`` names the model in these words.
    """
    names = {spec.name for spec in wanted}
    if feeds.keys() != names:
        raise InferenceError(
            f"{network} takes the tensors {sorted(names)}, it was given {sorted(feeds)}"
        )
    for spec in wanted:
        array = feeds[spec.name]
        if not spec.admits(array):
            raise InferenceError(
                f"{network} wants the tensor {spec}, it was given {array.dtype} "
                f"{array.shape}; correct steps or window in the engine's manifest"
            )
