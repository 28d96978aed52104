"""Probabilities become labels, and labels become cleaner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.domain.errors import InferenceError
from node.domain.volume import Volume
from node.steps.masks import (
    Argmax,
    Closing,
    FillHoles,
    LargestComponent,
    Opening,
    RemoveSmall,
    Threshold,
)
from tests.steps.volumes import affine

MM = affine((1, 1, 1))
THICK = affine((5, 1, 1))


def channels(*values: list[float]) -> Volume:
    """Probabilities on a line of voxels, one list per channel."""
    return Volume(np.array(values, np.float32)[:, None, None, :], MM)


def labels(*planes: str) -> Volume:
    """Labels drawn as text: one string per slice, rows parted by spaces, ``.`` is background."""
    drawn = [
        [[0 if c == "." else int(c) for c in row] for row in plane.split()] for plane in planes
    ]
    return Volume(np.array(drawn, np.uint8), MM)


def drawn(volume: Volume) -> list[str]:
    return [
        " ".join("".join("." if v == 0 else str(v) for v in row) for row in plane)
        for plane in volume.voxels
    ]


def test_probability_at_the_threshold_counts() -> None:
    after = Threshold(0.5).apply(channels([0.49, 0.5, 0.51]))
    assert after.voxels.ravel().tolist() == [0, 1, 1]


def test_most_probable_of_several_channels_wins_and_then_the_first() -> None:
    prediction = channels([0.6, 0.9, 0.7, 0.1], [0.8, 0.6, 0.7, 0.2])
    assert Threshold(0.5).apply(prediction).voxels.ravel().tolist() == [2, 1, 1, 0]


def test_each_channel_may_have_its_threshold_and_label() -> None:
    prediction = channels([0.6, 0.1], [0.9, 0.9], [0.6, 0.6])
    step = Threshold((0.5, 0.5, 0.7), labels=(7, 0, 9))
    assert step.apply(prediction).voxels.ravel().tolist() == [7, 0]


def test_argmax_takes_the_first_of_equals_and_channel_0_is_background() -> None:
    prediction = channels([0.4, 0.2, 0.3], [0.4, 0.2, 0.1], [0.2, 0.6, 0.6])
    assert Argmax().apply(prediction).voxels.ravel().tolist() == [0, 2, 2]
    assert Argmax(labels=(5, 0, 1)).apply(prediction).voxels.ravel().tolist() == [5, 1, 1]


@pytest.mark.parametrize(
    "step", [Threshold(labels=(1, 2)), Threshold((0.5, 0.4)), Argmax(labels=(0,))]
)
def test_labels_that_do_not_match_the_channels_are_refused(step: Threshold | Argmax) -> None:
    with pytest.raises(InferenceError, match="manifest"):
        step.apply(channels([0.1], [0.2], [0.3]))


def test_largest_part_of_each_label_stays() -> None:
    volume = labels("11.1. 1..22 .2...", "..... ..... .....", "..... 1.... .....")
    after = LargestComponent().apply(volume)
    assert drawn(after)[0] == "11... 1..22 ....."
    assert drawn(after)[2] == "..... ..... ....."


def test_of_equal_parts_the_first_stays() -> None:
    assert drawn(LargestComponent().apply(labels("11.11 ....."))) == ["11... ....."]


@pytest.mark.parametrize(("connectivity", "parts"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity_says_which_neighbours_count(connectivity: int, parts: int) -> None:
    # The second voxel shares an edge with the first, the third only a corner with the second.
    volume = labels("1.. ... ...", ".1. ... ...", "... ..1 ...")
    volume.voxels[1, 0, 1] = 1
    total = int(volume.voxels.sum())
    largest = LargestComponent(connectivity).apply(volume)  # type: ignore[arg-type]
    assert total - int(largest.voxels.sum()) == parts - 1


def test_part_of_exactly_the_minimum_stays_and_a_smaller_one_goes() -> None:
    volume = Volume(labels("111. .... 22.2").voxels, affine((5, 2, 10)))
    after = RemoveSmall(minimum_ml=0.2).apply(volume)
    assert drawn(after) == ["111. .... 22.."]
    assert drawn(RemoveSmall(minimum_ml=0.3).apply(volume)) == ["111. .... ...."]
    assert drawn(RemoveSmall(minimum_ml=0).apply(volume)) == drawn(volume)


def test_hole_in_a_slice_is_filled_and_one_that_opens_is_not() -> None:
    assert drawn(FillHoles().apply(labels("111 1.1 111"))) == ["111 111 111"]
    assert drawn(FillHoles().apply(labels("111 1.1 1.1"))) == ["111 1.1 1.1"]
    assert drawn(FillHoles().apply(labels("111 1.. 111"))) == ["111 1.. 111"]


def test_hole_that_opens_to_the_next_slice_is_filled_within_slices_only() -> None:
    tube = labels("111 111 111", "111 1.1 111", "111 1.1 111")
    assert drawn(FillHoles("slice").apply(tube)) == ["111 111 111"] * 3
    assert drawn(FillHoles("volume").apply(tube)) == drawn(tube)
    closed = labels("111 111 111", "111 1.1 111", "111 111 111")
    assert drawn(FillHoles("volume").apply(closed)) == ["111 111 111"] * 3


def test_other_label_in_a_hole_stays() -> None:
    assert drawn(FillHoles().apply(labels("1111 12.1 1111"))) == ["1111 1211 1111"]


def test_closing_bridges_a_gap_and_keeps_the_rest() -> None:
    volume = Volume(labels("....... 111.111 111.111 111.111 .......").voxels, THICK)
    assert drawn(Closing(1).apply(volume)) == ["....... 111.111 1111111 111.111 ......."]


def test_opening_removes_what_is_thinner_than_the_ball() -> None:
    volume = labels(*["....... .111... .111111 .111... ......."] * 3)
    after = Opening(1).apply(volume)
    assert drawn(after)[1] == "....... ..11... .1111.. ..11... ......."


def test_ball_is_round_in_millimetres_not_in_voxels() -> None:
    voxels = np.zeros((5, 9, 9), np.uint8)
    voxels[2, 2:7, 2:7] = 1
    thick = Volume(voxels, affine((5, 1, 1)))
    assert Opening(2).apply(thick).voxels.sum() > 0
    assert Opening(2).apply(Volume(voxels, MM)).voxels.sum() == 0


@st.composite
def label_volumes(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    seed = draw(st.integers(0, 1000))
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(label_volumes(), st.sampled_from([6, 18, 26]))
def test_cleaning_steps_only_remove_and_filling_only_adds(
    voxels: NDArray[np.uint8], connectivity: int
) -> None:
    volume = Volume(voxels, MM)
    for step in (
        LargestComponent(connectivity),  # type: ignore[arg-type]
        RemoveSmall(0.002, connectivity),  # type: ignore[arg-type]
        Opening(1),
    ):
        after = step.apply(volume).voxels
        assert ((after == voxels) | (after == 0)).all()
    for filler in (FillHoles("slice"), FillHoles("volume"), Closing(1)):
        after = filler.apply(volume).voxels
        assert ((after == voxels) | (voxels == 0)).all()


def flooded(
    voxels: NDArray[np.uint8], start: tuple[int, ...], connectivity: int
) -> set[tuple[int, ...]]:
    """The part around a voxel, written plainly."""
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    steps = [s for s in np.ndindex(3, 3, 3) if 0 < np.abs(np.array(s) - 1).sum() <= reach]
    part, edge = {start}, [start]
    while edge:
        here = np.array(edge.pop())
        near = {tuple(int(n) for n in here + s - 1) for s in np.array(steps)} - part
        for index in near:
            on_grid = all(0 <= a < n for a, n in zip(index, voxels.shape, strict=True))
            if on_grid and voxels[index] == voxels[start]:
                part.add(index)
                edge.append(index)
    return part


@settings(max_examples=60, deadline=None)
@given(label_volumes(), st.sampled_from([6, 18, 26]), st.integers(0, 6))
def test_removal_agrees_with_a_flood_fill_written_plainly(
    voxels: NDArray[np.uint8], connectivity: int, least: int
) -> None:
    expected = voxels.copy()
    for start in np.argwhere(voxels > 0):
        if len(flooded(voxels, tuple(start.tolist()), connectivity)) < least:
            expected[tuple(start)] = 0
    step = RemoveSmall(least / 1000, connectivity)  # type: ignore[arg-type]
    assert np.array_equal(step.apply(Volume(voxels, MM)).voxels, expected)


def sheet(*rows: str) -> Volume:
    """Labels of one slice, one text per row; a space is background."""
    table = [[int(letter) if letter.strip() else 0 for letter in row] for row in rows]
    return Volume(np.array([table], np.uint8), MM)


def shown(volume: Volume) -> list[str]:
    return ["".join(str(v) if v else " " for v in row) for row in volume.voxels[0]]


def test_region_named_first_wins_however_probable_the_others_are() -> None:
    soft = channels([0.9, 0.9, 0.9, 0.1], [0.6, 0.4, 0.6, 0.6], [0.7, 0.1, 0.4, 0.4])
    step = Threshold(0.5, labels=(1, 2, 4), precedence=(2, 1, 0))
    assert step.apply(soft).voxels.ravel().tolist() == [4, 1, 2, 2]
    without = Threshold(0.5, labels=(1, 0, 4), precedence=(1, 2, 0))
    assert without.apply(soft).voxels.ravel().tolist() == [4, 1, 1, 0]


def test_precedence_names_every_channel() -> None:
    with pytest.raises(InferenceError, match="name each once"):
        Threshold(precedence=(0, 0)).apply(channels([1.0], [1.0]))


BLOTS = sheet(
    "11  22 1",
    "11  22  ",
    "1  2   2",
)


@pytest.mark.parametrize(
    ("step", "rows"),
    [
        (LargestComponent(), ["11  22  ", "11  22  ", "1  2    "]),
        (LargestComponent(6, labels=(2,)), ["11  22 1", "11  22  ", "1       "]),
        (LargestComponent(6, count=2), ["11  22 1", "11  22  ", "1  2    "]),
        (LargestComponent(6, together=True), ["11      ", "11      ", "1       "]),
        (RemoveSmall(minimum_voxels=2), ["11  22  ", "11  22  ", "1  2    "]),
        (RemoveSmall(minimum_voxels=4, connectivity=6), ["11  22  ", "11  22  ", "1       "]),
        (RemoveSmall(minimum_voxels=5, together=True), ["11  22  ", "11  22  ", "1  2    "]),
    ],
)
def test_parts_stay_by_their_size(step: LargestComponent | RemoveSmall, rows: list[str]) -> None:
    assert shown(step.apply(BLOTS)) == rows


def test_labels_count_as_one_where_they_are_told_to() -> None:
    volume = sheet("112 1", "2   2")
    assert shown(LargestComponent(6, together=True).apply(volume)) == ["112  ", "2    "]
    assert shown(LargestComponent(6, labels=(1,), together=True).apply(volume)) == [
        "112  ",
        "2   2",
    ]
    empty = sheet("   ", "   ")
    assert shown(LargestComponent(together=True).apply(empty)) == ["   ", "   "]


def test_hole_is_closed_as_far_as_neighbours_reach() -> None:
    corner = sheet(" 11 ", "1  1", " 1 1", "  1 ")
    assert shown(FillHoles().apply(corner)) == [" 11 ", "1111", " 111", "  1 "]
    assert shown(FillHoles(connectivity=26).apply(corner)) == shown(corner)


def test_other_labels_inside_of_a_hole_stay_or_go() -> None:
    nested = sheet("1111", "12 1", "1111")
    assert shown(FillHoles().apply(nested)) == ["1111", "1211", "1111"]
    assert shown(FillHoles(over=True).apply(nested)) == ["1111", "1111", "1111"]
    assert shown(FillHoles(labels=(2,)).apply(nested)) == shown(nested)
