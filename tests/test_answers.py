"""Votes are counted as stated, and probabilities are found nowhere that was not looked at."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from node.answers import channels, kept, voted
from node.steps.masks import Argmax, FillHoles, Threshold
from node.steps.nnunet import Regions
from node.windows import probable

Labels = NDArray[np.uint8]
BALLOTS = st.integers(1, 5).flatmap(
    lambda count: st.lists(
        arrays(np.uint8, (2, 2, 3), elements=st.sampled_from([0, 1, 2, 200])),
        min_size=count,
        max_size=count,
    )
)


@given(BALLOTS)
def test_most_votes_win_and_of_equal_ones_the_lowest_label(ballots: list[Labels]) -> None:
    elected = voted(ballots)
    assert elected.dtype == np.uint8
    for place in np.ndindex(elected.shape):
        votes = Counter(int(ballot[place]) for ballot in ballots)
        wanted = min(votes, key=lambda label: (-votes[label], label))
        assert elected[place] == wanted


@given(BALLOTS)
def test_order_of_the_networks_does_not_matter_to_a_vote(ballots: list[Labels]) -> None:
    assert np.array_equal(voted(ballots), voted(ballots[::-1]))


@given(arrays(np.uint8, (2, 3, 4)), st.integers(1, 4))
def test_vote_of_equal_ballots_is_the_ballot(ballot: Labels, count: int) -> None:
    assert np.array_equal(voted([ballot] * count), ballot)


def test_one_against_one_is_background() -> None:
    lesion, nothing = np.ones((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.uint8)
    assert voted([lesion, nothing]).item() == 0
    assert voted([lesion, nothing, lesion]).item() == 1


@pytest.mark.parametrize("exclusive", [False, True])
def test_logits_become_probabilities_over_the_classes(exclusive: bool) -> None:
    logits = np.random.default_rng(1).normal(0, 30, (3, 4, 5, 6)).astype(np.float32)
    result = probable(logits, exclusive=exclusive)
    power = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    softmax, sigmoid = power / power.sum(axis=0), 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, softmax if exclusive else sigmoid, atol=1e-6)


def test_nothing_is_found_where_nothing_was_seen() -> None:
    coverage = np.array([1, 0.7, 0.3, 0]).reshape(1, 1, 4)
    half = np.full((2, 1, 1, 4), 0.5, np.float32)
    assert kept(half.copy(), coverage, exclusive=False)[1].ravel().tolist() == [0.5, 0.5, 0, 0]
    background, finding = kept(half.copy(), coverage, exclusive=True)[:, 0, 0]
    assert background.tolist() == [0.5, 0.5, 1, 1]
    assert finding.tolist() == [0.5, 0.5, 0, 0]


def test_label_knows_its_channel() -> None:
    assert channels(Threshold(), 2) == {1: 0, 2: 1}
    assert channels(Argmax(), 3) == {1: 1, 2: 2}
    assert channels(Threshold(labels=(0, 7, 7)), 3) == {7: 1}
    assert channels(Regions(labels=(3, 1)), 2) == {3: 0, 1: 1}
    assert channels(FillHoles(), 3) == {}
