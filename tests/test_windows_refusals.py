"""What a window refuses, and what it takes over from the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from node.domain.errors import InferenceError
from node.windows import Window, predict
from tests.test_windows import Array, identity, volume


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.zeros((1, 2), np.float32), r"\(1, 2\).*\(1, -1, 4, 4\)"),
        (np.zeros((1, 2, 4, 5), np.float32), r"\(1, 2, 4, 5\)"),
        (np.zeros((2, 2, 4, 4), np.float32), r"\(2, 2, 4, 4\)"),
        (np.zeros((1, 0, 4, 4), np.float32), r"\(1, 0, 4, 4\)"),
        (np.full((1, 1, 4, 4), np.nan, np.float32), "NaN"),
        (np.full((1, 1, 4, 4), np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_output_that_cannot_be_used_is_refused_in_words(output: Array, words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        predict(lambda _: {"out": output}, {"image": volume((1, 1, 4, 4))}, Window("slice"), "out")


def test_absent_output_is_refused_with_those_there_are() -> None:
    with pytest.raises(InferenceError, match="'mask'.*'out'"):
        predict(identity, {"image": volume((1, 1, 4, 4))}, Window("slice"), "mask")


def test_network_that_changes_its_classes_is_refused() -> None:
    counts = iter([1, 2])
    with pytest.raises(InferenceError, match="1 classes, and then 2"):
        predict(
            lambda _: {"out": np.zeros((1, next(counts), 4, 4), np.float32)},
            {"image": volume((1, 2, 4, 4))},
            Window("slice"),
            "out",
        )


@pytest.mark.parametrize(
    "volumes",
    [
        {},
        {"image": np.zeros((3, 4, 5), np.float32)},
        {"image": np.zeros((1, 0, 4, 5), np.float32)},
        {"image": np.zeros((1, 3, 4, 5)), "other": np.zeros((1, 3, 4, 6))},
    ],
)
def test_volumes_that_do_not_share_a_grid_are_refused(volumes: dict[str, Array]) -> None:
    with pytest.raises(InferenceError, match="one grid"):
        predict(identity, volumes, Window("slice"), "out")


def test_window_takes_from_the_network_what_it_fixes() -> None:
    fitted = Window("slice").fitted((4, 1, 128, -1))
    assert (fitted.batch, fitted.fixed_batch, fitted.patch) == (4, True, (128, 0))
    free = Window("slice", batch=6).fitted((-1, 1, -1, -1))
    assert (free.batch, free.fixed_batch, free.patch) == (6, False, (0, 0))
    last = Window("patch", layout="NDHWC", patch=(0, 32, 32)).fitted((-1, 96, -1, 32, 1))
    assert last.patch == (96, 32, 32)
    assert Window("volume").fitted((1, 1, -1, -1, -1)).patch == ()


@pytest.mark.parametrize(
    ("window", "shape", "words"),
    [
        (Window("slice", patch=(64, 64)), (-1, 1, 128, 128), r"\(64, 64\).*\(128, 128\)"),
        (Window("patch"), (-1, 1, 128, 128), "mode"),
        (Window("slice"), (-1, 1, 96, 96, 96), "mode"),
        (Window("volume"), (1, 1, 96, 96, 96), "mode 'patch'"),
    ],
)
def test_window_that_the_network_cannot_take_is_refused(
    window: Window, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InferenceError, match=words):
        window.fitted(shape)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"mode": "cube"},
        {"mode": "slice", "layout": "NCDHW"},
        {"mode": "patch", "layout": "NHWC"},
        {"mode": "slice", "patch": [1, 2, 3]},
        {"mode": "patch", "patch": [1, 2]},
        {"mode": "volume", "patch": [1, 2, 3]},
        {"mode": "patch", "patch": [-1, 2, 3]},
        {"mode": "stack", "stack": 4},
        {"mode": "slice", "overlap": 0.95},
        {"mode": "slice", "batch": 0},
        {"mode": "slice", "no_such_option": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Window).validate_python(table)
