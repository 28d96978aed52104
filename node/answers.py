"""What becomes of a network's answer: probabilities, one answer of several, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.blame import blamed
from node.domain.errors import InferenceError
from node.domain.volume import Volume
from node.steps import MASKS, MaskStep
from node.steps.masks import Argmax, Threshold
from node.steps.nnunet import Regions

Probabilities = NDArray[np.float32]
"""(classes, k, j, i)."""
Labels = NDArray[np.uint8]
"""(k, j, i)."""


def kept(probabilities: Probabilities, coverage: NDArray[Any], *, exclusive: bool) -> Probabilities:
    """Probabilities where the network looked; elsewhere nothing is found.

    ``coverage`` (k, j, i) is 1 where it did and 0 elsewhere.
    """
    outside = coverage < 0.5
    if outside.any():
        probabilities[:, outside] = 0
        if exclusive:
            probabilities[0, outside] = 1
    return probabilities


def voted(ballots: Sequence[Labels]) -> Labels:
    """The label that most ballots give a voxel; of equally many votes the lowest label."""
    elected = np.zeros_like(ballots[0])
    for k in range(len(elected)):
        votes = np.stack([ballot[k] for ballot in ballots])
        most = np.zeros(votes.shape[1:], np.intp)
        # Labels come in rising order, and a later one must have more votes.
        for label in np.unique(votes):
            count = np.count_nonzero(votes == label, axis=0)
            elected[k][count > most] = label
            most = np.maximum(most, count)
    return elected


def labelled(post: Sequence[MaskStep], prediction: Volume, first: int = 1) -> Labels:
    """Labels from probabilities, or from labels where the steps change those only.

    ``first`` is the number of the first step in the manifest. Raises InferenceError.
    """
    for number, step in enumerate(post, first):
        with blamed(f"post step {number} ({kind_of(MASKS, step)})"):
            prediction = step.apply(prediction)
    if prediction.voxels.ndim != 3 or prediction.voxels.dtype != np.uint8:
        raise InferenceError("post steps: they give no labels; begin with threshold or argmax")
    return prediction.voxels


def unseen(first: MaskStep, count: int, *, background: bool) -> int:
    """The label of a voxel that was not looked at, by the step that makes labels.

    There all of the ``count`` channels are 0; with ``background`` channel 0 is 1.
    """
    voxel = np.zeros((count, 1, 1, 1), np.float32)
    voxel[0] = background
    return int(first.apply(Volume(voxel, np.eye(4))).voxels.item())


def channels(first: MaskStep, count: int) -> dict[int, int]:
    """Label -> the channel that it was made of, as the step that makes labels says."""
    if not isinstance(first, Threshold | Argmax | Regions):
        return {}
    start = 0 if isinstance(first, Argmax) else 1
    labels: Sequence[int] = first.labels or range(start, start + count)
    return {label: channel for channel, label in reversed(list(enumerate(labels))) if label}


def kind_of(registry: dict[str, Any], step: object) -> str:
    """What the manifest calls a step."""
    return next((kind for kind, member in registry.items() if type(step) is member), "unknown")
