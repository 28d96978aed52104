"""What a tensor's specification admits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node.domain.tensor import TensorSpec

SPEC = TensorSpec("image", (-1, 3, 8, 8), "float32")


@pytest.mark.parametrize("batch", [1, 7])
def test_dynamic_axis_takes_any_length(batch: int) -> None:
    assert SPEC.admits(np.zeros((batch, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((1, 1, 8, 8), np.float32),
        np.zeros((1, 3, 8), np.float32),
        np.zeros((1, 3, 8, 8, 1), np.float32),
    ],
    ids=["type", "length", "fewer axes", "more axes"],
)
def test_other_type_or_shape_is_not_admitted(array: NDArray[Any]) -> None:
    assert not SPEC.admits(array)


def test_specification_reads_as_words() -> None:
    assert str(SPEC) == "image: float32 (any, 3, 8, 8)"
