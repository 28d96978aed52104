"""MONAI's transforms after the network, and where each of them happens here.

MONAI lets a bundle choose the order: activation, labels, cleaning and the way back to the source
images. Here the order is fixed (activation, way back, labels, cleaning), so what has to be found
out is whether the bundle's order gives the same: nearest neighbours and the most probable label
can be swapped, linear interpolation and labels cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from node.domain.errors import ImportRefused
from node.monai.expression import Formula, drops_first, painted
from node.monai.transforms import NEEDLESS, CannotTranslate, Options, Row
from node.proposal import Guess

_HOPS = {1: 6, 2: 18, 3: 26}
"""MONAI counts neighbours by the steps along axes that lead to them."""


@dataclass(eq=False)
class Finish:
    """What is understood of the transforms after the network, one after the other.

    ``channels`` of the network, 0 where unknown, and their ``names`` by number. ``voxel_mm3`` is
    the volume of a voxel that the network sees, 0 where it is that of the source images.
    """

    channels: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    voxel_mm3: float = 0.0
    resampled: bool = False
    cropped: bool = False
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    activated_late: bool = False
    returned: bool = False
    nearest: bool = False
    labelled: Literal["", "argmax", "threshold"] = ""
    labelled_early: bool = False
    threshold: float = 0.5
    onehot: bool = False
    painted: tuple[tuple[int, int], ...] = ()
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def offset(self) -> int:
        """What a channel's label is above its number."""
        return int(self.labelled == "threshold" and not is_background(self.names.get(0, "")))

    @property
    def back(self) -> Literal[0, 1]:
        """The interpolation on the way back that gives the bundle's labels."""
        if not self.returned:
            return 0
        return 0 if self.nearest or self.labelled_early else 1

    @property
    def activated(self) -> str:
        """Where the activation happens: on the network's grid, or on the source images'."""
        late = self.activated_late or (self.labelled == "argmax" and self._most_late)
        return "source" if late and self.resampled else "blended"

    @property
    def _most_late(self) -> bool:
        return self.activation == "none" and self.returned and not self.labelled_early

    def cleaning(self, name: str, row: Row) -> None:
        """A step on labels; on the network's grid MONAI may find other parts than on the source's.

        Raises CannotTranslate before there are labels.
        """
        if not self.labelled:
            raise CannotTranslate("it stands before AsDiscrete: there are no labels yet")
        if self.resampled and not self.returned:
            self.remarks.append(
                f"{name} works on the network's grid in the bundle, and here on the source "
                f"images': a part that hangs by single voxels may fall apart in one of them only"
            )
        self.rows.append(row)


Conclude = Callable[[Options, Finish], None]


def _activations(options: Options, finish: Finish) -> None:
    if options.take("other") is not None:
        raise CannotTranslate(f"its other is {options.take('other')!r}, a function")
    options.skip("dim", "kernel_size", "dtype")
    sigmoid, softmax = options.truth("sigmoid"), options.truth("softmax")
    if finish.labelled or (sigmoid and softmax):
        raise CannotTranslate("it comes after AsDiscrete, or does two things at once")
    if not (sigmoid or softmax):
        return
    if finish.activation != "none":
        raise CannotTranslate("there is an activation before it already")
    finish.activation = "sigmoid" if sigmoid else "softmax"
    finish.activated_late = finish.returned
    if finish.returned and finish.cropped:
        finish.remarks.append(
            "Activations stands after Invert in the bundle: what was cropped away has the value 0 "
            "before the activation there, and probability 0 here"
        )


def _discrete(options: Options, finish: Finish) -> None:
    argmax, threshold = options.truth("argmax"), options.number("threshold")
    onehot = options.number("to_onehot")
    options.single("rounding", "torchrounding")
    options.skip("dim", "keepdim", "dtype", "num_classes", "n_classes")
    if finish.labelled:
        if argmax or (threshold is not None and not 0 < threshold <= 1):
            raise CannotTranslate("there are labels already")
        finish.onehot = finish.onehot or onehot is not None
        return
    if not argmax and threshold is None:
        raise CannotTranslate("it has neither argmax nor threshold")
    if not argmax and threshold is not None and not 0 <= threshold <= 1:
        raise CannotTranslate(f"its threshold {threshold:g} is no probability")
    finish.labelled = "argmax" if argmax else "threshold"
    finish.threshold = 0.5 if threshold is None else float(threshold)
    finish.onehot = onehot is not None or (not argmax and finish.channels != 1)
    finish.labelled_early = not finish.returned


def _inverse(options: Options, finish: Finish) -> None:
    options.single("post_func")
    options.skip("transform", "orig_keys", "orig_meta_keys", "to_tensor")
    nearest = options.truth("nearest_interp", True)
    if finish.returned:
        finish.remarks.append("Invert stands twice in the bundle: the second one changes nothing")
        return
    finish.returned, finish.nearest = True, nearest
    if finish.labelled and finish.resampled and not nearest:
        finish.remarks.append(
            "Invert interpolates label numbers linearly in the bundle, which gives numbers that "
            "are no labels between two of them; here the nearest label is taken"
        )


def _largest(options: Options, finish: Finish) -> None:
    options.single("is_onehot", finish.onehot)
    row: Row = {"kind": "largest_component", "connectivity": _connectivity(options, AXES_OF_VOLUME)}
    row |= _chosen(options, finish)
    if not options.truth("independent", True):
        row["together"] = True
    count = options.number("num_components", 1)
    if count is not None and count != 1:
        row["count"] = int(count)
    finish.cleaning("KeepLargestConnectedComponent", row)


AXES_OF_VOLUME = 3
MOST_CHANNELS = 256
"""Channels that can be the labels of a segmentation and its background."""


def _connectivity(options: Options, default: int) -> int:
    hops = options.number("connectivity", None)
    return _HOPS[min(max(int(default if hops is None else hops), 1), 3)]


def _chosen(options: Options, finish: Finish) -> Row:
    labels = options.take("applied_labels")
    if labels is None:
        return {}
    named = labels if isinstance(labels, list) else [labels]
    if not all(isinstance(one, int) for one in named):
        raise CannotTranslate(f"its applied_labels are {labels!r}")
    # Of several channels MONAI counts the channels, otherwise the labels in the one.
    offset = finish.offset if finish.onehot else 0
    return {"labels": [int(one) + offset for one in named if one + offset]}


def _small(options: Options, finish: Finish) -> None:
    least = options.number("min_size", 64) or 0
    together = not options.truth("independent_channels", True)
    row: Row = {"kind": "remove_small"}
    options.skip("pixdim")
    if options.truth("by_measure"):
        row["minimum_ml"] = least / 1000
    elif finish.returned or not finish.voxel_mm3:
        row["minimum_voxels"] = int(least)
    else:
        row["minimum_ml"] = least * finish.voxel_mm3 / 1000
    row["connectivity"] = _connectivity(options, 1)
    if together:
        row["together"] = True
    elif not finish.onehot and finish.channels > 2:
        raise CannotTranslate(
            "on several labels in one channel MONAI counts all voxels of a label, not its parts; "
            "put to_onehot before it"
        )
    finish.cleaning("RemoveSmallObjects", row)


def _holes(options: Options, finish: Finish) -> None:
    row: Row = {"kind": "fill_holes", "within": "volume", "over": not finish.onehot}
    row["connectivity"] = _connectivity(options, AXES_OF_VOLUME)
    row |= _chosen(options, finish)
    finish.cleaning("FillHoles", row)


def _lambda(options: Options, finish: Finish) -> None:
    function = options.take("func")
    options.skip("inv_func", "track_meta", "overwrite")
    words = function.text if isinstance(function, Formula) else repr(function)
    if isinstance(function, Formula) and drops_first(function) and finish.onehot:
        return
    order = painted(function) if isinstance(function, Formula) else ()
    if not order or finish.labelled != "threshold" or finish.painted or finish.rows:
        raise CannotTranslate(f"its function {words} is not one that is read")
    finish.painted = order
    finish.onehot = False


CONCLUSIONS: dict[str, Conclude] = {
    "Activations": _activations,
    "AsDiscrete": _discrete,
    "Invert": _inverse,
    "KeepLargestConnectedComponent": _largest,
    "RemoveSmallObjects": _small,
    "FillHoles": _holes,
    "Lambda": _lambda,
}
"""What each of MONAI's transforms after the network means, by its name without the final d."""

AFTERWARDS = {**NEEDLESS, "EnsureType": "the steps give float32 arrays"}
"""Transforms after the network that make no difference here, and why."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of the network that is a finding: its number, its label, its name."""

    number: int
    label: int
    name: str


def first_step(finish: Finish, channels: list[Channel]) -> Row:
    """The mask step that makes labels of probabilities."""
    if finish.labelled == "argmax":
        return {"kind": "argmax"}
    labels = {one.number: one.label for one in channels}
    count = max(finish.channels, len(channels), 1)
    row: Row = {
        "kind": "threshold",
        "value": finish.threshold,
        "labels": [labels.get(number, 0) for number in range(count)],
    }
    if finish.painted:
        first = [channel for channel, _ in finish.painted]
        row["precedence"] = [*first, *(n for n in range(count) if n not in first)]
    elif len(channels) > 1:
        row["precedence"] = Guess(
            [], "MONAI keeps channels that overlap; here the most probable one has the voxel"
        )
    return row


def found_channels(finish: Finish) -> list[Channel]:
    """The channels that are findings, with the labels that they get; background is none.

    Raises ImportRefused when they are more than a segmentation holds.
    """
    count = finish.channels or (max(finish.names, default=0) + 1)
    if count > MOST_CHANNELS:
        raise ImportRefused(f"the network has {count} output channels; {MOST_CHANNELS} at most")
    labels = dict(finish.painted) or {n: n + finish.offset for n in range(count)}
    return [
        Channel(number, label, finish.names.get(number, f"label {label}"))
        for number, label in sorted(labels.items())
        if label and not is_background(finish.names.get(number, ""))
    ]


def is_background(name: str) -> bool:
    """Whether a channel's name says that it is none of the findings."""
    return name.strip().lower() in {"background", "bg", "backgroud", "everything else"}
