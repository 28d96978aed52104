"""What every step asks of voxels: that they are finite numbers, and which of them are tissue.

Both the intensity and the spatial steps need it, and members of a family do not know each other.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import InferenceError

Voxels = NDArray[np.float32]
"""Shape (k, j, i) or, with channels, (c, k, j, i)."""

Foreground = Literal["all", "positive", "otsu"] | float
"""Which voxels are tissue: all of them, those above 0, those above Otsu's threshold, or those
above this fraction (0 to 1) of the 99th percentile."""

_BINS = 256


def finite(voxels: NDArray[Any]) -> Voxels:
    """The same voxels as float32; the array itself when it is float32 already.

    Raises InferenceError when the array is no volume, or a voxel is NaN or infinite.
    """
    if voxels.ndim not in {3, 4} or voxels.size == 0:
        raise InferenceError(
            f"a volume has 3 axes (k, j, i), or 4 with channels, and no axis of length 0; "
            f"this array has shape {voxels.shape}"
        )
    if voxels.dtype.kind not in "biuf":
        raise InferenceError(f"voxels of type {voxels.dtype} are not real numbers")
    with np.errstate(over="ignore"):
        single = voxels.astype(np.float32, copy=False)
    # The extremes carry every NaN and infinity, and cost less than looking at each voxel.
    if voxels.dtype.kind == "f" and not (np.isfinite(single.min()) and np.isfinite(single.max())):
        raise InferenceError(
            "the volume holds voxels that are NaN or infinite; check the rescale slope and "
            "intercept of the source series"
        )
    return single


def otsu(voxels: Voxels) -> float:
    """Otsu's threshold: the grey value that best parts a histogram of 256 bins in two.

    Values above the 99th percentile count as the 99th, so that a few bright vessels or metal do
    not stretch the histogram. A constant volume gives its one value. Tissue is what lies above.
    """
    low, high = float(voxels.min()), float(np.percentile(voxels, 99))
    if not low < high:
        return low
    counts, edges = np.histogram(np.minimum(voxels, high), bins=_BINS, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    mass = np.cumsum(counts * centres)
    mean_below = mass[:-1] / np.maximum(below, 1)
    mean_above = (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    return float(edges[1:-1][int(np.argmax(between))])


def threshold(voxels: Voxels, rule: Foreground) -> float:
    """The grey value above which voxels are foreground by a rule; minus infinity for ``all``."""
    if rule == "all":
        return -float("inf")
    if rule == "positive":
        return 0.0
    if rule == "otsu":
        return otsu(voxels)
    return float(rule) * float(np.percentile(voxels, 99))


def foreground(voxels: Voxels, rule: Foreground) -> Voxels:
    """The foreground's values as one axis; every value when the rule leaves none."""
    if rule == "all":
        return voxels.ravel()
    chosen = voxels[voxels > threshold(voxels, rule)]
    return chosen if chosen.size else voxels.ravel()
