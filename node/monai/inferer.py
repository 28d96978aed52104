"""MONAI's inferers, and the window through which the network sees the same here.

Where blocks begin, what their voxels weigh where they overlap and what surrounds a volume that is
too small are MONAI's; see ``node.tiling``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.monai.transforms import CannotTranslate, Options, Row

_LEAST = 0.001
"""The least weight that MONAI gives a voxel of a block whose peak weighs 1."""
_MOST_OVERLAP = 0.9

_INDIFFERENT = (
    "sw_device",
    "device",
    "progress",
    "cache_roi_weight_map",
    "cpu_thresh",
    "buffer_steps",
    "buffer_dim",
)
"""Options that decide on speed and memory, not on what comes out."""


@dataclass(frozen=True, slots=True)
class View:
    """The ``[window]`` table, and along which of MONAI's axes a network of slices is led."""

    row: Row
    across: int | None = None


def _sliding(options: Options) -> View:
    return View({"mode": "patch", "patch": options.lengths("roi_size"), **_blending(options)})


def _slices(options: Options) -> View:
    across = options.number("spatial_dim", 0)
    size = options.take("roi_size")
    sound = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)
    if not sound or across not in {0, 1, 2}:
        raise CannotTranslate(f"its roi_size is {size!r} and its spatial_dim {across}")
    patch = [max(0, int(one)) for one in size]
    return View({"mode": "slice", "patch": patch, **_blending(options)}, int(across))


def _simple(options: Options) -> View:
    return View({"mode": "volume", "overlap": 0.0})


def _blending(options: Options) -> Row:
    options.skip(*_INDIFFERENT)
    if options.truth("with_coord"):
        raise CannotTranslate("with_coord is set: the network asks where a block lies")
    row: Row = {"overlap": _overlap(options), "placement": "stride"}
    if options.word("mode", "constant", ("constant", "gaussian")) == "constant":
        row["importance"] = "constant"
        options.skip("sigma_scale")
    else:
        row |= {"importance": "gaussian", "sigma": options.number("sigma_scale", 0.125)}
        row["floor"] = _LEAST
    padding = {"constant": "", "replicate": "edge", "reflect": "reflect"}
    fill = options.word("padding_mode", "constant", padding)
    row["fill"] = fill or float(options.number("cval", 0.0) or 0.0)
    row["batch"] = int(options.number("sw_batch_size", 1) or 1)
    return row


def _overlap(options: Options) -> float:
    values = set(options.axes("overlap", 0.25)) if _listed(options) else {options.number("overlap")}
    if len(values) > 1:
        raise CannotTranslate(f"its overlap differs between axes: {sorted(values, key=str)}")
    overlap = values.pop()
    share = 0.25 if overlap is None else float(overlap)
    if not 0 <= share <= _MOST_OVERLAP:
        raise CannotTranslate(f"its overlap is {share:g}; up to {_MOST_OVERLAP:g} is computed")
    return share


def _listed(options: Options) -> bool:
    return isinstance(options.take("overlap"), list)


INFERERS: dict[str, Callable[[Options], View]] = {
    "SlidingWindowInferer": _sliding,
    "SlidingWindowInfererAdapt": _sliding,
    "SliceInferer": _slices,
    "SimpleInferer": _simple,
}
"""What each of MONAI's inferers is here."""
