"""Volumes for the tests of the steps: any orientation, and a blob at a known place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from node.domain.study import Instance
from node.domain.volume import Affine, Volume

CORNER = np.array([-31.0, 17.5, 204.0])


def affine(
    spacing: tuple[float, float, float] = (3.0, 1.1, 0.9),
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    order: tuple[int, int, int] = (2, 1, 0),
    signs: tuple[int, int, int] = (1, 1, 1),
) -> Affine:
    """Axes (k, j, i) along the patient axes ``order``, flipped, turned by Euler angles, spaced."""
    axes = np.eye(3)[:, list(order)] * signs
    result = np.eye(4)
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    result[:3, :3] = turned * spacing
    result[:3, 3] = CORNER
    return result


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Any orientation: axial, sagittal, coronal, flipped, oblique; spacing 1 to 2.5 mm."""
    lengths = st.floats(1.0, 2.5)
    turn = st.floats(-50, 50)
    return affine(
        draw(st.tuples(lengths, lengths, lengths)),
        draw(st.tuples(turn, turn, turn)),
        draw(st.permutations([0, 1, 2]).map(lambda p: (p[0], p[1], p[2]))),
        draw(st.tuples(*[st.sampled_from([1, -1])] * 3)),
    )


def patient(place: Affine, index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Patient coordinates of an index (k, j, i), mm."""
    return np.asarray((place @ [*index, 1])[:3], np.float64)


def blob(
    place: Affine, shape: tuple[int, int, int], centre: NDArray[np.float64], radius: float
) -> Volume:
    """A smooth bright ball (0 to 1000) about a point in patient coordinates; radius in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = index @ place[:3, :3].T + place[:3, 3]
    away = np.linalg.norm(points - centre, axis=-1)
    return Volume(1000 * np.exp(-0.5 * (away / (radius / 2)) ** 2), place)


def centroid(volume: Volume) -> NDArray[np.float64]:
    """Patient coordinates of the centre of what is brighter than half-way, mm."""
    voxels = volume.voxels.astype(np.float64)
    weight = np.maximum(0, voxels - (voxels.min() + voxels.max()) / 2)
    index = [float((weight * axis).sum() / weight.sum()) for axis in np.indices(voxels.shape)]
    return patient(volume.affine, np.array(index))


def noise(shape: tuple[int, ...], place: Affine | None = None, seed: int = 0) -> Volume:
    """Random voxels from -1000 to 1000."""
    voxels = np.random.default_rng(seed).uniform(-1000, 1000, shape).astype(np.float32)
    return Volume(voxels, affine() if place is None else place)


def sources(count: int) -> tuple[Instance, ...]:
    """Instances behind slices, as many as there are slices."""
    return tuple(
        Instance(f"1.2.{n}", "1.2.840.10008.5.1.4.1.1.4", "1.3", "1.4", "0", "p", 0.0, Path(), "")
        for n in range(count)
    )


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 0 to 1."""
    return 2 * int((first & second).sum()) / (int(first.sum()) + int(second.sum()))
