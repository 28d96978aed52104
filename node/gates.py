"""When two answers of a network count as the same: pure comparisons, and their limits.

A network that was compiled for a device, or made narrower, answers a little differently. What may
differ is what no reader could see: a few voxels at an edge, the third digit of a probability. The
limits stand in one place, and nothing here knows where the two answers came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an answer may be from the reference's.

    ``agreement`` is the least share of voxels with the same label, ``dice`` the least overlap of
    each label, ``probability`` the most that a probability or a score may differ, and ``box`` the
    most that a side of a box may be off, in voxels.
    """

    agreement: float = 0.999
    dice: float = 0.995
    probability: float = 0.01
    box: float = 1.0


LIMITS = Limits()
"""What every network must keep to."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One comparison: what came out, and the least (or, with ``at_most``, the most) that passes."""

    name: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value keeps to the limit; one that is no number does not."""
        return bool(self.value <= self.limit if self.at_most else self.value >= self.limit)

    def worse_than(self, other: Gate) -> bool:
        """Whether this is the worse of two results of one gate; no number is the worst."""
        if self.value != self.value:
            return True
        return self.value > other.value if self.at_most else self.value < other.value

    def __str__(self) -> str:
        wanted = "at most" if self.at_most else "at least"
        return f"{self.name} is {self.value:.6g}, {wanted} {self.limit:.6g} is wanted"


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What a detector found, decoded: ``corners`` (n, 2d) in voxels, the first d values the low
    corner and the others the high one; ``labels`` (n,); ``scores`` (n,), 0 to 1.
    """

    corners: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


def agreement(reference: Labels, candidate: Labels) -> float:
    """The share of voxels with the same label, 0 to 1; of no voxels it is 1."""
    return float(np.mean(reference == candidate)) if reference.size else 1.0


def dice(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 0 to 1; two empty ones are equal."""
    both = int(np.count_nonzero(reference)) + int(np.count_nonzero(candidate))
    return 2.0 * int(np.count_nonzero(reference & candidate)) / both if both else 1.0


def segmentation(
    pairs: Sequence[tuple[Labels, Labels]], named: str = "", limits: Limits = LIMITS
) -> tuple[Gate, ...]:
    """Gates over (reference, candidate) label maps: the worst agreement of a pair, and for each
    label its overlap over all pairs together, so that a few voxels of noise weigh as they should.
    """
    found = sorted({int(label) for pair in pairs for one in pair for label in np.unique(one)} - {0})
    worst = min((agreement(*pair) for pair in pairs), default=1.0)
    overlaps = (
        Gate(f"{named}Dice of label {label}", _overlap(pairs, label), limits.dice)
        for label in found
    )
    return (Gate(f"{named}agreement of labels", worst, limits.agreement), *overlaps)


def _overlap(pairs: Sequence[tuple[Labels, Labels]], label: int) -> float:
    masks = [((one == label).ravel(), (other == label).ravel()) for one, other in pairs]
    return dice(np.concatenate([a for a, _ in masks]), np.concatenate([b for _, b in masks]))


def classification(
    pairs: Sequence[tuple[Probabilities, Probabilities]],
    threshold: float | None,
    named: str = "",
    limits: Limits = LIMITS,
) -> tuple[Gate, ...]:
    """Gates over (reference, candidate) probabilities (n, classes).

    The decision is that of the operating point for each class by itself; without a threshold the
    most probable class is the decision.
    """
    furthest = max((_furthest(*pair) for pair in pairs), default=0.0)
    same = [np.array_equal(_decided(a, threshold), _decided(b, threshold)) for a, b in pairs]
    return (
        Gate(f"{named}difference of probability", furthest, limits.probability, at_most=True),
        Gate(f"{named}share of equal decisions", _share(same), 1.0),
    )


def _furthest(reference: Probabilities, candidate: Probabilities) -> float:
    apart = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    return float(apart.max(initial=0.0))


def _decided(probability: Probabilities, threshold: float | None) -> NDArray[np.generic]:
    if threshold is None:
        return np.asarray(np.argmax(probability, axis=-1))
    return np.asarray(probability >= threshold)


def detection(
    pairs: Sequence[tuple[Boxes, Boxes]],
    threshold: float = 0.0,
    named: str = "",
    limits: Limits = LIMITS,
) -> tuple[Gate, ...]:
    """Gates over (reference, candidate) boxes: every box has its partner among the other's.

    Partners have one label, sides that are at most ``box`` voxels apart, and scores that differ by
    at most ``probability``. A box whose score is that close to the operating point may be alone.
    """
    same = [_same_boxes(one, other, threshold, limits) for one, other in pairs]
    return (Gate(f"{named}share of answers with the same boxes", _share(same), 1.0),)


def _same_boxes(one: Boxes, other: Boxes, threshold: float, limits: Limits) -> bool:
    # Takes a quarter of a second to load, and only detectors need it.
    from scipy.optimize import linear_sum_assignment

    fits = _fitting(one, other, limits)
    rows, columns = linear_sum_assignment(fits, maximize=True)
    paired = fits[rows, columns]
    alone = (
        np.delete(one.scores, rows[paired]),
        np.delete(other.scores, columns[paired]),
    )
    return all(bool(np.all(score - threshold <= limits.probability)) for score in alone)


def _fitting(one: Boxes, other: Boxes, limits: Limits) -> NDArray[np.bool_]:
    """Which box of one fits which of the other, (n, m)."""
    sides = np.abs(one.corners[:, None] - other.corners[None]).max(axis=-1, initial=0.0)
    scores = np.abs(one.scores[:, None] - other.scores[None])
    labels = one.labels[:, None] == other.labels[None]
    return np.asarray(labels & (sides <= limits.box) & (scores <= limits.probability))


def _share(same: Iterable[bool]) -> float:
    answers = list(same)
    return sum(answers) / len(answers) if answers else 1.0


def soundness(
    reference: NDArray[np.generic] | None, first: NDArray[np.generic]
) -> tuple[Gate, ...]:
    """Gates of any answer: it is finite everywhere, and of the reference's shape (None: of any)."""
    finite = float(np.mean(np.isfinite(first))) if first.size else 1.0
    gates = (Gate("share of finite values", finite, 1.0),)
    if reference is None:
        return gates
    return (*gates, Gate("same shape as the reference", float(reference.shape == first.shape), 1.0))


def repeated(first: NDArray[np.generic], second: NDArray[np.generic]) -> Gate:
    """The gate of two runs over the same input: not a bit may differ."""
    same = first.shape == second.shape and first.tobytes() == second.tobytes()
    return Gate("two runs are identical", float(same), 1.0)
