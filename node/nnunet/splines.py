"""How nnU-Net brought images to its spacing and logits back, as options of the node's step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from node.nnunet.sheets import Configuration, Table

_SPLINE, _TORCH, _NONE = (
    "resample_data_or_seg_to_shape",
    "resample_torch_fornnunet",
    "no_resampling_hack",
)
_NUMBERS = ("order", "order_z", "separate_z_anisotropy_threshold")


@dataclass(frozen=True, slots=True)
class Spline:
    """How images are brought to the spacing, and logits back."""

    order: int = 3
    order_z: int = 0
    order_back: int = 1
    order_back_z: int = 0
    separate: Literal["auto", "always", "never"] = "auto"
    anisotropy: float = 3.0


def spline(sheet: Configuration) -> Spline | None:
    """The options; None where nothing is resampled."""
    if sheet.resampling_fn_data == _NONE:
        return None
    there = sheet.resampling_fn_data_kwargs
    back = sheet.resampling_fn_probabilities_kwargs
    linear = sheet.resampling_fn_data == _TORCH
    forced = there.get("force_separate_z", None if linear else False)
    return Spline(
        order=1 if linear else there.get("order", 3),
        order_z=_order_z(there, linear),
        order_back=1 if linear else back.get("order", 3),
        order_back_z=_order_z(back, linear),
        separate="auto" if forced is None else "always" if forced else "never",
        anisotropy=float(there.get("separate_z_anisotropy_threshold", 3)),
    )


def _order_z(options: Table, linear: bool) -> int:
    if linear:
        return 1 if options.get("aniso_axis_mode") == "linear" else 0
    return int(options.get("order_z", 0))


def spline_faults(sheet: Configuration) -> Iterator[str]:
    """Ways of resampling that the node's step does not have."""
    there = sheet.resampling_fn_data_kwargs
    back = sheet.resampling_fn_probabilities_kwargs
    name = sheet.resampling_fn_data
    if name not in {_SPLINE, _TORCH, _NONE} or sheet.resampling_fn_probabilities != name:
        yield (
            f"the resampling {name} and back {sheet.resampling_fn_probabilities} is not known "
            f"(known: {_SPLINE}, {_TORCH}, {_NONE}, the same both ways)"
        )
    if there.get("is_seg") or back.get("is_seg"):
        yield "images or probabilities are resampled as labels (is_seg)"
    for key in ("force_separate_z", "separate_z_anisotropy_threshold"):
        if there.get(key) != back.get(key):
            yield f"{key} differs between images ({there.get(key)}) and probabilities"
    for options in (there, back):
        modes = (options.get("mode", "linear"), options.get("aniso_axis_mode", "nearest-exact"))
        if modes[0] != "linear" or modes[1] not in ("nearest-exact", "linear"):
            yield f"the interpolation {modes} of {name}"
        for key in _NUMBERS:
            stated = options.get(key, 0)
            if not isinstance(stated, (int, float)) or not isfinite(stated):
                yield f"{key} of {name} is {stated!r}, and no number"
