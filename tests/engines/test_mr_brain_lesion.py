"""The brain engine finds the phantom's lesion through its manifest, wherever the head points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from node import bundle
from node.domain.volume import Volume
from node.engine import Engine
from node.runtimes.onnx import Onnx
from node.testing import phantom

SPACING = (6.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The shipped engine."""
    read = bundle.read(bundle.find("mr-brain-lesion"))
    with Engine.load(read, Onnx(threads=1)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def made() -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A phantom's voxels and its lesion, slices upwards, rows to the back, columns to the left."""
    study = phantom.study(seed=1)
    return np.stack([one.pixel_array for one in study.datasets]).astype(np.int16), study.lesion


def dice(engine: Engine, volume: Volume, lesion: NDArray[np.bool_]) -> float:
    findings = engine.examine({"flair": volume}, "job").findings
    found = np.any([finding.mask for finding in findings], axis=0)
    return float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))


def test_lesion_of_the_phantom_is_found(
    engine: Engine, made: tuple[NDArray[np.int16], NDArray[np.bool_]]
) -> None:
    voxels, lesion = made
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *SPACING, 1.0
    assert dice(engine, Volume(voxels, affine, "1.2"), lesion) > 0.8


def test_lesion_is_found_in_a_series_that_is_turned_around(
    engine: Engine, made: tuple[NDArray[np.int16], NDArray[np.bool_]]
) -> None:
    voxels, lesion = made[0][::-1, ::-1, ::-1], made[1][::-1, ::-1, ::-1]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -6.0, -1.0, -1.0
    affine[3, 3] = 1.0
    assert dice(engine, Volume(voxels, affine, "1.2"), lesion) > 0.8
