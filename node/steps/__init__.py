"""Steps: what happens to a volume before the network, and to its output after.

To add one: a frozen pydantic dataclass in the sibling file of its kind (its fields are its TOML
options), and one line in ``STEPS`` or ``MASKS``. The contract tests then exercise it.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from node.domain.volume import Grid, Volume
from node.steps.intensity import (
    Cast,
    Clip,
    GreyWindow,
    Percentile,
    Rescale,
    Standardise,
    ZScore,
)
from node.steps.masks import (
    Argmax,
    Closing,
    FillHoles,
    LargestComponent,
    Opening,
    RemoveSmall,
    Threshold,
)
from node.steps.nnunet import NnunetCrop, NnunetNormalise, NnunetResample, Regions
from node.steps.spatial import (
    CropForeground,
    CropOrPad,
    Extent,
    Orient,
    PadToMultiple,
    Resample,
    Resize,
    Transpose,
)


class Step(Protocol):
    """Before the network: a volume becomes another volume."""

    exact: ClassVar[bool]
    """Whether ``backward`` copies values as they are and makes none, so that labels can go back."""

    def forward(self, volume: Volume) -> Volume:
        """The changed volume, with an affine that says where its voxels lie now."""

    def backward(self, prediction: Volume, before: Grid) -> Volume:
        """A prediction on the grid after ``forward``, brought to the grid before it.

        Prediction voxels are (c, k, j, i) float32. Outside of what ``forward`` kept they are 0.
        """


class MaskStep(Protocol):
    """After the network, on the source grid."""

    thins: ClassVar[bool]
    """Whether it only takes labels away: no voxel gets one that it had not."""

    def apply(self, prediction: Volume) -> Volume:
        """Probabilities (c, k, j, i) float32 or labels (k, j, i) uint8 become labels (k, j, i)."""


STEPS: dict[str, type[Step]] = {
    "window": GreyWindow,
    "clip": Clip,
    "rescale": Rescale,
    "percentile": Percentile,
    "zscore": ZScore,
    "standardise": Standardise,
    "cast": Cast,
    "orient": Orient,
    "resample": Resample,
    "crop_or_pad": CropOrPad,
    "pad_to_multiple": PadToMultiple,
    "crop_foreground": CropForeground,
    "transpose": Transpose,
    "resize": Resize,
    "extent": Extent,
    "nnunet_crop": NnunetCrop,
    "nnunet_normalise": NnunetNormalise,
    "nnunet_resample": NnunetResample,
}

MASKS: dict[str, type[MaskStep]] = {
    "threshold": Threshold,
    "argmax": Argmax,
    "largest_component": LargestComponent,
    "remove_small": RemoveSmall,
    "fill_holes": FillHoles,
    "closing": Closing,
    "opening": Opening,
    "regions": Regions,
}
