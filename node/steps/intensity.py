"""Intensity steps: grey values become what the network was trained on.

None of them moves a voxel, so a prediction passes ``backward`` unchanged. All give float32 (except
``cast``), all refuse NaN and infinity with InferenceError, and none divides by zero: a volume
without contrast becomes 0.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError
from node.domain.volume import Grid, Volume
from node.domain.voxels import Voxels, finite, foreground

Rule = Literal["all", "positive", "otsu"] | Annotated[float, Field(gt=0, lt=1)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _InPlace:
    """What the intensity steps share: the way back."""

    exact: ClassVar[bool] = True

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction itself. Raises InferenceError when its grid is not the one before."""
        if prediction.grid.shape != before.shape:
            raise InferenceError(
                f"the prediction has {prediction.grid.shape} voxels (k, j, i), the volume before "
                f"this step had {before.shape}"
            )
        return prediction


@dataclass(frozen=True, config=_STRICT)
class GreyWindow(_InPlace):
    """A grey-value window becomes 0 to 1; what lies outside is clipped."""

    centre: float
    """Middle of the window, in the volume's units (Hounsfield units for CT)."""
    width: Annotated[float, Field(gt=0)]
    """Width of the window, in the volume's units."""

    def forward(self, volume: Volume) -> Volume:
        """Values from 0 (at or below the window) to 1 (at or above it)."""
        low = self.centre - self.width / 2
        return volume.with_voxels(_unit(finite(volume.voxels), low, low + self.width))


@dataclass(frozen=True, config=_STRICT)
class Clip(_InPlace):
    """Values outside of a range become the nearest value in it."""

    low: float
    """Lowest value that stays, in the volume's units."""
    high: float
    """Highest value that stays, in the volume's units."""

    def __post_init__(self) -> None:
        """Refuse a range that is empty."""
        _ordered("low", self.low, "high", self.high)

    def forward(self, volume: Volume) -> Volume:
        """Values from low to high."""
        return volume.with_voxels(np.clip(finite(volume.voxels), self.low, self.high))


@dataclass(frozen=True, config=_STRICT)
class Rescale(_InPlace):
    """A straight line: one range becomes another. Values outside are not clipped."""

    low: float
    """The value that becomes ``onto[0]``, in the volume's units."""
    high: float
    """The value that becomes ``onto[1]``, in the volume's units."""
    onto: tuple[float, float] = (0.0, 1.0)
    """The two new values, e.g. ``[0, 1]`` or ``[-1, 1]``."""

    def __post_init__(self) -> None:
        """Refuse a range that is empty."""
        _ordered("low", self.low, "high", self.high)

    def forward(self, volume: Volume) -> Volume:
        """Rescaled values."""
        slope = (self.onto[1] - self.onto[0]) / (self.high - self.low)
        offset = self.onto[0] - self.low * slope
        return volume.with_voxels(finite(volume.voxels) * np.float32(slope) + np.float32(offset))


@dataclass(frozen=True, config=_STRICT)
class Percentile(_InPlace):
    """Two percentiles of the volume become 0 and 1; what lies outside is clipped.

    A volume without contrast becomes the first of the two.
    """

    lower: Annotated[float, Field(ge=0, lt=100)] = 0.5
    """The percentile that becomes 0, or ``onto[0]``; per cent."""
    upper: Annotated[float, Field(gt=0, le=100)] = 99.5
    """The percentile that becomes 1, or ``onto[1]``; per cent."""
    onto: tuple[float, float] = (0.0, 1.0)
    """The two new values, e.g. ``[0, 1]`` or ``[-1, 1]``."""
    clip: bool = True
    """Whether values outside become the nearest of the two; otherwise the line goes on."""
    foreground: Rule = "all"
    """The voxels that count: ``all``, ``positive``, ``otsu``, or a fraction of the 99th percentile
    above which they count (0.15)."""

    def __post_init__(self) -> None:
        """Refuse percentiles in the wrong order."""
        _ordered("lower", self.lower, "upper", self.upper)

    def forward(self, volume: Volume) -> Volume:
        """Values from 0 to 1, or along the line from ``onto[0]`` to ``onto[1]``."""
        voxels = finite(volume.voxels)
        low, high = np.percentile(foreground(voxels, self.foreground), [self.lower, self.upper])
        if self.clip or not low < high:
            scaled = _unit(voxels, float(low), float(high))
        else:
            scaled = (voxels - np.float32(low)) / np.float32(high - low)
        first, last = self.onto
        if (first, last) != (0.0, 1.0):
            scaled = scaled * np.float32(last - first) + np.float32(first)
        return volume.with_voxels(scaled)


@dataclass(frozen=True, config=_STRICT)
class ZScore(_InPlace):
    """Mean 0 and standard deviation 1 over the foreground."""

    foreground: Rule = "all"
    """The voxels that count: ``all``, ``positive``, ``otsu``, or a fraction of the 99th percentile
    above which they count (0.15)."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Values are clipped to plus and minus this many standard deviations; 0: not at all."""

    def forward(self, volume: Volume) -> Volume:
        """Standard deviations from the foreground's mean."""
        voxels = finite(volume.voxels)
        chosen = foreground(voxels, self.foreground)
        mean, deviation = chosen.mean(), chosen.std()
        if not deviation > 0:
            return volume.with_voxels(np.zeros_like(voxels))
        scored = (voxels - mean) / deviation
        return volume.with_voxels(np.clip(scored, -self.clip, self.clip) if self.clip else scored)


@dataclass(frozen=True, config=_STRICT)
class Standardise(_InPlace):
    """A mean becomes 0 and a deviation 1: the volume's own, or those of a training set.

    Voxels that are exactly 0 can be left out; then they stay 0, as air does in images that were
    cut out of their surroundings. No contrast counts as a deviation of 1.
    """

    over: Literal["all", "nonzero"] = "all"
    """The voxels that count and that change: all, or those that are not exactly 0."""
    mean: float | None = None
    """What becomes 0, in the volume's units; without it: the mean of the voxels that count."""
    deviation: Annotated[float, Field(gt=0)] | None = None
    """What becomes 1, in the volume's units; without it: their standard deviation."""

    def forward(self, volume: Volume) -> Volume:
        """Deviations from the mean."""
        voxels = finite(volume.voxels)
        inside = voxels != 0 if self.over == "nonzero" else np.ones(voxels.shape, np.bool_)
        chosen = voxels[inside]
        if not chosen.size:
            return volume.with_voxels(voxels)
        # In double precision: a sum over a whole volume in float32 loses its last digits.
        mean = chosen.mean(dtype=np.float64) if self.mean is None else self.mean
        own = chosen.std(dtype=np.float64) if self.deviation is None else self.deviation
        scored = np.zeros_like(voxels)
        scored[inside] = (chosen - np.float32(mean)) / np.float32(own if own > 0 else 1.0)
        return volume.with_voxels(scored)


@dataclass(frozen=True, config=_STRICT)
class Cast(_InPlace):
    """Another number type, for networks that do not take float32. It belongs last.

    Whole-number types are rounded and held within what the type can express.
    """

    dtype: Literal["float32", "float16", "uint8", "int8", "int16", "int32"]
    """The tensor's number type."""

    def forward(self, volume: Volume) -> Volume:
        """Voxels of the type."""
        voxels, dtype = finite(volume.voxels), np.dtype(self.dtype)
        if dtype.kind == "f":
            limit = float(np.finfo(dtype).max)
            return volume.with_voxels(np.clip(voxels, -limit, limit).astype(dtype))
        # In float64, where the greatest int32 is exact.
        held = np.clip(np.rint(voxels.astype(np.float64)), *_range(dtype))
        return volume.with_voxels(held.astype(dtype))


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _unit(voxels: Voxels, low: float, high: float) -> Voxels:
    if not low < high:
        return np.zeros_like(voxels)
    scaled = (voxels - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def _ordered(first: str, low: float, second: str, high: float) -> None:
    if not low < high:
        raise ValueError(f"{first} ({low:g}) must be less than {second} ({high:g})")
