"""The way of volumes through the steps to the network, and of its answer back.

Each step is remembered with the grid before it; so the prediction comes back through the same
steps in reverse, to the voxels of the source images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.alignment import aligned, same
from node.answers import kept, kind_of, unseen
from node.cascade import Box, cropped, put_back
from node.domain.blame import blamed
from node.domain.errors import InferenceError
from node.domain.volume import Grid, Volume
from node.gpu.canvas import Labelled
from node.manifest import Input, Manifest, NetworkOutput, Preparation
from node.steps import STEPS, MaskStep, Step
from node.windows import probable


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """What the networks are fed, and how their answer comes back to the source images.

    ``source`` is the reference role's volume as the steps got it: of ``whole`` the voxels in
    ``box``, where there is one.
    """

    output: NetworkOutput
    feeds: Mapping[str, NDArray[Any]]
    reference: Prepared
    source: Volume
    whole: Volume
    box: Box | None
    exclusive: bool

    def back(self, answer: NDArray[np.float32]) -> Volume:
        """Probabilities (c, k, j, i) on the whole source grid.

        Of probabilities, or of logits where they are activated on that grid. Raises InferenceError.
        """
        prediction = self._returned(answer)
        if self.output.activated == "source":
            with blamed("activation"):
                prediction = prediction.with_voxels(self._activated(prediction.voxels))
        if self.box is None:
            return prediction
        with blamed("cascade"):
            return put_back(prediction, self.box, self.whole, background=self.exclusive)

    def decided(self, made: Labelled, first: MaskStep, count: int) -> Decided:
        """Labels on the whole source grid, as ``first`` makes them of the probabilities there.

        ``made`` are its labels of ``count`` channels on the networks' grid. Every step must be
        exact. Raises InferenceError.
        """
        both = np.zeros((2, *made.labels.shape), np.float32)
        if made.certainty is not None:
            both[0] = made.certainty
        # Labels go back counted from 1, so that 0 is where the steps kept nothing of the image.
        np.add(made.labels, 1, out=both[1], dtype=np.float32)
        back = self._returned(both)
        _fill(back.voxels[1], unseen(first, count, background=False))
        if self.box is not None:
            with blamed("cascade"):
                back = put_back(back, self.box, self.whole, background=self.exclusive)
            _fill(back.voxels[1], unseen(first, count, background=self.exclusive))
        labels = (back.voxels[1] - 1).astype(np.uint8)
        return Decided(back.with_voxels(labels), back.voxels[:1])

    def _activated(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities where the steps kept the image; a logit of 0 elsewhere means nothing."""
        ones = np.ones((1, *self.reference.volume.grid.shape), np.float32)
        coverage = self._returned(ones).voxels[0]
        return kept(probable(logits, exclusive=self.exclusive), coverage, exclusive=self.exclusive)

    def _returned(self, answer: NDArray[np.float32]) -> Volume:
        volume = replace(self.reference.volume, voxels=answer)
        return returned(volume, self.reference, self.source)


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """Labels (k, j, i) uint8, and the probability (1, k, j, i) float32 behind each of them.

    Where a voxel was not looked at that is the highest of all channels, whatever its label.
    """

    labels: Volume
    certainty: NDArray[np.float32]


def _fill(marks: NDArray[np.float32], label: int) -> None:
    """Where nothing came back to this label stands, counted from 1 as all are."""
    marks[marks == 0] = label + 1


def passage(manifest: Manifest, volumes: Mapping[str, Volume], box: Box | None) -> Passage:
    """The way of an engine's volumes, each on its own grid, to the networks.

    With a ``box`` of the reference role's grid only what is in it is seen. Raises InferenceError.
    """
    first = manifest.roles[0]
    whole = volumes[first]
    source = whole if box is None else cropped(whole, box)
    ready = prepared(manifest.pre, aligned({**volumes, first: source}))
    return Passage(
        output=manifest.output,
        feeds={one.tensor: channelled(one, ready) for one in manifest.inputs},
        reference=ready[first],
        source=source,
        whole=whole,
        box=box,
        exclusive=manifest.output.activation == "softmax" or manifest.window.exclusive,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A role's volume after its steps; ``way`` has each step with the grid before it."""

    volume: Volume
    way: tuple[tuple[str, Step, Grid], ...] = ()

    def after(self, name: str, step: Step, volume: Volume) -> Prepared:
        """One step further, where the volume is now this."""
        return Prepared(volume, (*self.way, (name, step, self.volume.grid)))


def prepared(pre: Sequence[Preparation], volumes: Mapping[str, Volume]) -> dict[str, Prepared]:
    """Every role's volume through all of its steps, on one grid. Raises InferenceError."""
    found = {role: Prepared(volume) for role, volume in volumes.items()}
    for number, preparation in enumerate(pre, 1):
        name = f"pre step {number} ({kind_of(STEPS, preparation.step)})"
        walk = _together if preparation.joint else _one_by_one
        found |= walk(name, preparation, found)
    _refuse_other_grids(found)
    return found


def channelled(one: Input, volumes: Mapping[str, Prepared]) -> NDArray[np.generic]:
    """The volumes of a tensor's roles as its channels, (c, k, j, i)."""
    return _stacked([volumes[role].volume for role in one.roles])


def returned(prediction: Volume, reference: Prepared, source: Volume) -> Volume:
    """The prediction through all steps in reverse, on the reference's source grid."""
    for name, step, before in reversed(reference.way):
        with blamed(f"{name}, backward"):
            prediction = step.backward(prediction, before)
    if not same(prediction.grid, source.grid):
        raise InferenceError(
            f"pre steps, backward: they end on a grid of {prediction.grid.shape} (k, j, i) that is "
            f"not the source's ({source.grid.shape})"
        )
    return replace(prediction, sources=source.sources)


def _one_by_one(
    name: str, preparation: Preparation, volumes: Mapping[str, Prepared]
) -> dict[str, Prepared]:
    changed = {}
    for role in preparation.roles:
        with blamed(f"{name} of role {role}"):
            volume = preparation.step.forward(volumes[role].volume)
            changed[role] = volumes[role].after(name, preparation.step, volume)
    return changed


def _together(
    name: str, preparation: Preparation, volumes: Mapping[str, Prepared]
) -> dict[str, Prepared]:
    """The volumes of all roles as channels of one, which the step changes, and apart again."""
    several = {role: volumes[role] for role in preparation.roles}
    _refuse_other_grids(several)
    (reference, *_) = several.values()
    with blamed(f"{name} of roles {', '.join(several)}"):
        voxels = _stacked([one.volume for one in several.values()])
        whole = preparation.step.forward(replace(reference.volume, voxels=voxels))
    changed, start = {}, 0
    for role, one in several.items():
        count = 1 if one.volume.voxels.ndim == 3 else len(one.volume.voxels)
        part = whole.voxels[start] if one.volume.voxels.ndim == 3 else whole.voxels[start:][:count]
        changed[role] = one.after(name, preparation.step, whole.with_voxels(part))
        start += count
    return changed


def _stacked(volumes: Sequence[Volume]) -> NDArray[np.generic]:
    parts = [volume.voxels for volume in volumes]
    return np.concatenate([part.reshape(-1, *part.shape[-3:]) for part in parts])


def _refuse_other_grids(volumes: Mapping[str, Prepared]) -> None:
    (first, reference), *others = volumes.items()
    for role, one in others:
        grid, wanted = one.volume.grid, reference.volume.grid
        if not same(grid, wanted):
            raise InferenceError(
                f"pre steps: they leave {role} on a grid of {grid.shape} (k, j, i) and {first} on "
                f"one of {wanted.shape}, or elsewhere; a step that follows the image's content "
                f"(crop_foreground, a centre of foreground) wants joint = true where an engine "
                f"has several roles"
            )
