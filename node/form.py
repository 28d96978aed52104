"""How a network has to be fed and what it answers, found by running it on noise.

Declared shapes say a part of what a network wants. The rest shows when it runs: which axis holds
the channels, of what its lengths must be a multiple, whether it gives probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import ImportRefused, InferenceError
from node.domain.tensor import Tensors, TensorSpec
from node.runtimes.onnx import OnnxSession
from node.signature import Signature

MOST_CHANNELS = 16
"""An axis that is longer is no axis of channels."""
_MULTIPLES = {2: (1, 2, 4, 8, 16, 32, 64), 3: (1, 2, 4, 8, 16, 32)}
"""Of what lengths may have to be a multiple, by the number of spatial axes."""
_UNKNOWN_CHANNELS = (1, 2, 3, 4)
_AXES = {4: "NCHW", 5: "NCDHW"}
_LINEAR = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization", "Resize", "Concat")
)
"""Operators whose values are logits, whatever they are on noise."""
_LOUD = 20.0
"""Amplitude of noise at which logits leave the range of probabilities."""
_CLOSE = 1e-3
_MOST_VALUES = 1 << 27
"""Numbers in an input of a trial: 512 slices, rows and columns."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a network has to be fed, and what it answers.

    ``channels`` are those of each input; ``lengths`` the spatial ones, -1 where any multiple of
    ``multiple`` will do; ``batch`` is 0 where several blocks may go in one call. ``exclusive``:
    the classes of ``output`` exclude one another. ``doubts`` says of a field why it is a guess.
    """

    layout: str
    channels: Mapping[str, int]
    lengths: tuple[int, ...]
    multiple: int
    batch: int
    output: str
    classes: int
    activation: Literal["none", "sigmoid", "softmax"]
    exclusive: bool
    unused: tuple[str, ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)

    @property
    def planar(self) -> bool:
        """Whether it sees slices, not volumes."""
        return len(self.lengths) == 2


def form(signature: Signature, session: OnnxSession) -> Form:
    """What a network wants and answers, found by running it on noise.

    Raises ImportRefused when no input that volumes can make gives one probability per voxel.
    """
    return _Trials(signature, session).form()


@dataclass(frozen=True, slots=True)
class _Feed:
    """One way to feed the network."""

    layout: str
    channels: Mapping[str, int]
    lengths: tuple[int, ...]
    multiple: int
    batch: int

    @property
    def channels_last(self) -> bool:
        return self.layout.endswith("C")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Spatial lengths of a trial: odd multiples, which no smaller multiple would pass."""
        return tuple(n if n > 0 else 3 * self.multiple for n in self.lengths)

    def shape(self, channels: int) -> tuple[int, ...]:
        if self.channels_last:
            return (self.batch, *self.sizes, channels)
        return (self.batch, channels, *self.sizes)


class _Trials:
    """Runs a network on noise in every way that its declaration leaves open."""

    def __init__(self, signature: Signature, session: OnnxSession) -> None:
        self._signature = signature
        self._session = session
        self._failure = ""
        self._misfit: _Misfit | None = None

    def form(self) -> Form:
        _refuse_other_inputs(self._signature.inputs)
        for feed in self._feeds():
            answers = self._run(feed, 1.0)
            if answers is None:
                continue
            misfits = {name: _misfit(name, array, feed) for name, array in answers.items()}
            fitting = [name for name, misfit in misfits.items() if misfit is None]
            if fitting:
                return self._formed(feed, fitting, answers)
            self._misfit = self._misfit or next(iter(misfits.values()))
            if all(misfit and misfit.always for misfit in misfits.values()):
                break
        raise ImportRefused(self._misfit.words if self._misfit else self._failure)

    def _feeds(self) -> Iterator[_Feed]:
        """Short before long, the likelier layout before the other, few channels before many."""
        inputs = self._signature.inputs
        layouts = _layouts(inputs, self._signature.symbols)
        open_lengths = any(min(lengths) < 0 for lengths in layouts.values())
        multiples = _MULTIPLES[len(inputs[0].shape) - 2] if open_lengths else (1,)
        fixed_batch = max(one.shape[0] for one in inputs)
        for multiple, (layout, lengths) in product(multiples, layouts.items()):
            axis = -1 if layout.endswith("C") else 1
            for count in _UNKNOWN_CHANNELS if self._open_channels(axis) else (1,):
                channels = {
                    one.name: one.shape[axis] if one.shape[axis] > 0 else count for one in inputs
                }
                yield _Feed(layout, channels, lengths, multiple, max(fixed_batch, 1))

    def _run(self, feed: _Feed, amplitude: float) -> Tensors | None:
        """The network's answers; None when it cannot be fed like this."""
        shapes = {one.name: feed.shape(feed.channels[one.name]) for one in self._signature.inputs}
        if max(map(prod, shapes.values())) > _MOST_VALUES:
            raise ImportRefused(f"its inputs are too large to try them on noise: {shapes}")
        noise = {
            one.name: _noise(shapes[one.name], one.dtype, amplitude)
            for one in self._signature.inputs
        }
        try:
            return self._session.infer(noise)
        except InferenceError as error:
            shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            self._failure = self._failure or f"it cannot be run on noise ({shown}): {error}"
            return None

    def _formed(self, feed: _Feed, fitting: list[str], answers: Tensors) -> Form:
        output = fitting[0]
        axis = -1 if feed.channels_last else 1
        classes = int(answers[output].shape[axis])
        loud = self._run(feed, _LOUD) or answers
        seen = [np.asarray(one[output], np.float64) for one in (answers, loud)]
        if not all(np.isfinite(one).all() for one in seen):
            raise ImportRefused(f"the output {output!r} holds NaN or infinite values on noise")
        activation, exclusive, why = _activation(
            seen, axis, self._signature.last.get(output, ""), classes
        )
        doubts = {"activation": why} if why else {}
        if len(fitting) > 1:
            doubts["output"] = f"{', '.join(fitting[1:])} would fit as well"
        if self._open_channels(axis):
            doubts["channels"] = "the network takes any number of channels"
        return Form(
            layout=feed.layout,
            channels=feed.channels,
            lengths=feed.lengths,
            multiple=feed.multiple,
            batch=self._batch(feed, output),
            output=output,
            classes=classes,
            activation=activation,
            exclusive=exclusive,
            unused=tuple(name for name in answers if name != output),
            doubts=doubts,
        )

    def _open_channels(self, axis: int) -> bool:
        return any(one.shape[axis] < 0 for one in self._signature.inputs)

    def _batch(self, feed: _Feed, output: str) -> int:
        """0 when two blocks in one call give two answers, otherwise what the network fixes."""
        if any(one.shape[0] > 0 for one in self._signature.inputs):
            return feed.batch
        two = _Feed(feed.layout, feed.channels, feed.lengths, feed.multiple, 2)
        answers = self._run(two, 1.0)
        fits = answers is not None and _misfit(output, answers[output], two) is None
        return 0 if fits else 1


def _refuse_other_inputs(inputs: tuple[TensorSpec, ...]) -> None:
    """Raises ImportRefused when the inputs are no images of one kind."""
    ranks = {len(one.shape) for one in inputs}
    if len(ranks) != 1 or not ranks <= set(_AXES):
        shown = "; ".join(str(one) for one in inputs) or "none"
        raise ImportRefused(
            f"its inputs are {shown}. An engine's inputs are slices (4 axes: batch, channels, "
            f"rows, columns) or blocks of a volume (5 axes), all of one kind: export it with "
            f"these, and anything else as a constant inside of the network"
        )


def _layouts(
    inputs: tuple[TensorSpec, ...], symbols: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    """Where the channels may be, the likelier place first, and the lengths that are then spatial.

    Raises ImportRefused when there is no such place.
    """
    first = _AXES[len(inputs[0].shape)]
    places = ((first, 1), (f"N{first[2:]}C", -1))
    shown = "; ".join(str(one) for one in inputs)
    allowed = [
        (layout, axis)
        for layout, axis in places
        if all(one.shape[axis] <= MOST_CHANNELS for one in inputs)
    ]
    if not allowed:
        raise ImportRefused(
            f"no axis of {shown} can be that of the channels: neither the second nor the last has "
            f"1 to {MOST_CHANNELS}. Export it with the layout {places[0][0]} or {places[1][0]}"
        )

    def doubt(place: tuple[str, int]) -> tuple[bool, int]:
        """What states its channels comes first, then what has fewer."""
        stated = all(_states_channels(one, place[1], symbols) for one in inputs)
        return not stated, sum(one.shape[place[1]] for one in inputs) if stated else 0

    lengths = {
        layout: _agreed([_spatial(one.shape, layout) for one in inputs])
        for layout, _ in sorted(allowed, key=doubt)
    }
    agreed = {layout: found for layout, found in lengths.items() if found}
    if not agreed:
        raise ImportRefused(
            f"its inputs have other lengths than one another ({shown}), but an engine's volumes "
            f"lie on one grid: export it with inputs of one size"
        )
    return agreed


def _states_channels(one: TensorSpec, axis: int, symbols: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether an axis has a fixed, small number, or a name that says channels."""
    name = symbols.get(one.name, ("",) * len(one.shape))[axis].lower()
    return one.shape[axis] > 0 or name in {"c", "ch", "channel", "channels", "in_channels"}


def _spatial(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return shape[1:-1] if layout.endswith("C") else shape[2:]


def _agreed(lengths: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The lengths that all inputs share; empty when they differ."""
    fixed = [{n for n in axis if n > 0} for axis in zip(*lengths, strict=True)]
    if any(len(axis) > 1 for axis in fixed):
        return ()
    return tuple(axis.pop() if axis else -1 for axis in fixed)


def _noise(shape: tuple[int, ...], dtype: str, amplitude: float) -> NDArray[Any]:
    """Seeded, so that the same network is always seen in the same way."""
    rng = np.random.default_rng(7)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        most = min(int(np.iinfo(kind).max), 255)
        return rng.integers(0, most, shape, endpoint=True).astype(kind)
    if kind.kind == "b":
        return rng.random(shape) > 0.5
    return (rng.standard_normal(shape) * amplitude).astype(kind)


@dataclass(frozen=True, slots=True)
class _Misfit:
    """Why an output is no map of probabilities; ``always``: however the network is fed."""

    words: str
    always: bool = True


def _misfit(name: str, array: NDArray[Any], feed: _Feed) -> _Misfit | None:
    """Why an output has not one number for each class and voxel that went in; None when it has."""
    shown = f"the output {name!r} is {array.dtype} {array.shape}"
    if array.dtype.kind != "f":
        return _Misfit(
            f"{shown}: labels, not probabilities. Export the network without its last argmax or "
            f"threshold; the manifest's post steps do that"
        )
    if array.ndim == 2:
        return _Misfit(
            f"{shown}: one row of numbers per image, as classification networks give. The "
            f"manifest knows segmentation only today; export one that answers for every voxel"
        )
    axes = len(feed.sizes) + 2
    if array.ndim != axes:
        return _Misfit(f"{shown}; wanted {axes} axes: batch, classes and those of the image")
    sizes = array.shape[1:-1] if feed.channels_last else array.shape[2:]
    if array.shape[0] != feed.batch or sizes != feed.sizes or 0 in array.shape:
        words = (
            f"{shown} for images of {feed.sizes} in batches of {feed.batch}: it must answer for "
            f"every voxel that goes in. Add what brings it back to the full size, and export again"
        )
        return _Misfit(words, always=False)
    return None


def _activation(
    seen: list[NDArray[np.float64]], axis: int, last: str, classes: int
) -> tuple[Literal["none", "sigmoid", "softmax"], bool, str]:
    """What has yet to make probabilities, whether classes exclude one another, and any doubt."""
    between = all(one.min() >= -_CLOSE and one.max() <= 1 + _CLOSE for one in seen)
    whole = all(bool(np.abs(one.sum(axis=axis) - 1).max() < _CLOSE) for one in seen)
    if between and classes > 1 and whole:
        return "none", True, "" if last == "Softmax" else "on noise its classes add up to 1"
    if between and last not in _LINEAR:
        sure = last in {"Sigmoid", "HardSigmoid"}
        return "none", False, "" if sure else "on noise its values lie between 0 and 1"
    ends = f"its last operator is {last}" if last else "on noise its values leave 0 to 1"
    if classes == 1:
        return "sigmoid", False, f"{ends}, so it gives logits"
    return "softmax", True, f"{ends}, so it gives logits; sigmoid if classes may overlap"
