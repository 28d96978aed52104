"""The window through which a network sees a volume: slices, stacks, patches or the whole.

Only what is to be seen is said here, as the manifest says it; ``node.windows`` looks, and a device
may look by its own means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError
from node.tiling import Lengths, Placement, Tiling, Weighing, tiled

Axis = Literal["k", "j", "i"]
Flip = tuple[int, ...]
"""The axes of (k, j, i) that are turned round: 0, 1 and 2."""

_PLANAR = ("NCHW", "NHWC")
_CHANNELS_LAST = ("NHWC", "NDHWC")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Window:
    """How a network sees a volume; the fields are the manifest's ``[window]`` table."""

    mode: Literal["slice", "stack", "patch", "volume"]
    """``slice``: each slice by itself. ``stack``: each slice with its neighbours as channels;
    for each channel of the volume in turn its slices from k-h to k+h, the end slices repeated.
    ``patch``: 3-D blocks. ``volume``: everything at once."""
    layout: Literal["NCHW", "NHWC", "NCDHW", "NDHWC"] | None = None
    """Order of the tensor's axes: batch N, channels C, slices D, rows H, columns W. Without it:
    ``NCHW`` for slices and stacks, ``NCDHW`` for patches and volumes."""
    patch: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Voxels in a block: rows, columns for slices and stacks; slices, rows, columns for patches.
    0, or nothing at all: the whole axis."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    """Share of a block that its neighbour sees too, 0 to 0.9."""
    placement: Placement = "even"
    """Where blocks begin. ``even``: evenly spread over the axis, in whole voxels. ``rounded``: the
    same with fractions that are rounded, as nnU-Net does. ``stride``: a fixed step and the last
    block moved back, as MONAI does."""
    importance: Literal["gaussian", "constant"] = "gaussian"
    """What a block's voxels count where blocks overlap: more in its middle, where a network is
    surest, or all the same."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Standard deviation of the Gaussian as a share of the block's length."""
    centre: Literal["middle", "voxel"] = "middle"
    """Where the Gaussian has its peak: in the middle, which is between two voxels of an even
    length, or on voxel n // 2, as nnU-Net does."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The least importance of a voxel, where the peak has 1 (MONAI: 0.001)."""
    fill: Literal["minimum", "edge", "reflect"] | float = "minimum"
    """What lies around a volume that is smaller than a block, after the steps: each channel's
    lowest value, its outermost voxels repeated, its mirror image, or this value."""
    mirror: tuple[Axis, ...] = ()
    """Axes along which every block is seen turned round, too: k slices, j rows, i columns. The
    outputs of all combinations of them (two for one axis, eight for three) are turned back and
    averaged. Not the slices of ``slice`` and ``stack``."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Blocks in one call of the network."""
    fixed_batch: bool = False
    """The network takes exactly ``batch`` blocks: the last batch is filled with its last block."""
    stack: Annotated[int, Field(ge=1)] = 3
    """Slices in a stack, an odd number."""
    multiple: Annotated[int, Field(ge=1)] = 1
    """An axis that is seen whole is filled up to a multiple of this (not the slices of ``slice``
    and ``stack``); for networks that halve their input n times it is 2 to the power n."""
    skip_air: bool = False
    """Blocks in which every voxel of every input is air are not computed: they count as
    probability 0."""
    air: float | None = None
    """The highest value that is air, after the steps. Without it: each channel's lowest value."""
    logits: bool = False
    """The network gives logits: they become probabilities before blocks are blended."""
    exclusive: bool = False
    """Channels exclude one another and channel 0 is the background (softmax; skipped air is
    background with probability 1). Otherwise each channel stands for itself (sigmoid)."""

    def __post_init__(self) -> None:
        """Refuse options that contradict one another."""
        if self.layout and (self.layout in _PLANAR) != self.planar:
            raise ValueError(f"layout {self.layout} does not fit mode {self.mode!r}")
        if self.stack % 2 == 0:
            raise ValueError(f"stack must be odd, so that a slice is in the middle: {self.stack}")
        axes = {"slice": 2, "stack": 2, "patch": 3, "volume": 0}[self.mode]
        if len(self.patch) not in {0, axes}:
            raise ValueError(f"patch has {axes} lengths in mode {self.mode!r}: {self.patch}")
        if len(set(self.mirror)) < len(self.mirror):
            raise ValueError(f"mirror names an axis twice: {list(self.mirror)}")
        if self.planar and "k" in self.mirror:
            raise ValueError(f"mirror has no axis k in mode {self.mode!r}: a network of slices")

    @property
    def planar(self) -> bool:
        """Whether the network's tensors have two spatial axes."""
        return self.mode in {"slice", "stack"}

    @property
    def channels_last(self) -> bool:
        """Whether the network's tensors have the channels as their last axis."""
        return self.layout in _CHANNELS_LAST

    @property
    def reach(self) -> int:
        """Neighbouring slices seen on each side of a block."""
        return self.stack // 2 if self.mode == "stack" else 0

    @property
    def weighing(self) -> Weighing:
        """What the voxels of a block count."""
        sigma = self.sigma if self.importance == "gaussian" else None
        return Weighing(sigma, self.centre == "voxel", self.floor)

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Every combination of the mirrored axes: none first, then single axes, pairs, all."""
        axes = sorted("kji".index(axis) for axis in self.mirror)
        return tuple(
            chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)
        )

    def fitted(self, shape: Sequence[int]) -> Window:
        """The window with the batch and the lengths that a network's input tensor fixes.

        ``shape`` has -1 where the network takes any length. Raises InferenceError when the
        tensor cannot be fed through this window.
        """
        spatial = 2 if self.planar else 3
        if len(shape) != spatial + 2:
            raise InferenceError(
                f"window mode {self.mode!r} feeds tensors of {spatial + 2} axes, the network "
                f"takes {len(shape)}; correct the mode in the engine's manifest"
            )
        fixed = tuple(shape[1:-1] if self.channels_last else shape[2:])
        fitted = replace(self, patch=self._merged(fixed))
        return replace(fitted, batch=shape[0], fixed_batch=True) if shape[0] > 0 else fitted

    def _merged(self, fixed: tuple[int, ...]) -> tuple[int, ...]:
        if self.mode == "volume" and max(fixed) > 0:
            raise InferenceError(
                f"the network takes blocks of {fixed} (-1: any), not a whole volume; use window "
                f"mode 'patch'"
            )
        asked = self.patch or (0,) * len(fixed)
        for want, have in zip(asked, fixed, strict=True):
            if want and have > 0 and want != have:
                raise InferenceError(
                    f"the window's patch is {self.patch}, the network takes {fixed} (-1: any)"
                )
        merged = tuple(want or max(have, 0) for want, have in zip(asked, fixed, strict=True))
        return () if self.mode == "volume" else merged


def tile(shape: Lengths, window: Window) -> Tiling:
    """The tiling of a volume of shape (k, j, i)."""
    asked: tuple[int, ...] = window.patch or (0,) * (2 if window.planar else 3)
    lengths = (1, *asked) if window.planar else asked
    k, j, i = (
        want or -(-length // window.multiple) * window.multiple
        for length, want in zip(shape, lengths, strict=True)
    )
    return tiled(shape, (k, j, i), window.overlap, window.placement, window.weighing)
