"""Small DICOM series of every orientation, for MONAI to read and for the node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.testing.series import AXIAL, CORONAL, SAGITTAL, SeriesSpec, make, save

SHAPE = (7, 5, 6)
"""Slices, rows and columns: all different, so that axes cannot be confused."""

SERIES: dict[str, SeriesSpec] = {
    "axial, feet first": SeriesSpec("CT", orientation=AXIAL, spacing=(4.0, 1.25, 0.75)),
    "axial, head first": SeriesSpec(
        "CT", orientation=AXIAL, spacing=(4.0, 1.25, 0.75), order=(6, 5, 4, 3, 2, 1, 0)
    ),
    "axial, prone": SeriesSpec(
        "CT", orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), spacing=(4.0, 1.25, 0.75)
    ),
    "sagittal": SeriesSpec("CT", orientation=SAGITTAL, spacing=(3.0, 1.0, 0.5)),
    "coronal": SeriesSpec("CT", orientation=CORONAL, spacing=(3.0, 1.0, 0.5)),
    "oblique": SeriesSpec(
        "CT", orientation=(0.96, 0.28, 0.0, -0.168, 0.576, -0.8), spacing=(2.5, 1.0, 0.5)
    ),
}


def stored() -> NDArray[np.int16]:
    """Voxels as they are stored; each differs from every other one."""
    order = np.random.default_rng(3).permutation(int(np.prod(SHAPE)))
    return (order.reshape(SHAPE) * 3 + 900).astype(np.int16)


def saved(name: str, folder: Path) -> list[Path]:
    """The files of a series, with an intercept of -1024 as CT has it."""
    spec = SERIES[name]
    whole = SeriesSpec(**{**spec.__dict__, "slope": 1.0, "intercept": -1024.0})
    return save(make(whole, stored()), folder)
