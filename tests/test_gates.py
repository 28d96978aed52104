"""The gates: what counts as the same answer, and what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from node import gates
from node.gates import LIMITS, Boxes, Gate

SHAPE = (4, 16, 16)
LABELS = arrays.arrays(np.uint8, SHAPE, elements=st.integers(0, 3))
MASKS = arrays.arrays(np.bool_, SHAPE)
SEEDS = st.integers(0, 2**32 - 1)


def flipped(labels: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
    """Labels of which so many voxels are others."""
    other = labels.copy()
    places = np.random.default_rng(seed).choice(labels.size, count, replace=False)
    other.flat[places] = (other.flat[places] + 1) % 4
    return other


def boxes(count: int, seed: int) -> Boxes:
    """Boxes in three dimensions that lie far from one another."""
    generator = np.random.default_rng(seed)
    low = np.arange(count)[:, None] * 100 + generator.uniform(0, 20, (count, 3))
    corners = np.hstack([low, low + generator.uniform(5, 30, (count, 3))])
    return Boxes(corners, generator.integers(0, 3, count), generator.uniform(0.5, 0.95, count))


def passes(found: tuple[Gate, ...]) -> bool:
    return all(gate.passed for gate in found)


@given(LABELS)
def test_an_answer_agrees_with_itself(labels: NDArray[np.uint8]) -> None:
    assert passes(gates.segmentation([(labels, labels.copy())]))


@given(LABELS, st.integers(0, 64), SEEDS)
def test_agreement_is_the_share_of_equal_voxels(
    labels: NDArray[np.uint8], count: int, seed: int
) -> None:
    other = flipped(labels, count, seed)
    assert gates.agreement(labels, other) == pytest.approx(1 - count / labels.size)
    assert gates.agreement(labels, other) == gates.agreement(other, labels)


@given(LABELS, SEEDS)
def test_more_than_one_voxel_of_a_thousand_is_too_many(
    labels: NDArray[np.uint8], seed: int
) -> None:
    allowed = int(labels.size * (1 - LIMITS.agreement))
    assert gates.segmentation([(labels, flipped(labels, allowed, seed))])[0].passed
    assert not gates.segmentation([(labels, flipped(labels, allowed + 1, seed))])[0].passed


@given(MASKS, MASKS)
def test_overlap_is_symmetric_and_one_only_of_equals(
    one: NDArray[np.bool_], other: NDArray[np.bool_]
) -> None:
    overlap = gates.dice(one, other)
    assert 0.0 <= overlap <= 1.0
    assert overlap == gates.dice(other, one)
    assert (overlap == 1.0) == bool((one == other).all())


def test_a_label_that_is_empty_in_both_is_equal_and_one_that_is_empty_in_one_is_not() -> None:
    nothing, something = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    something[0, 0, 0] = 2
    assert gates.dice(nothing > 0, nothing > 0) == 1.0
    assert gates.dice(nothing > 0, something > 0) == 0.0
    assert [str(gate) for gate in gates.segmentation([(something, nothing)])[1:]] == [
        "Dice of label 2 is 0, at least 0.995 is wanted"
    ]


def test_a_small_lesion_that_is_lost_fails_though_nearly_all_voxels_agree() -> None:
    reference = np.zeros((32, 64, 64), np.uint8)
    reference[10, 10:14, 10:14] = 1
    agreed, overlap = gates.segmentation([(reference, np.zeros_like(reference))])
    assert agreed.passed
    assert not overlap.passed


@given(LABELS, LABELS)
def test_the_worst_pair_decides_on_agreement(
    one: NDArray[np.uint8], other: NDArray[np.uint8]
) -> None:
    found = gates.segmentation([(one, one), (one, other)])[0]
    assert found.value == gates.agreement(one, other)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 0.98))
def test_a_probability_may_move_by_a_hundredth_and_not_across_the_operating_point(
    reference: float, candidate: float, threshold: float
) -> None:
    pair = (np.array([[reference]], np.float64), np.array([[candidate]], np.float64))
    found = gates.classification([pair], threshold)  # type: ignore[list-item]
    near = abs(reference - candidate) <= LIMITS.probability
    assert passes(found) == (near and (reference >= threshold) == (candidate >= threshold))


def test_without_an_operating_point_the_most_probable_class_decides() -> None:
    reference = np.array([[0.500, 0.495]], np.float32)
    candidate = np.array([[0.494, 0.497]], np.float32)
    moved, decided = gates.classification([(reference, candidate)], None)
    assert moved.passed
    assert not decided.passed


@given(st.integers(0, 8), SEEDS)
def test_the_order_of_boxes_does_not_count(count: int, seed: int) -> None:
    found = boxes(count, seed)
    order = np.random.default_rng(seed).permutation(count)
    turned = Boxes(found.corners[order], found.labels[order], found.scores[order])
    assert passes(gates.detection([(found, turned)]))


@given(st.integers(1, 8), SEEDS, st.floats(-3, 3))
def test_a_box_may_be_off_by_the_tolerance_and_no_more(count: int, seed: int, shift: float) -> None:
    found = boxes(count, seed)
    moved = found.corners.copy()
    moved[seed % count, seed % 6] += shift
    off = float(np.abs(moved - found.corners).max())
    other = replace(found, corners=moved)
    assert passes(gates.detection([(found, other)])) == (off <= LIMITS.box)


@given(st.integers(1, 8), SEEDS)
def test_a_box_more_or_less_is_found_out_unless_it_was_on_the_brink(count: int, seed: int) -> None:
    found = boxes(count, seed)
    fewer = Boxes(found.corners[1:], found.labels[1:], found.scores[1:])
    assert not passes(gates.detection([(found, fewer)], threshold=0.3))
    assert not passes(gates.detection([(fewer, found)], threshold=0.3))
    assert passes(gates.detection([(found, fewer)], threshold=float(found.scores[0])))


def test_another_label_or_another_score_is_another_box() -> None:
    found = boxes(3, 1)
    assert not passes(gates.detection([(found, replace(found, labels=found.labels + 1))]))
    assert not passes(gates.detection([(found, replace(found, scores=found.scores - 0.02))]))


def test_a_value_that_is_no_number_passes_nowhere_and_is_the_worst() -> None:
    nothing = Gate("any", float("nan"), 1.0)
    assert not nothing.passed
    assert not replace(nothing, at_most=True).passed
    assert nothing.worse_than(Gate("any", 0.0, 1.0))


@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 99))
def test_one_value_that_is_not_finite_is_found(value: float, place: int) -> None:
    answer = np.zeros((1, 1, 10, 10), np.float32)
    answer.flat[place] = value
    finite, _ = gates.soundness(np.zeros_like(answer), answer)
    assert not finite.passed


def test_one_bit_between_two_runs_is_found() -> None:
    first = np.ones(5, np.float32)
    second = np.nextafter(first, np.float32(2))
    assert gates.repeated(first, first.copy()).passed
    assert not gates.repeated(first, second).passed


def test_an_answer_of_another_shape_is_found() -> None:
    same = gates.soundness(np.zeros((1, 2)), np.zeros((2, 1)))[1]
    assert not same.passed
