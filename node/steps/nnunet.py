"""nnU-Net's own steps: its crop, its grey values, its resampling and its regions.

A network that nnU-Net trained is as good as it was measured only when it sees what nnU-Net would
have shown it. The other steps of the node come close; these repeat the arithmetic of nnU-Net 2 to
the last rounding, in its order (crop, then grey values, then spacing), so that its own prediction
can be demanded in a test. The steps before the network look at all channels at once: give them
``joint = true`` where an engine has several series.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy import ndimage

from node.domain.errors import InferenceError
from node.domain.sampling import resampled
from node.domain.volume import Grid, Volume
from node.domain.voxels import Voxels, finite

Scheme = Literal["ct", "zscore", "none", "unit", "rgb"]
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Order = Literal[0, 1, 2, 3, 4, 5]
Label = Annotated[int, Field(ge=1, le=255)]
Wide = NDArray[np.float64]
"""Splines are computed in double precision, as nnU-Net does."""
Image = NDArray[np.floating]
"""A channel (k, j, i) or a slice of it."""

_LEAST_DEVIATION = 1e-8
"""What nnU-Net divides by where there is no contrast."""

_LARGEST = 2**31
"""Voxels: more than any study needs and less than what ends the process for want of memory."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class NnunetCrop:
    """Cuts to the box around all voxels that are not 0 in some channel.

    A volume of nothing but 0 stays whole.
    """

    exact: ClassVar[bool] = True

    def forward(self, volume: Volume) -> Volume:
        """The part of the volume in the box, exactly copied."""
        volume = volume.with_voxels(finite(volume.voxels))
        some = _some(volume.voxels)
        starts, lengths = [], []
        for axis in range(3):
            line = np.flatnonzero(some.any(axis=tuple(a for a in range(3) if a != axis)))
            starts.append(int(line[0]) if line.size else 0)
            lengths.append(int(line[-1]) + 1 - starts[-1] if line.size else some.shape[axis])
        affine = volume.affine.copy()
        affine[:3, 3] = (volume.affine @ [*starts, 1])[:3]
        return resampled(volume, Grid((lengths[0], lengths[1], lengths[2]), affine))

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction in its place, and 0 around it."""
        return resampled(prediction, before)


@dataclass(frozen=True, config=_STRICT)
class NnunetNormalise:
    """nnU-Net's normalisation of grey values, channel by channel.

    Every option has one entry for each channel, or one for all of them.
    """

    exact: ClassVar[bool] = True

    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)]
    """``ct``: clipped to low and high, then mean and deviation of the training images. ``zscore``:
    mean and deviation of this image. ``unit``: lowest to highest become 0 to 1. ``rgb``: divided
    by 255. ``none``: as they are."""
    masked: tuple[bool, ...] = (False,)
    """Whether ``zscore`` counts and changes only the voxels inside of the object: those that are
    not 0 in some channel, holes filled."""
    low: tuple[float, ...] = (0.0,)
    """For ``ct``: the training images' percentile 0.5, in the volume's units."""
    high: tuple[float, ...] = (0.0,)
    """For ``ct``: their percentile 99.5, in the volume's units."""
    mean: tuple[float, ...] = (0.0,)
    """For ``ct``: their mean over the labelled voxels, in the volume's units."""
    deviation: tuple[Annotated[float, Field(ge=0)], ...] = (1.0,)
    """For ``ct``: their standard deviation, in the volume's units."""

    def __post_init__(self) -> None:
        """Refuse lists that do not fit one another."""
        lists = (self.masked, self.low, self.high, self.mean, self.deviation)
        if any(len(one) not in {1, len(self.schemes)} for one in lists):
            raise ValueError(
                f"each list has one entry, or as many as schemes has ({len(self.schemes)})"
            )

    def forward(self, volume: Volume) -> Volume:
        """Normalised voxels, float32. Raises InferenceError when channels are missing."""
        voxels = finite(volume.voxels)
        channels = voxels.copy().reshape(-1, *voxels.shape[-3:])
        if len(self.schemes) not in {1, len(channels)}:
            raise InferenceError(
                f"this step normalises {len(self.schemes)} channels and was given "
                f"{len(channels)}; correct its schemes and roles in the engine's manifest"
            )
        inside = ndimage.binary_fill_holes(_some(voxels)) if any(self.masked) else None
        for number, channel in enumerate(channels):
            self._normalise(channel, number, inside)
        return volume.with_voxels(channels.reshape(voxels.shape))

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction itself. Raises InferenceError when its grid is not the one before."""
        if prediction.grid.shape != before.shape:
            raise InferenceError(
                f"the prediction has {prediction.grid.shape} voxels (k, j, i), the volume before "
                f"this step had {before.shape}"
            )
        return prediction

    def _normalise(self, channel: Voxels, number: int, inside: NDArray[np.bool_] | None) -> None:
        """Change a channel (k, j, i) in place."""
        scheme = _entry(self.schemes, number)
        if scheme == "ct":
            np.clip(channel, _entry(self.low, number), _entry(self.high, number), out=channel)
            channel -= _entry(self.mean, number)
            channel /= max(_entry(self.deviation, number), _LEAST_DEVIATION)
        elif scheme == "zscore" and _entry(self.masked, number) and inside is not None:
            channel[inside] = _scored(channel[inside])
        elif scheme == "zscore":
            channel[:] = _scored(channel)
        elif scheme == "unit":
            channel -= channel.min()
            channel /= max(float(channel.max()), _LEAST_DEVIATION)
        elif scheme == "rgb":
            channel /= 255.0


@dataclass(frozen=True, config=_STRICT)
class NnunetResample:
    """nnU-Net's resampling: to a spacing and, for logits and probabilities, back.

    The edges of the outermost voxels stay where they are, so the spacing comes out as near to the
    wanted one as whole numbers of voxels allow.
    """

    exact: ClassVar[bool] = False

    spacing: tuple[
        Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]
    ]
    """Spacing of slices, rows and columns [k, j, i], mm; 0 keeps the axis as it is."""
    order: Order = 3
    """Order of the spline between voxels, 0 to 5; 1 is linear."""
    order_z: Order = 0
    """The same along the coarse axis, where that is resampled by itself."""
    order_back: Order = 1
    """Order of the spline on the way back."""
    order_back_z: Order = 0
    """The same along the coarse axis."""
    separate: Literal["auto", "always", "never"] = "auto"
    """Whether the axis with the greatest spacing is resampled by itself, after the other two;
    ``auto``: where one spacing is more than ``anisotropy`` times another."""
    anisotropy: Annotated[float, Field(gt=0)] = 3.0
    """Greatest spacing over least spacing from which an axis counts as coarse."""

    def forward(self, volume: Volume) -> Volume:
        """The volume at the new spacing, float32, within the range of its values."""
        voxels, grid = finite(volume.voxels), volume.grid
        wanted = self._wanted(grid)
        shape = _new_shape(grid, wanted)
        step = np.eye(4)
        for axis, (old, new) in enumerate(zip(grid.shape, shape, strict=True)):
            step[axis, axis] = old / new
            step[axis, 3] = old / new / 2 - 0.5
        coarse = self._coarse(grid.spacing, wanted)
        return replace(
            volume,
            voxels=_each(voxels, shape, coarse, (self.order, self.order_z)),
            affine=grid.affine @ step,
            sources=volume.sources if shape[0] == grid.shape[0] else (),
        )

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """The prediction on the grid before; every channel within the range of its values."""
        wanted = self._wanted(before)
        made = _new_shape(before, wanted)
        if prediction.grid.shape != made:
            raise InferenceError(
                f"the prediction has {prediction.grid.shape} voxels (k, j, i), this step makes "
                f"{made} of {before.shape}"
            )
        coarse = self._coarse(wanted, before.spacing)
        orders = (self.order_back, self.order_back_z)
        voxels = _each(finite(prediction.voxels), before.shape, coarse, orders)
        return replace(prediction, voxels=voxels, affine=before.affine, sources=())

    def _wanted(self, grid: Grid) -> Spacing:
        k, j, i = (new or old for new, old in zip(self.spacing, grid.spacing, strict=True))
        return (k, j, i)

    def _coarse(self, source: Spacing, wanted: Spacing) -> int | None:
        """The axis that is resampled by itself; None where there is no single coarse one."""
        if self.separate == "never":
            return None
        decisive = (source, wanted) if self.separate == "auto" else (source,)
        for spacing in decisive:
            rough = max(spacing) / min(spacing) > self.anisotropy
            if rough or self.separate == "always":
                # Of two or three axes that are equally coarse none is: all go together.
                axes = [axis for axis in range(3) if max(spacing) / spacing[axis] == 1]
                return axes[0] if len(axes) == 1 else None
        return None


@dataclass(frozen=True, config=_STRICT)
class Regions:
    """Regions that may lie inside of one another become labels: each paints over those before it.

    Unlike ``threshold`` it is not the most probable region that wins but the last one.
    """

    thins: ClassVar[bool] = False

    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    """The label that each channel paints, in order."""
    value: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A voxel is painted where the probability, 0 to 1, is greater than this."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels (k, j, i) from probabilities (c, k, j, i). Raises InferenceError."""
        voxels = prediction.voxels
        if voxels.ndim != 4 or voxels.dtype.kind != "f" or len(voxels) != len(self.labels):
            raise InferenceError(
                f"this mask step takes probabilities of {len(self.labels)} channels "
                f"(c, k, j, i); it got {voxels.dtype} {voxels.shape}. Use regions, threshold or "
                f"argmax once, as the first mask step"
            )
        painted = np.zeros(voxels.shape[1:], np.uint8)
        for channel, label in zip(voxels, self.labels, strict=True):
            painted[channel > self.value] = label
        return prediction.with_voxels(painted)


def _entry(options: tuple[Any, ...], number: int) -> Any:
    return options[number if len(options) > 1 else 0]


def _some(voxels: Voxels) -> NDArray[np.bool_]:
    """(k, j, i): whether some channel is not 0."""
    return np.asarray((voxels.reshape(-1, *voxels.shape[-3:]) != 0).any(axis=0))


def _scored(voxels: Voxels) -> Voxels:
    """Mean 0 and deviation 1; an empty array stays empty."""
    if not voxels.size:
        return voxels
    return np.asarray((voxels - voxels.mean()) / max(voxels.std(), np.float32(_LEAST_DEVIATION)))


def _new_shape(grid: Grid, wanted: Spacing) -> Shape:
    """Voxels at a spacing over the same extent. Raises InferenceError when they are too many."""
    k, j, i = (
        # A NIfTI file holds single precision, and nnU-Net rounds what it read there.
        max(1, round(float(np.float32(old)) / new * length))
        for old, new, length in zip(grid.spacing, wanted, grid.shape, strict=True)
    )
    if k * j * i > _LARGEST:
        raise InferenceError(
            f"the wanted spacing would make {k} x {j} x {i} voxels; check the units of the step's "
            f"options (mm)"
        )
    return (k, j, i)


def _each(voxels: Voxels, shape: Shape, coarse: int | None, orders: tuple[Order, Order]) -> Voxels:
    """Every channel by itself at another shape; the voxels themselves where it is theirs."""
    if voxels.shape[-3:] == shape:
        return voxels
    lead = voxels.shape[:-3]
    made = np.empty((*lead, *shape), np.float32)
    for index in np.ndindex(*lead):
        if coarse is None:
            made[index] = _resized(voxels[index], shape, orders[0])
        else:
            made[index] = _parted(voxels[index], shape, coarse, orders)
    return made


def _resized(image: Voxels, shape: tuple[int, ...], order: Order) -> Image:
    """An image (j, i) or (k, j, i) at another shape: the edge is repeated outside.

    What a spline overshoots is clipped to the range of the image.
    """
    if image.shape == shape:
        return image
    if order < 2:
        factors = [_factor(old, new) for old, new in zip(image.shape, shape, strict=True)]
        return np.asarray(ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True))
    made = _splined(image, shape, order)
    return np.clip(made, image.min(), image.max(), out=made)


def _splined(image: Voxels, shape: tuple[int, ...], order: Order) -> Wide:
    """One matrix for each axis: several times faster than a spline in 3-D, and the same."""
    lines = [_line(old, new, order) for old, new in zip(image.shape, shape, strict=True)]
    rows, columns = lines[-2:]
    if image.ndim == 2:
        return rows @ image @ columns.T
    planes = np.stack([rows @ plane @ columns.T for plane in image])
    return planes if len(planes) == shape[0] else np.tensordot(lines[0], planes, 1)


@lru_cache(maxsize=6)
def _line(old: int, new: int, order: Order) -> Wide:
    """(new, old): how much each voxel of a line counts for each of the new ones.

    Kept, for all slices and channels need the same ones.
    """
    if old == new:
        return np.eye(old)
    factor = _factor(old, new)
    voxels = [
        ndimage.zoom(voxel, factor, order=order, mode="nearest", grid_mode=True)
        for voxel in np.eye(old)
    ]
    line = np.stack(voxels, axis=1)
    line.flags.writeable = False
    return line


def _factor(old: int, new: int) -> float:
    """The reciprocal of a quotient, not the other quotient: the last bit decides at the edges."""
    return 1 / (old / new)


def _parted(image: Voxels, shape: Shape, coarse: int, orders: tuple[Order, Order]) -> Image:
    """Slice by slice across the coarse axis, and then along it."""
    planes = np.moveaxis(image, coarse, 0)
    plane = tuple(length for axis, length in enumerate(shape) if axis != coarse)
    stack = np.stack([_resized(one, plane, orders[0]) for one in planes])
    if len(stack) != shape[coarse]:
        stack = _along(stack, shape[coarse], orders[1])
    return np.moveaxis(stack, 0, coarse)


def _along(stack: Image, length: int, order: Order) -> Image:
    """A stack of slices with another number of them."""
    if order > 0:
        return np.tensordot(_line(len(stack), length, order), stack, 1)
    places = len(stack) / length * (np.arange(length) + 0.5) - 0.5
    nearest = np.floor(places + 0.5).astype(np.intp)
    return np.asarray(stack[np.clip(nearest, 0, len(stack) - 1)])
