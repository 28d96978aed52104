"""A bundle's chain of transforms, inferer and transforms, as one engine's steps and window.

Whatever cannot be translated is kept by its place and class, so that a refusal can name all of it
at once; what makes no difference here is kept with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.monai.finishing import (
    AFTERWARDS,
    CONCLUSIONS,
    Channel,
    Finish,
    first_step,
    found_channels,
)
from node.monai.imprint import Imprint
from node.monai.inferer import INFERERS, View
from node.monai.transforms import (
    AXIS_BOUND,
    NEEDLESS,
    PREPARATIONS,
    CannotTranslate,
    Options,
    Row,
    plain,
    turned_by,
)
from node.monai.workflow import Component, Unknown, Workflow
from node.proposal import Guess

_PREPARED = ("preprocessing", "evaluator::val_data_loader::dataset::transform")
_FINISHED = ("postprocessing", "evaluator::postprocessing")
_INFERRED = ("inferer", "evaluator::inferer")
_NETWORKS = ("network_def", "network", "net", "evaluator::network")
_INPUTS = ("in_channels", "n_input_channels", "in_chans", "input_channels")
_OUTPUTS = ("out_channels", "num_classes", "out_classes", "out_chans", "output_channels")
_COLOURS = {"r", "g", "b", "red", "green", "blue"}
MOST_CHANNELS = 16
"""Channels of a network that can be series of a study."""

_RESAMPLING = {"resample", "resize"}
_CROPPING = {"crop_foreground", "extent"}
_AS_READ = "the bundle names no orientation: axes as MONAI reads them from a DICOM series"
_SLICES = "MONAI's axes, with the one that the network is led along first"


@dataclass(frozen=True, slots=True)
class Network:
    """What the configuration says of the network: its class, channels and axes; 0: nothing."""

    name: str
    inputs: int
    outputs: int
    dims: int


@dataclass(eq=False)
class Translation:
    """What was understood. ``refused`` are the things without a counterpart, each with its place,
    class and reason; with one of them the bundle is no engine.
    """

    network: Network
    roles: tuple[str, ...] = ()
    pre: list[Row] = field(default_factory=list)
    view: View = field(default_factory=lambda: View({}))
    finish: Finish = field(default_factory=Finish)
    refused: list[str] = field(default_factory=list)
    needless: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def channels(self) -> list[Channel]:
        """The channels of the network that are findings."""
        return found_channels(self.finish)

    @property
    def window(self) -> Row:
        """``[window]``."""
        return self.view.row

    @property
    def output(self) -> Row:
        """``[output]`` without the tensor's name."""
        finish = self.finish
        activation: Any = finish.activation
        if activation == "none" and finish.labelled == "argmax":
            activation = Guess("softmax", "the bundle names none; its labels are the same with it")
        if activation == "none":
            return {"activation": Guess("none", "the bundle names none, so it gives probabilities")}
        return {"activation": activation, "activated": finish.activated}

    @property
    def post(self) -> list[Row]:
        """``[[post]]``."""
        return [first_step(self.finish, self.channels), *self.finish.rows]


def translate(workflow: Workflow, imprint: Imprint) -> Translation:
    """The translation of a configuration, with everything in it that has none."""
    made = Translation(_network(workflow, imprint))
    made.view = _viewed(workflow, made)
    _prepare(workflow, imprint, made)
    _conclude(workflow, imprint, made)
    if made.network.dims == 2 and made.view.across is None:
        made.refused.append(
            f"{workflow.name}, {made.network.name}: it sees pictures (spatial_dims 2), and no "
            f"SliceInferer leads it through a volume"
        )
    return made


def _network(workflow: Workflow, imprint: Imprint) -> Network:
    found = next((workflow.at(place) for place in _NETWORKS if workflow.has(place)), None)
    options: Mapping[str, Any] = found.options if isinstance(found, Component) else {}
    name = found.short if isinstance(found, Component) else "the network"
    formats = [imprint.format(side).get("num_channels") for side in ("inputs", "outputs")]
    return Network(
        name,
        _whole(options, _INPUTS) or _number(formats[0]),
        _whole(options, _OUTPUTS) or _number(formats[1]),
        _number(options.get("spatial_dims")),
    )


def _whole(options: Mapping[str, Any], names: Sequence[str]) -> int:
    return next((_number(options[name]) for name in names if name in options), 0)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _viewed(workflow: Workflow, made: Translation) -> View:
    place = next((place for place in _INFERRED if workflow.has(place)), "")
    found = workflow.at(place) if place else None
    if not isinstance(found, Component):
        why = f"{found}" if isinstance(found, Unknown) else "there is none"
        made.refused.append(f"{workflow.name}, inferer: {why}")
        return View({})
    if found.short not in INFERERS:
        made.refused.append(f"{workflow.name}, {found}: no window of the node does the same")
        return View({})
    options = Options(found)
    try:
        view = INFERERS[found.short](options)
        options.finish()
    except CannotTranslate as error:
        made.refused.append(f"{workflow.name}, {found}: {error}")
        return View({})
    return view


def _chain(workflow: Workflow, places: Sequence[str], made: Translation) -> list[Component]:
    """The transforms of a chain in order, those of chains inside of it too."""
    place = next((place for place in places if workflow.has(place)), "")
    if not place:
        made.refused.append(f"{workflow.name}: there is no {places[0]}")
        return []
    return list(_flat(workflow.at(place), f"{workflow.name}, {place}", made))


def _flat(found: Any, place: str, made: Translation) -> Iterator[Component]:
    if isinstance(found, Component) and found.short == "Compose":
        yield from _flat(found.options.get("transforms"), place, made)
    elif isinstance(found, Component):
        yield found
    elif isinstance(found, list):
        for one in found:
            yield from _flat(one, place, made)
    elif found is not None:
        made.refused.append(f"{place}: {found} is no list of transforms")


def _prepare(workflow: Workflow, imprint: Imprint, made: Translation) -> None:
    chain = _chain(workflow, _PREPARED, made)
    keys = _Keys.of(chain, made, imprint)
    made.roles = keys.roles
    _refuse_inputs(workflow, imprint, made)
    for component in chain:
        try:
            made.pre += _prepared(component, keys, made)
        except CannotTranslate as error:
            made.refused.append(f"{workflow.name}, {component}: {error}")
    _turn(chain, made)


def _refuse_inputs(workflow: Workflow, imprint: Imprint, made: Translation) -> None:
    if made.network.inputs > MOST_CHANNELS:
        made.refused.append(
            f"{workflow.name}, {made.network.name}: {made.network.inputs} input channels, more "
            f"than a study has series ({MOST_CHANNELS} at most)"
        )
    names = {name.lower() for name in imprint.channels("inputs").values()}
    if len(names) > 1 and names <= _COLOURS:
        made.refused.append(
            f"{workflow.name}, {made.network.name}: its channels are colours; the node reads "
            f"series of one sample per pixel"
        )


@dataclass(eq=False)
class _Keys:
    """Which of MONAI's keys hold channels of the network at a point of the chain, and as which
    roles; ``roles`` are all of them in the order of the network's channels.
    """

    held: dict[str, tuple[str, ...]]
    image: str
    roles: tuple[str, ...]

    @classmethod
    def of(cls, chain: Sequence[Component], made: Translation, imprint: Imprint) -> _Keys:
        joined = [one for one in chain if _joins(one)]
        loaded = [key for one in chain if _is_load(one) for key in _keys(one)]
        if not joined:
            image = "image" if "image" in loaded or not loaded else loaded[0]
            roles = _numbered(made.network.inputs, imprint)
            return cls({image: roles}, image, roles)
        keys = cls({key: (_slug(key),) for one in joined for key in _keys(one)}, "", ())
        for one in joined:
            keys.join(one)
        image, roles = keys.image, keys.held[keys.image]
        return cls({key: (_slug(key),) for key in keys.held if _slug(key) in roles}, image, roles)

    def join(self, component: Component) -> None:
        """From a ConcatItems on its name holds the channels of its keys."""
        self.image = str(component.options.get("name", "image"))
        self.held[self.image] = tuple(
            role for key in _keys(component) for role in self.held.get(key, ())
        )


def _joins(component: Component) -> bool:
    return plain(component.short, {"ConcatItems": 0}) == "ConcatItems"


def _is_load(component: Component) -> bool:
    return plain(component.short, NEEDLESS) == "LoadImage"


def _keys(component: Component) -> list[str]:
    keys = component.options.get("keys", [])
    return [str(key) for key in keys] if isinstance(keys, list) else [str(keys)]


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40] or "image"


def _numbered(count: int, imprint: Imprint) -> tuple[str, ...]:
    names = [_slug(name) for _, name in sorted(imprint.channels("inputs").items())]
    if count <= 1 or count > MOST_CHANNELS:
        return ("image",)
    if len(set(names)) == len(names) == count:
        return tuple(names)
    return tuple(f"image-{number}" for number in range(1, count + 1))


def _prepared(component: Component, keys: _Keys, made: Translation) -> list[Row]:
    name = plain(component.short, {**PREPARATIONS, **NEEDLESS})
    turning = turned_by(component)
    if turning:
        raise CannotTranslate(f"its {turning} is set: the axes are others than those in DICOM")
    if name in NEEDLESS:
        made.needless[component.short] = NEEDLESS[name]
        return []
    if _joins(component):
        options = Options(component)
        options.single("dim", 0)
        options.skip("name")
        options.finish()
        keys.join(component)
        made.needless[component.short] = "the roles of [[input]] are its channels"
        return []
    if name not in PREPARATIONS:
        raise CannotTranslate("no step of the node does the same")
    named = _keys(component) or [keys.image]
    rows: list[tuple[tuple[str, ...], list[Row]]] = []
    for index, key in enumerate(named):
        if key in keys.held:
            roles = keys.held[key]
            options = Options(component, len(roles) > 1, index)
            rows.append((roles, PREPARATIONS[name](options)))
            options.finish()
    if not rows:
        made.needless[component.short] = f"{', '.join(named)} does not feed the network"
    elif not any(steps for _, steps in rows):
        made.needless[component.short] = "the steps give float32 arrays"
    return list(_merged(rows, keys))


def _merged(rows: list[tuple[tuple[str, ...], list[Row]]], keys: _Keys) -> Iterator[Row]:
    """Equal steps of several keys as one step; a step for all of the roles names none."""
    if len({repr(steps) for _, steps in rows}) == 1:
        rows = [(tuple(role for roles, _ in rows for role in roles), rows[0][1])]
    for roles, steps in rows:
        every = set(roles) == set(keys.roles)
        yield from (step if every else {**step, "roles": list(roles)} for step in steps)


def _turn(chain: Sequence[Component], made: Translation) -> None:
    """Steps that make the volume's axes MONAI's, and at last those that the window wants."""
    known = {**PREPARATIONS, **NEEDLESS}
    names = [plain(one.short, known) for one in chain]
    bound = [name for name in names if name in AXIS_BOUND or name == "Orientation"]
    oriented = bool(bound) and bound[0] == "Orientation"
    along = made.view.across
    order = [] if along is None else [along, *(axis for axis in range(3) if axis != along)]
    if not oriented and not bound and order:
        # Nothing between the two turns asks for an axis: they are one.
        order = [2 - axis for axis in order]
        made.pre.insert(0, {"kind": "transpose", "order": Guess(order, _AS_READ)})
        return
    if not oriented:
        made.pre.insert(0, {"kind": "transpose", "order": Guess([2, 1, 0], _AS_READ)})
    if order and order != [0, 1, 2]:
        made.pre.append({"kind": "transpose", "order": order})


def _conclude(workflow: Workflow, imprint: Imprint, made: Translation) -> None:
    chain = _chain(workflow, _FINISHED, made)
    kinds = {row["kind"] for row in made.pre}
    finish = made.finish = Finish(made.network.outputs, imprint.channels("outputs"))
    finish.resampled, finish.cropped = bool(kinds & _RESAMPLING), bool(kinds & _CROPPING)
    finish.voxel_mm3 = _voxel(made.pre)
    for component in chain:
        try:
            _concluded(component, made)
        except CannotTranslate as error:
            made.refused.append(f"{workflow.name}, {component}: {error}")
    if not finish.labelled:
        made.refused.append(
            f"{workflow.name}, postprocessing: no AsDiscrete makes labels of what the network "
            f"gives, so it is no segmentation"
        )
    if finish.resampled and not finish.returned:
        finish.remarks.append(
            "the bundle has no Invert: labels are brought back to the source images by their "
            "nearest neighbours, as its SaveImage does"
        )
    made.pre = [_returning(row, finish.back) for row in made.pre]
    made.remarks += [*_noticed(made.pre, finish.back), *finish.remarks]


def _returning(row: Row, back: int) -> Row:
    """The step with its way back: by nearest neighbours where MONAI goes or came by them."""
    nearest = row["kind"] in _RESAMPLING and (not back or row.get("order") == 0)
    return {**row, "back": 0} if nearest else row


def _noticed(pre: Sequence[Row], back: int) -> Iterator[str]:
    """What MONAI's arithmetic does and ours does not."""
    kinds = [row["kind"] for row in pre]
    if "resize" in kinds and not back:
        yield (
            "labels come back from Resize by their nearest neighbours: MONAI takes the voxel at or "
            "before a place, and here it is the nearest one"
        )
    nonzero = [n for n, row in enumerate(pre) if row.get("over") == "nonzero"]
    if nonzero and "resample" in kinds[: nonzero[-1]]:
        yield (
            "NormalizeIntensity with nonzero comes after Spacing: where tissue borders on air of "
            "exactly 0, interpolation in MONAI leaves about 1e-15, which it takes for tissue; here "
            "0 stays 0"
        )


def _voxel(pre: Sequence[Row]) -> float:
    """The volume of a voxel that the network sees, mm3; 0 where the bundle does not say it."""
    spacing = next((row["spacing"] for row in reversed(pre) if row["kind"] == "resample"), [0.0])
    volume = 1.0
    for length in spacing:
        volume *= length
    return 0.0 if any(row["kind"] == "resize" for row in pre) else volume


def _concluded(component: Component, made: Translation) -> None:
    name = plain(component.short, {**CONCLUSIONS, **AFTERWARDS})
    if name in AFTERWARDS:
        made.needless[component.short] = AFTERWARDS[name]
        return
    if name not in CONCLUSIONS:
        raise CannotTranslate("no step of the node does the same")
    named = _keys(component)
    if named and "pred" not in named:
        made.needless[component.short] = f"{', '.join(named)} is not what the network gives"
        return
    options = Options(component, index=named.index("pred") if named else 0)
    CONCLUSIONS[name](options, made.finish)
    options.finish()
