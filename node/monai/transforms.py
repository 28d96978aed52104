"""MONAI's transforms before the network, and which steps of the node do the same.

"The same" is arithmetic, not a name: where a step begins a grid, rounds a margin or leaves zeros
alone, it does so as MONAI does, or the transform is refused by name. Axes are never reordered
here: the volume is first turned so that its slices, rows and columns are MONAI's first, second and
third axis, and from there on every list of three means the same on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.monai.expression import Formula, above, is_number
from node.monai.workflow import Component, Unknown
from node.proposal import Guess

Row = dict[str, Any]
"""A ``[[pre]]`` or ``[[post]]`` table: its kind, then its options."""

AXES = 3

_EVERYWHERE = frozenset(
    {"keys", "allow_missing_keys", "lazy", "meta_keys", "meta_key_postfix", "image_only", "device"}
)
"""Options that say how MONAI passes values on, not what it computes."""


class CannotTranslate(ValueError):
    """Why a transform has no counterpart here."""


@dataclass(eq=False)
class Options:
    """A component's options, asked for one by one; what nobody asked for is no small matter.

    ``index`` is the place of our key among the component's keys: options may be lists over them.
    ``several``: the image has several channels.
    """

    component: Component
    several: bool = False
    index: int = 0
    _asked: set[str] = field(default_factory=lambda: set(_EVERYWHERE))

    def take(self, name: str, default: Any = None) -> Any:
        """An option's value. Raises CannotTranslate when it is an expression that is not read."""
        self._asked.add(name)
        value = self.component.options.get(name, default)
        if isinstance(value, Unknown):
            raise CannotTranslate(f"its {name} is {value}")
        return value

    def skip(self, *names: str) -> None:
        """Options that make no difference here, whatever they say."""
        self._asked.update(names)

    def number(self, name: str, default: float | None = None) -> float | None:
        """A number, or None where that stands there."""
        value = self._plain(name, default)
        if value is None or (is_number(value) and not isinstance(value, bool)):
            return value
        raise CannotTranslate(f"its {name} is {value!r}, not a number")

    def wanted(self, name: str) -> float:
        """A number that must be there."""
        value = self.number(name)
        if value is None:
            raise CannotTranslate(f"it has no {name}")
        return value

    def truth(self, name: str, default: bool = False) -> bool:
        """Yes or no. A text is true for MONAI, whatever it says; ``"False"`` is refused here."""
        value = self._plain(name, default)
        if isinstance(value, str) and value.strip().lower() in {"false", "0", "no", ""}:
            raise CannotTranslate(f"its {name} is the text {value!r}, which MONAI takes for true")
        return bool(value)

    def word(self, name: str, default: str, known: Mapping[str, str] | Sequence[str]) -> str:
        """One of several words, or what ``known`` makes of it."""
        value = str(self._plain(name, default)).lower()
        if value not in known:
            raise CannotTranslate(f"its {name} is {value!r}; translated: {', '.join(known)}")
        return known[value] if isinstance(known, Mapping) else value

    def axes(self, name: str, default: Any = None) -> list[float]:
        """Three numbers, one per axis; a single one is for all, a missing last one repeats."""
        value = self.take(name, default)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values or not all(map(is_number, values)):
            raise CannotTranslate(f"its {name} is {value!r}, not one number per axis")
        if len(values) == 2:
            raise CannotTranslate(f"its {name} has two axes: the network sees pictures, no volumes")
        return [*values, *[values[-1]] * AXES][:AXES]

    def lengths(self, name: str, default: Any = None) -> list[int]:
        """Three whole numbers; what is not above 0 keeps the axis as it is and becomes 0."""
        return [max(0, int(one)) for one in self.axes(name, default)]

    def single(self, name: str, *neutral: Any) -> None:
        """An option that must be absent or say nothing new."""
        value = self.take(name)
        if value is not None and value not in neutral:
            raise CannotTranslate(f"its {name} is {value!r}, which no step does")

    def finish(self) -> None:
        """Raise CannotTranslate for options that nobody asked for."""
        left = sorted(set(self.component.options) - self._asked)
        if left:
            raise CannotTranslate(f"its option {', '.join(left)} is not known")

    def _plain(self, name: str, default: Any) -> Any:
        value = self.take(name, default)
        if isinstance(value, (list, tuple)) and value:
            return value[self.index] if self.index < len(value) else value[0]
        return value


Translate = Callable[[Options], list[Row]]

_LINEAR = {"bilinear": "1", "trilinear": "1", "linear": "1", "nearest": "0"}
_PADS = {"constant": "value", "edge": "edge", "replicate": "edge"}


def _orientation(options: Options) -> list[Row]:
    options.skip("labels")
    if options.truth("as_closest_canonical"):
        codes = "RAS"
        options.skip("axcodes")
    else:
        codes = str(options.take("axcodes", "")).upper()
    if len(codes) != AXES or not set(codes) <= set("LRPAIS"):
        raise CannotTranslate(f"its axcodes are {codes!r}, not three of L, R, P, A, I and S")
    # MONAI names its first axis first; here the columns come first, and they are its last axis.
    return [{"kind": "orient", "axes": codes[::-1]}]


def _spacing(options: Options) -> list[Row]:
    order = int(options.word("mode", "bilinear", _LINEAR))
    options.word("padding_mode", "border", ("border",))
    options.skip("align_corners", "dtype", "recompute_affine", "ensure_same_shape")
    if options.truth("diagonal") or options.truth("scale_extent"):
        raise CannotTranslate("its diagonal or scale_extent is set: another grid")
    options.single("min_pixdim")
    options.single("max_pixdim")
    spacing = [float(max(0, one)) for one in options.axes("pixdim")]
    row: Row = {"kind": "resample", "spacing": spacing, "anchor": "corner", "value": "edge"}
    return [{**row, "order": order} if order != 1 else row]


def _resize(options: Options) -> list[Row]:
    word = options.word("mode", "area", (*_LINEAR, "nearest-exact", "area"))
    if word == "nearest":
        raise CannotTranslate("its mode is 'nearest', which takes voxels beside the centre")
    options.word("size_mode", "all", ("all",))
    if options.truth("align_corners") or options.truth("anti_aliasing"):
        raise CannotTranslate("its align_corners or anti_aliasing is set")
    options.skip("anti_aliasing_sigma", "dtype")
    row: Row = {"kind": "resize", "shape": options.lengths("spatial_size")}
    if word == "area":
        return [{**row, "order": "area", "back": "area"}]
    return [{**row, "order": int(_LINEAR.get(word, "0"))}]


def _range(options: Options) -> list[Row]:
    low, high = options.wanted("a_min"), options.wanted("a_max")
    first, last = options.number("b_min"), options.number("b_max")
    _float32(options)
    if not low < high:
        raise CannotTranslate(f"its range from {low:g} to {high:g} is empty")
    rows: list[Row] = []
    clips = options.truth("clip")
    if clips and (first is None or last is None):
        raise CannotTranslate("it clips without b_min and b_max")
    if clips and not (first or 0) < (1 if last is None else last):
        raise CannotTranslate("it clips to a range that is turned round")
    if clips:
        rows.append({"kind": "clip", "low": float(low), "high": float(high)})
    onto = [0.0, 1.0] if first is None or last is None else [float(first), float(last)]
    return [*rows, {"kind": "rescale", "low": float(low), "high": float(high), "onto": onto}]


def _minmax(options: Options) -> list[Row]:
    first, last = options.number("minv", 0.0), options.number("maxv", 1.0)
    factor, apart = options.number("factor"), options.truth("channel_wise")
    _float32(options)
    if first is None and last is None:
        onto = [0.0, 1.0 + (factor or 0.0)]
        return [{"kind": "rescale", "low": 0.0, "high": 1.0, "onto": onto}]
    row: Row = {"kind": "percentile", "lower": 0.0, "upper": 100.0}
    if first is not None and last is not None and (first, last) != (0, 1):
        row["onto"] = [float(first), float(last)]
    return [_joint(row, options, apart)]


def _percentiles(options: Options) -> list[Row]:
    lower, upper = options.wanted("lower"), options.wanted("upper")
    first, last = options.number("b_min"), options.number("b_max")
    relative, apart = options.truth("relative"), options.truth("channel_wise")
    _float32(options)
    if first is None or last is None:
        raise CannotTranslate("it has no b_min or b_max")
    if relative:
        width = last - first
        first, last = width * lower / 100 + first, width * upper / 100 + first
    row: Row = {"kind": "percentile", "lower": float(lower), "upper": float(upper)}
    row |= {"onto": [float(first), float(last)], "clip": options.truth("clip")}
    return [_joint(row, options, apart)]


def _standardise(options: Options) -> list[Row]:
    apart = options.truth("channel_wise")
    row: Row = {"kind": "standardise"}
    if options.truth("nonzero"):
        row["over"] = "nonzero"
    for name, ours in (("subtrahend", "mean"), ("divisor", "deviation")):
        value = options.take(name)
        if isinstance(value, list) and (options.several or len(value) != 1):
            raise CannotTranslate(f"its {name} differs between channels")
        number = options.number(name)
        if number is not None:
            row[ours] = float(number)
    _float32(options)
    return [_joint(row, options, apart)]


def _shift(options: Options) -> list[Row]:
    offset = float(options.wanted("offset"))
    options.skip("safe")
    return [{"kind": "rescale", "low": 0.0, "high": 1.0, "onto": [offset, 1.0 + offset]}]


def _threshold(options: Options) -> list[Row]:
    limit, other = float(options.wanted("threshold")), options.number("cval", 0.0)
    if other != limit:
        raise CannotTranslate(f"what it cuts off becomes {other}, not the threshold {limit:g}")
    bounds = {"low": limit, "high": 1e9} if options.truth("above", True) else {"low": -1e9}
    return [{"kind": "clip", "high": limit, **bounds}]


def _foreground(options: Options) -> list[Row]:
    threshold = _selected(options.take("select_fn"))
    options.single("channel_indices")
    # Where they were cut is stored beside the image, and the network does not see it.
    options.skip("source_key", "start_coord_key", "end_coord_key", "return_coords")
    margin = options.lengths("margin", 0)
    row: Row = {"kind": "crop_foreground", "threshold": threshold}
    if any(margin):
        row["margin"] = margin
    multiple = [max(1, one) for one in options.lengths("k_divisible", 1)]
    if multiple != [1, 1, 1]:
        row["multiple"] = multiple
    smaller = options.take("allow_smaller")
    if any(margin) and smaller is None:
        row["beyond"] = Guess(True, "MONAI's own default was the other way round until 1.5")
    elif any(margin) and not options.truth("allow_smaller"):
        row["beyond"] = True
    if any(margin) or multiple != [1, 1, 1]:
        row |= _padding(options, "mode")
    # Otherwise nothing is filled in, however it were done.
    options.skip("mode", "value", "constant_values")
    return [_joint(row, options, False)]


def _selected(function: Any) -> float:
    if function is None:
        return 0.0
    level = above(function) if isinstance(function, Formula) else None
    if level is None:
        words = function.text if isinstance(function, Formula) else str(function)
        raise CannotTranslate(f"its select_fn is {words!r}; translated: lambda x: x > NUMBER")
    return float(level)


def _spatial_pad(options: Options) -> list[Row]:
    row: Row = {"kind": "extent", "at_least": options.lengths("spatial_size")}
    return [row | _sides(options) | _padding(options, "mode")]


def _divisible_pad(options: Options) -> list[Row]:
    multiple = [max(1, one) for one in options.lengths("k")]
    row: Row = {"kind": "pad_to_multiple", "multiple": multiple}
    return [row | _sides(options) | _padding(options, "mode")]


def _pad_or_crop(options: Options) -> list[Row]:
    lengths = options.lengths("spatial_size")
    row: Row = {"kind": "extent", "at_least": lengths, "at_most": lengths}
    return [row | _sides(options) | _padding(options, "mode")]


def _centre_crop(options: Options) -> list[Row]:
    return [{"kind": "extent", "at_most": options.lengths("roi_size")}]


def _sides(options: Options) -> Row:
    word = options.word("method", "symmetric", ("symmetric", "end"))
    return {"sides": "end"} if word == "end" else {}


def _padding(options: Options, name: str) -> Row:
    kind = options.word(name, "constant", _PADS)
    if kind != "value":
        return {"value": kind}
    value = options.number("value", options.number("constant_values", 0.0))
    return {"value": float(value)} if value else {}


def _cast(options: Options) -> list[Row]:
    _float32(options)
    return []


def _float32(options: Options) -> None:
    """Every step gives float32; another number type would round, or hold more digits."""
    dtype = str(options.take("dtype", "float32") or "float32").rpartition(".")[2]
    if dtype not in {"float32", "float", "float64", "double"}:
        raise CannotTranslate(f"its dtype is {dtype}; the steps compute in float32")


def _joint(row: Row, options: Options, apart: bool) -> Row:
    return {**row, "joint": True} if options.several and not apart else row


PREPARATIONS: dict[str, Translate] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "ScaleIntensityRange": _range,
    "ScaleIntensity": _minmax,
    "ScaleIntensityRangePercentiles": _percentiles,
    "NormalizeIntensity": _standardise,
    "ShiftIntensity": _shift,
    "ThresholdIntensity": _threshold,
    "CropForeground": _foreground,
    "SpatialPad": _spatial_pad,
    "DivisiblePad": _divisible_pad,
    "ResizeWithPadOrCrop": _pad_or_crop,
    "CenterSpatialCrop": _centre_crop,
    "CastToType": _cast,
}
"""What each of MONAI's transforms before the network is here, by its name without the final d."""

NEEDLESS: dict[str, str] = {
    "LoadImage": "the node reads the DICOM series itself",
    "EnsureChannelFirst": "every role's volume is a channel already",
    "AddChannel": "every role's volume is a channel already",
    "AsChannelFirst": "every role's volume is a channel already",
    "EnsureType": "the steps give float32 arrays",
    "ToTensor": "the steps give float32 arrays",
    "ToNumpy": "the steps give float32 arrays",
    "ToMetaTensor": "every volume carries its own place in the patient",
    "FromMetaTensor": "every volume carries its own place in the patient",
    "ToDevice": "the runtime places tensors",
    "Identity": "it changes nothing",
    "DataStats": "it prints",
    "SelectItems": "only the image is kept",
    "DeleteItems": "only the image is kept",
    "SqueezeDim": "every role's volume is a channel already",
    "SignalFillEmpty": "a volume with a voxel that is no number is refused",
    "SaveImage": "results are written as DICOM",
}
"""Transforms that make no difference here, and why."""

AXIS_BOUND = frozenset(
    {
        "Spacing",
        "Resize",
        "CropForeground",
        "SpatialPad",
        "DivisiblePad",
        "ResizeWithPadOrCrop",
        "CenterSpatialCrop",
    }
)
"""Transforms whose numbers belong to axes: these must be MONAI's before."""

_UNTURNED = {"reverse_indexing": False, "swap_ij": True, "affine_lps_to_ras": True}
"""Options of LoadImage that decide on axes, and what they are where none is turned."""


def plain(name: str, known: Mapping[str, Any]) -> str:
    """A transform's name without the ending of its dictionary form; as it is where unknown."""
    for ending in ("d", "D", "Dict"):
        if name.removesuffix(ending) in known:
            return name.removesuffix(ending)
    return name


def turned_by(component: Component) -> str:
    """The options of a LoadImage by which its axes are others than those of the DICOM series."""
    if plain(component.short, NEEDLESS) != "LoadImage":
        return ""
    options = component.options
    return ", ".join(name for name, usual in _UNTURNED.items() if options.get(name, usual) != usual)
