"""Mask steps: probabilities on the source grid become labels, and labels become cleaner.

``threshold`` or ``argmax`` comes first and makes labels, uint8 (k, j, i) with 0 for background;
the others take labels and give labels. Each label is treated by itself, inside the box that
holds it. Sizes are in millilitres and millimetres, so they mean the same on every spacing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy import ndimage

from node.domain.errors import InferenceError
from node.domain.volume import Volume

Label = Annotated[int, Field(ge=0, le=255)]
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]
Connectivity = Literal[6, 18, 26]

_RANK = {6: 1, 18: 2, 26: 3}

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class Threshold:
    """A voxel whose probability reaches a value gets its channel's label.

    Where several channels reach theirs, the most probable one wins, then the first.
    """

    thins: ClassVar[bool] = False

    value: Annotated[float, Field(ge=0, le=1)] | tuple[Annotated[float, Field(ge=0, le=1)], ...] = (
        0.5
    )
    """Least probability, 0 to 1: one for all channels, or a list with one for each."""
    labels: tuple[Label, ...] = ()
    """The label of each channel, 0: the channel is left out. Empty: channel 0 becomes label 1,
    channel 1 becomes label 2, and so on."""
    precedence: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Channels by their number from 0, for regions that lie in one another: where several reach
    their value, the one named first wins, however probable it is. Names every channel or none."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels from probabilities (c, k, j, i)."""
        probability = _probabilities(prediction)
        labels = self.labels or tuple(range(1, len(probability) + 1))
        values = self.value if isinstance(self.value, tuple) else (self.value,) * len(labels)
        _one_each("labels", len(labels), len(probability))
        _one_each("value", len(values), len(probability))
        if self.precedence:
            return prediction.with_voxels(self._ranked(probability, labels, values))
        best = np.full(probability.shape[1:], -1, np.float32)
        found = np.zeros(best.shape, np.uint8)
        for channel, label, value in zip(probability, labels, values, strict=True):
            wins = (channel >= value) & (channel > best) & (label > 0)
            found[wins] = label
            best[wins] = channel[wins]
        return prediction.with_voxels(found)

    def _ranked(
        self, probability: NDArray[np.float32], labels: Sequence[int], values: Sequence[float]
    ) -> Labels:
        if sorted(self.precedence) != list(range(len(probability))):
            raise InferenceError(
                f"precedence names the channels {list(self.precedence)}, the network gives "
                f"{len(probability)}; name each once"
            )
        found = np.zeros(probability.shape[1:], np.uint8)
        for channel in reversed(self.precedence):
            if labels[channel]:
                found[probability[channel] >= values[channel]] = labels[channel]
        return found


@dataclass(frozen=True, config=_STRICT)
class Argmax:
    """The most probable channel of each voxel decides; of equal ones the first."""

    thins: ClassVar[bool] = False

    labels: tuple[Label, ...] = ()
    """The label of each channel. Empty: a channel's number, so that channel 0 is background."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels from probabilities (c, k, j, i)."""
        probability = _probabilities(prediction)
        labels = self.labels or tuple(range(min(len(probability), 256)))
        _one_each("labels", len(labels), len(probability))
        table = np.array(labels, np.uint8)
        return prediction.with_voxels(table[np.argmax(probability, axis=0)])


@dataclass(frozen=True, config=_STRICT)
class LargestComponent:
    """Of each label only the largest connected part stays; of equal ones the first."""

    thins: ClassVar[bool] = True

    connectivity: Connectivity = 26
    """Neighbours that count as connected: 6 (faces), 18 (edges too) or 26 (corners too)."""
    labels: tuple[Label, ...] = ()
    """The labels that it is done to; empty: all of them."""
    together: bool = False
    """Whether these labels count as one, so that a part may consist of several."""
    count: Annotated[int, Field(ge=1)] = 1
    """How many of the largest parts stay."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels with one part each, or with ``count``."""

        def largest(mask: Mask) -> Mask:
            parts, sizes = _components(mask, self.connectivity)
            # The sort is stable: of equal parts the first ones stay.
            kept = np.argsort(-sizes, kind="stable")[: self.count]
            return np.isin(parts, kept[sizes[kept] > 0])

        return _changed(prediction, largest, self.labels, together=self.together)


@dataclass(frozen=True, config=_STRICT)
class RemoveSmall:
    """Connected parts that are smaller than a volume, or than a number of voxels, vanish."""

    thins: ClassVar[bool] = True

    minimum_ml: Annotated[float, Field(ge=0)] = 0.0
    """The smallest volume that stays, millilitres."""
    connectivity: Connectivity = 26
    """Neighbours that count as connected: 6 (faces), 18 (edges too) or 26 (corners too)."""
    minimum_voxels: Annotated[int, Field(ge=0)] = 0
    """The smallest number of voxels of the source images that stays. It means another size on
    every spacing: prefer millilitres."""
    together: bool = False
    """Whether all labels count as one, so that a part may consist of several."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels without small parts."""
        voxel_ml = prediction.grid.voxel_volume / 1000

        def large(mask: Mask) -> Mask:
            parts, sizes = _components(mask, self.connectivity)
            # A part of exactly the minimum stays, whatever the product's last bit says.
            stays = sizes * voxel_ml >= self.minimum_ml * (1 - 1e-9)
            return (stays & (sizes >= self.minimum_voxels))[parts] & mask

        return _changed(prediction, large, together=self.together)


@dataclass(frozen=True, config=_STRICT)
class FillHoles:
    """Background that a label encloses becomes that label; other labels inside stay."""

    thins: ClassVar[bool] = False

    within: Literal["slice", "volume"] = "slice"
    """Enclosed within its slice, or on all sides in 3-D."""
    connectivity: Connectivity = 6
    """Neighbours through which the outside comes in: 6 (faces), 18 (edges too) or 26 (corners
    too). With 26 a hole must be closed at its corners, too."""
    labels: tuple[Label, ...] = ()
    """The labels whose holes are filled; empty: all of them."""
    over: bool = False
    """Whether other labels inside become the label, too."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels without holes."""
        # Neighbours within a slice only, or in 3-D: then every slice fills by itself.
        structure = ndimage.generate_binary_structure(3, _RANK[self.connectivity])
        if self.within == "slice":
            structure[[0, 2]] = False

        def filled(mask: Mask) -> Mask:
            return ndimage.binary_fill_holes(mask, structure)

        return _changed(prediction, filled, self.labels, over=self.over)


@dataclass(frozen=True, config=_STRICT)
class Closing:
    """Gaps narrower than twice a radius are bridged; other labels stay."""

    thins: ClassVar[bool] = False

    radius_mm: Annotated[float, Field(gt=0)]
    """Radius of the ball, mm."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels without narrow gaps."""
        ball = _ball(self.radius_mm, prediction.spacing)

        def closed(mask: Mask) -> Mask:
            room = [(n // 2, n // 2) for n in ball.shape]
            wide = ndimage.binary_closing(np.pad(mask, room), ball)
            return wide[tuple(slice(a, a + n) for (a, _), n in zip(room, mask.shape, strict=True))]

        return _changed(prediction, closed)


@dataclass(frozen=True, config=_STRICT)
class Opening:
    """Parts narrower than twice a radius vanish."""

    thins: ClassVar[bool] = True

    radius_mm: Annotated[float, Field(gt=0)]
    """Radius of the ball, mm."""

    def apply(self, prediction: Volume) -> Volume:
        """Labels without narrow parts."""
        ball = _ball(self.radius_mm, prediction.spacing)

        def opened(mask: Mask) -> Mask:
            return ndimage.binary_opening(mask, ball)

        return _changed(prediction, opened)


def _probabilities(prediction: Volume) -> NDArray[np.float32]:
    voxels = prediction.voxels
    if voxels.ndim != 4 or voxels.dtype.kind != "f":
        raise InferenceError(
            f"this mask step takes probabilities (c, k, j, i); it got {voxels.dtype} "
            f"{voxels.shape}. Use threshold or argmax once, as the first mask step"
        )
    return voxels


def _one_each(name: str, got: int, channels: int) -> None:
    if got != channels:
        raise InferenceError(
            f"the network gives {channels} channels and the mask step's {name} has {got} entries; "
            f"correct it in the engine's manifest"
        )


def _changed(
    prediction: Volume,
    change: Callable[[Mask], Mask],
    chosen: tuple[int, ...] = (),
    *,
    together: bool = False,
    over: bool = False,
) -> Volume:
    """Each label's mask in its box is changed; only with ``over`` does a label take another one's
    voxels. ``together``: the union of the labels is changed as one.
    """
    voxels = prediction.voxels
    if voxels.ndim != 3 or voxels.dtype != np.uint8:
        raise InferenceError(
            f"this mask step takes labels, uint8 (k, j, i); it got {voxels.dtype} {voxels.shape}. "
            f"Put threshold or argmax before it"
        )
    labels = voxels.copy()
    if together:
        union = np.isin(voxels, chosen) if chosen else voxels > 0
        if union.any():
            labels[union & ~change(union)] = 0
        return prediction.with_voxels(labels)
    for label, box in _boxes(voxels):
        if chosen and label not in chosen:
            continue
        part = labels[box]
        own = part == label
        after = change(own)
        part[own & ~after] = 0
        part[after & ((part == 0) | over)] = label
    return prediction.with_voxels(labels)


def _boxes(labels: Labels) -> Iterator[tuple[int, Box]]:
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            yield index, (box[0], box[1], box[2])


def _components(
    mask: Mask, connectivity: Connectivity
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Numbered parts (0: background) and the number of voxels of each; background counts 0."""
    structure = ndimage.generate_binary_structure(3, _RANK[connectivity])
    parts = np.empty(mask.shape, np.int32)
    ndimage.label(mask, structure, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes


def _ball(radius: float, spacing: tuple[float, float, float]) -> Mask:
    reach = [int(radius / step) for step in spacing]
    axes = [np.arange(-n, n + 1) * step for n, step in zip(reach, spacing, strict=True)]
    k, j, i = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray(k**2 + j**2 + i**2 <= radius**2 * (1 + 1e-9))
