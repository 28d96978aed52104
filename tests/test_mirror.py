"""Blocks seen in the mirror are turned back to their place, and all count the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from node.sight import Axis, Window
from node.windows import predict
from tests.test_windows import (
    MODES,
    SHAPES,
    Array,
    Mode,
    Recorder,
    Tensors,
    identity,
    middle,
    nonlinear,
    volume,
    windows,
)

ALL: tuple[Axis, ...] = ("k", "j", "i")


def axes_of(window: Window) -> st.SearchStrategy[tuple[Axis, ...]]:
    named = ALL[1:] if window.planar else ALL
    return st.lists(st.sampled_from(named), unique=True).map(lambda axes: tuple(axes))


@settings(max_examples=60, deadline=None)
@given(st.data(), windows(), SHAPES)
def test_network_that_sees_no_sides_says_the_same_in_the_mirror(
    data: st.DataObject, window: Window, shape: tuple[int, ...]
) -> None:
    def network(feeds: Tensors) -> Tensors:
        inner = middle(feeds) if window.mode == "stack" else identity(feeds)
        return {"out": np.tanh(inner["out"])}

    image = volume(shape)
    mirrored = replace(window, mirror=data.draw(axes_of(window)))
    plain = predict(network, {"image": image}, window, "out")
    np.testing.assert_allclose(
        predict(network, {"image": image}, mirrored, "out"), plain, atol=3e-6
    )


def lopsided(feeds: Tensors) -> Tensors:
    """Depends on where in its block a voxel lies, differently along each axis."""
    image = feeds["image"]
    ramps = [np.linspace(0, n, length) for n, length in enumerate(image.shape[2:], 1)]
    place = sum(np.ix_(*ramps))
    return {"out": (np.tanh(image[:, :1]) + np.sin(place)).astype(np.float32)}


def plainly_mirrored(window: Window, image: Array) -> Array:
    """The mean over all flips of the whole volume, for windows whose one block is the volume."""
    answers = []
    for chosen in product(*[(False, True)] * len(window.mirror)):
        pairs = zip(window.mirror, chosen, strict=True)
        flipped = tuple(1 + ALL.index(axis) for axis, on in pairs if on)
        seen = {"image": np.flip(image, flipped)}
        answer = predict(lopsided, seen, replace(window, mirror=()), "out")
        answers.append(np.flip(answer, flipped))
    return np.asarray(np.mean(answers, axis=0, dtype=np.float64))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 3), *[st.integers(1, 6)] * 3), st.booleans())
def test_answer_is_the_mean_of_all_flips_turned_back(
    data: st.DataObject, shape: tuple[int, ...], fixed: bool
) -> None:
    mode: Mode = data.draw(st.sampled_from(MODES[:1] + MODES[2:]))
    window = Window(mode=mode, batch=2, fixed_batch=fixed)
    window = replace(window, mirror=data.draw(axes_of(window)))
    image = volume(shape)
    result = predict(lopsided, {"image": image}, window, "out")
    np.testing.assert_allclose(result, plainly_mirrored(window, image), atol=2e-6)


def test_each_block_is_mirrored_and_not_the_volume() -> None:
    network = Recorder()
    image = np.arange(6, dtype=np.float32).reshape(1, 1, 1, 6)
    window = Window("patch", patch=(1, 1, 4), overlap=0.5, mirror=("i",))
    predict(network, {"image": image}, window, "out")
    fed = [feeds["image"].ravel().tolist() for feeds in network.seen]
    assert fed == [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 4, 5], [5, 4, 3, 2]]


def test_flips_have_a_fixed_order_whatever_the_manifests() -> None:
    expected = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert Window("patch", mirror=("i", "k", "j")).flips == expected
    assert Window("slice").flips == ((),)


@settings(max_examples=30, deadline=None)
@given(st.data(), windows(), SHAPES)
def test_two_looks_in_the_mirror_are_bit_for_bit_the_same(
    data: st.DataObject, window: Window, shape: tuple[int, ...]
) -> None:
    window = replace(window, mirror=data.draw(axes_of(window)))
    first, second = (predict(nonlinear, {"image": volume(shape)}, window, "out") for _ in "ab")
    assert first.tobytes() == second.tobytes()


def test_networks_own_output_is_left_as_it_is() -> None:
    kept = np.ones((1, 1, 4, 4), np.float32)
    window = Window("slice", mirror=("j", "i"))
    predict(lambda _: {"out": kept}, {"image": volume((1, 1, 4, 4))}, window, "out")
    assert (kept == 1).all()


def test_probabilities_are_averaged_where_blocks_become_probabilities() -> None:
    def network(feeds: Tensors) -> Tensors:
        logits = np.zeros_like(feeds["image"])
        logits[..., 0] = 4
        return {"out": logits}

    window = Window("slice", mirror=("i",), logits=True)
    result = predict(network, {"image": volume((1, 1, 1, 2))}, window, "out")
    wanted = (1 / (1 + np.exp(-4)) + 0.5) / 2
    np.testing.assert_allclose(result.ravel(), [wanted, wanted], rtol=1e-6)
    raw = predict(network, {"image": volume((1, 1, 1, 2))}, replace(window, logits=False), "out")
    assert raw.ravel().tolist() == [2, 2]


def test_progress_counts_every_flip() -> None:
    told: list[tuple[int, int]] = []
    window = Window("slice", batch=2, mirror=("i",))
    predict(identity, {"image": volume((1, 3, 4, 4))}, window, "out", lambda *now: told.append(now))
    assert told == [(2, 6), (4, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize(
    "table",
    [
        {"mode": "patch", "mirror": ["x"]},
        {"mode": "patch", "mirror": ["i", "i"]},
        {"mode": "slice", "mirror": ["k"]},
        {"mode": "stack", "mirror": ["k", "i"]},
        {"mode": "patch", "sigma": 0},
        {"mode": "patch", "floor": 1},
        {"mode": "patch", "fill": "wrap"},
        {"mode": "patch", "placement": "random"},
    ],
)
def test_mirrors_and_weights_that_make_no_sense_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Window).validate_python(table)


@pytest.mark.parametrize(
    ("fill", "ends"),
    [("minimum", [1, 1]), ("edge", [5, 2]), ("reflect", [1, 7]), (0.0, [0, 0]), (-4.5, [-4.5] * 2)],
)
def test_what_lies_around_a_small_volume_is_as_asked(fill: str | float, ends: list[float]) -> None:
    network = Recorder()
    image = np.array([5, 1, 7, 2], np.float32).reshape(1, 1, 1, 4)
    window = Window("patch", patch=(1, 1, 6), fill=fill)  # type: ignore[arg-type]
    result = predict(network, {"image": image}, window, "out")
    fed = network.seen[0]["image"].ravel().tolist()
    assert [fed[0], fed[-1]] == ends
    assert fed[1:5] == [5, 1, 7, 2]
    assert np.array_equal(result, image)
