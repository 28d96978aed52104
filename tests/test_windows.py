"""Blocks cut from a volume are put together again as if they had never been cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.windows import Window, predict, tile

Array = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]

Mode = Literal["slice", "stack", "patch", "volume"]
MODES: tuple[Mode, ...] = (
    "slice",
    "stack",
    "patch",
    "volume",
)


def volume(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def identity(feeds: Tensors) -> Tensors:
    return {"out": feeds["image"]}


def middle(feeds: Tensors) -> Tensors:
    """Of a stack of three, for each channel, the slice itself."""
    return {"out": feeds["image"][:, 1::3]}


class Recorder:
    """A network that remembers what it was given."""

    def __init__(self, network: Callable[[Tensors], Tensors] = identity) -> None:
        self.network = network
        self.seen: list[Tensors] = []

    def __call__(self, feeds: Tensors) -> Tensors:
        self.seen.append(feeds)
        return self.network(feeds)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    mode = draw(st.sampled_from(MODES))
    axes = {"slice": 2, "stack": 2, "patch": 3, "volume": 0}[mode]
    return Window(
        mode=mode,
        patch=draw(st.tuples(*[st.integers(0, 9)] * axes)),
        overlap=draw(st.floats(0, 0.9)),
        batch=draw(st.integers(1, 5)),
        fixed_batch=draw(st.booleans()),
        multiple=draw(st.sampled_from([1, 4])),
    )


SHAPES = st.tuples(st.integers(1, 3), *[st.integers(1, 11)] * 3)


@settings(max_examples=120, deadline=None)
@given(window=windows(), shape=SHAPES)
def test_identity_network_returns_the_volume(window: Window, shape: tuple[int, ...]) -> None:
    image = volume(shape)
    network = middle if window.mode == "stack" else identity
    result = predict(network, {"image": image}, window, "out")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, image, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_do_not_overlap_are_copied_bit_for_bit(mode: str) -> None:
    image = volume((2, 4, 8, 12))
    patch = {"slice": (4, 6), "stack": (4, 6), "patch": (2, 4, 6), "volume": ()}[mode]
    window = Window(mode=mode, patch=patch, overlap=0, batch=3)  # type: ignore[arg-type]
    result = predict(middle if mode == "stack" else identity, {"image": image}, window, "out")
    assert np.array_equal(result, image)


def nonlinear(feeds: Tensors) -> Tensors:
    """Depends on where in its block a voxel lies, so that blending matters."""
    image = feeds["image"]
    ramp = np.linspace(0, 1, image.shape[-1], dtype=np.float32)
    return {
        "out": np.tanh(image[:, :1]) * (1 + ramp) + image.mean(axis=(-2, -1), keepdims=True)[:, :1]
    }


def naive(infer: Callable[[Tensors], Tensors], image: Array, window: Window) -> NDArray[np.float64]:
    """Every block by itself, weighted voxel by voxel and divided by the sum of weights."""
    planar = window.planar
    want = (1, *(window.patch or (0, 0))) if planar else window.patch or (0, 0, 0)
    multiple = window.multiple
    block = [w or -(-n // multiple) * multiple for w, n in zip(want, image.shape[1:], strict=True)]
    room = [max(b, n) - n for b, n in zip(block, image.shape[1:], strict=True)]
    padded = np.stack(
        [np.pad(c, [(r // 2, r - r // 2) for r in room], constant_values=c.min()) for c in image]
    )
    lines = []
    for n, b in zip(padded.shape[1:], block, strict=True):
        gaps = int(np.ceil((n - b) / max(1, int(b * (1 - window.overlap) + 1e-9))))
        lines.append([(n - b) * g // max(gaps, 1) for g in range(gaps + 1)])
    grid = np.meshgrid(*[(np.arange(b) - (b - 1) / 2) / (0.125 * b) for b in block], indexing="ij")
    importance = np.exp(-0.5 * np.square(grid).sum(axis=0))
    total: Any = None
    weight = np.zeros(padded.shape[1:])
    for k, j, i in product(*lines):
        part = np.s_[:, k : k + block[0], j : j + block[1], i : i + block[2]]
        fed = padded[part][None]
        out = infer({"image": fed[:, :, 0] if planar else fed})["out"][0].reshape(-1, *block)
        total = np.zeros((len(out), *weight.shape)) if total is None else total
        total[part] += out * importance
        weight[part[1:]] += importance
    inner = [slice(r // 2, r // 2 + n) for r, n in zip(room, image.shape[1:], strict=True)]
    return np.asarray((total / weight)[(slice(None), *inner)])


@settings(max_examples=60, deadline=None)
@given(window=windows(), shape=SHAPES)
def test_blending_agrees_with_a_plain_reference(window: Window, shape: tuple[int, ...]) -> None:
    if window.mode == "stack":
        window = replace(window, mode="slice")
    image = volume(shape)
    result = predict(nonlinear, {"image": image}, window, "out")
    np.testing.assert_allclose(result, naive(nonlinear, image, window), atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(window=windows(), shape=SHAPES)
def test_channels_last_is_the_same_as_channels_first(
    window: Window, shape: tuple[int, ...]
) -> None:
    def last(feeds: Tensors) -> Tensors:
        first = np.ascontiguousarray(np.moveaxis(feeds["image"], -1, 1))
        assert feeds["image"].flags.c_contiguous
        return {"out": np.moveaxis(nonlinear({"image": first})["out"], 1, -1)}

    layout: Literal["NHWC", "NDHWC"] = "NHWC" if window.planar else "NDHWC"
    image = volume(shape)
    expected = predict(nonlinear, {"image": image}, window, "out")
    result = predict(last, {"image": image}, replace(window, layout=layout), "out")
    assert np.array_equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(window=windows(), shape=SHAPES, batch=st.integers(1, 6), fixed=st.booleans())
def test_batch_size_does_not_matter(
    window: Window, shape: tuple[int, ...], batch: int, fixed: bool
) -> None:
    image = volume(shape)
    expected = predict(nonlinear, {"image": image}, window, "out")
    other = replace(window, batch=batch, fixed_batch=fixed)
    assert np.array_equal(predict(nonlinear, {"image": image}, other, "out"), expected)


def test_last_batch_is_filled_only_for_a_network_that_wants_it() -> None:
    image = volume((1, 7, 4, 4))
    for fixed, sizes in [(False, [3, 3, 1]), (True, [3, 3, 3])]:
        network = Recorder()
        window = Window(mode="slice", batch=3, fixed_batch=fixed)
        predict(network, {"image": image}, window, "out")
        assert [len(feeds["image"]) for feeds in network.seen] == sizes


@settings(max_examples=60, deadline=None)
@given(window=windows(), shape=SHAPES, seed=st.integers(0, 50))
def test_skipping_air_does_not_change_what_a_network_that_maps_air_to_0_says(
    window: Window, shape: tuple[int, ...], seed: int
) -> None:
    image = np.abs(volume(shape, seed))
    image[:, np.random.default_rng(seed).random(shape[1:]) < 0.8] = 0
    network = middle if window.mode == "stack" else identity
    expected = predict(network, {"image": image}, window, "out")
    skipping = replace(window, skip_air=True, air=0.0)
    assert np.array_equal(predict(network, {"image": image}, skipping, "out"), expected)


def test_blocks_of_air_are_not_computed() -> None:
    image = np.full((1, 12, 6, 6), -3.0, np.float32)
    image[0, 5, 2, 2] = 1
    network = Recorder()
    predict(network, {"image": image}, Window(mode="slice", skip_air=True), "out")
    assert len(network.seen) == 1
    assert network.seen[0]["image"].max() == 1


def test_stack_is_air_only_when_its_neighbours_are() -> None:
    image = np.zeros((1, 12, 6, 6), np.float32)
    image[0, 5, 2, 2] = 1
    network = Recorder(middle)
    predict(network, {"image": image}, Window(mode="stack", skip_air=True), "out")
    assert len(network.seen) == 3


def test_block_is_air_only_when_it_is_in_every_input() -> None:
    image, other = np.zeros((2, 1, 6, 4, 4), np.float32)
    image[0, 1], other[0, 4] = 1, 1
    network = Recorder()
    window = Window(mode="slice", skip_air=True)
    predict(network, {"image": image, "second": other}, window, "out")
    assert len(network.seen) == 2


def test_volume_of_air_alone_is_still_answered() -> None:
    image = np.full((1, 5, 4, 4), -1, np.float32)
    network = Recorder(lambda feeds: {"out": np.zeros((len(feeds["image"]), 2, 4, 4), np.float32)})
    result = predict(network, {"image": image}, Window(mode="slice", skip_air=True), "out")
    assert result.shape == (2, 5, 4, 4)
    assert len(network.seen) == 1


def test_skipped_air_is_background_where_classes_exclude_one_another() -> None:
    image = np.zeros((1, 9, 9, 9), np.float32)
    image[0, :3, :3, :3] = 1

    def network(feeds: Tensors) -> Tensors:
        tissue = feeds["image"] > 0.5
        return {"out": np.concatenate([~tissue, tissue], axis=1).astype(np.float32)}

    window = Window(mode="patch", patch=(4, 4, 4), skip_air=True, exclusive=True)
    result = predict(network, {"image": image}, window, "out")
    np.testing.assert_allclose(result.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(result[1], image[0], atol=1e-6)


def test_volume_of_air_alone_is_background_alone() -> None:
    def network(feeds: Tensors) -> Tensors:
        air = np.ones_like(feeds["image"])
        return {"out": np.concatenate([air, 1 - air], axis=1)}

    window = Window("patch", patch=(3, 3, 3), skip_air=True, exclusive=True)
    result = predict(network, {"image": np.zeros((1, 5, 5, 5), np.float32)}, window, "out")
    np.testing.assert_allclose(result[0], 1, atol=1e-6)
    assert (result[1] == 0).all()


def test_logits_become_probabilities_before_they_are_blended() -> None:
    image = volume((3, 4, 9, 9)) * 5
    window = Window(mode="slice", patch=(5, 5), logits=True)
    each = predict(identity, {"image": image}, window, "out")
    np.testing.assert_allclose(each, 1 / (1 + np.exp(-image)), atol=1e-6)
    result = predict(identity, {"image": image}, replace(window, exclusive=True), "out")
    power = np.exp(image - image.max(axis=0))
    np.testing.assert_allclose(result, power / power.sum(axis=0), atol=1e-6)


def test_stack_holds_each_channel_in_turn_with_its_neighbours_and_repeated_ends() -> None:
    image = np.zeros((2, 4, 2, 2), np.float32)
    image += np.arange(4, dtype=np.float32)[:, None, None]
    image[1] += 10
    network = Recorder(middle)
    predict(network, {"image": image}, Window(mode="stack", stack=3, batch=4), "out")
    fed = network.seen[0]["image"][:, :, 0, 0]
    assert fed.tolist() == [
        [0, 0, 1, 10, 10, 11],
        [0, 1, 2, 10, 11, 12],
        [1, 2, 3, 11, 12, 13],
        [2, 3, 3, 12, 13, 13],
    ]


def test_stack_wider_than_the_volume_repeats_its_ends() -> None:
    network = Recorder(lambda feeds: {"out": feeds["image"][:, 2:3]})
    predict(network, {"image": volume((1, 2, 3, 3))}, Window(mode="stack", stack=5), "out")
    assert network.seen[0]["image"].shape == (1, 5, 3, 3)
    assert np.array_equal(network.seen[0]["image"][0, 0], network.seen[0]["image"][0, 2])


def test_several_inputs_see_the_same_place() -> None:
    image = volume((1, 5, 9, 9))

    def network(feeds: Tensors) -> Tensors:
        assert np.array_equal(feeds["image"] * 2, feeds["double"])
        return {"out": feeds["image"] + feeds["double"]}

    window = Window(mode="patch", patch=(3, 4, 4), batch=2)
    result = predict(network, {"image": image, "double": image * 2}, window, "out")
    np.testing.assert_allclose(result, image * 3, atol=1e-5)


def test_axes_seen_whole_are_filled_to_the_multiple_with_the_lowest_value() -> None:
    image = volume((2, 5, 9, 10)) + 3
    network = Recorder()
    predict(network, {"image": image}, Window(mode="volume", multiple=8), "out")
    fed = network.seen[0]["image"]
    assert fed.shape == (1, 2, 8, 16, 16)
    assert fed[0, 1].min() == image[1].min()
    assert fed[0, 1, 0, 0, 0] == image[1].min()


def test_number_type_of_the_volume_is_fed() -> None:
    network = Recorder(lambda feeds: {"out": feeds["image"].astype(np.float32)})
    image = volume((1, 2, 4, 4)).astype(np.float16)
    result = predict(network, {"image": image}, Window(mode="slice"), "out")
    assert network.seen[0]["image"].dtype == np.float16
    assert result.dtype == np.float32


def test_progress_counts_blocks_to_the_last() -> None:
    told: list[tuple[int, int]] = []
    window = Window(mode="slice", batch=2)
    predict(
        identity, {"image": volume((1, 5, 3, 3))}, window, "out", lambda a, b: told.append((a, b))
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_weights_of_all_blocks_add_up_to_1_everywhere() -> None:
    tiling = tile((20, 33, 41), Window(mode="patch", patch=(8, 16, 12), overlap=0.6))
    total = np.zeros(tiling.shape)
    for place in tiling.places():
        total[tiling.region(place)] += tiling.weight(place)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_block_weighs_most_in_its_middle() -> None:
    tiling = tile((1, 64, 64), Window(mode="slice", patch=(32, 32)))
    inner = tiling.weight((0, 1, 1))[0]
    assert inner[16, 16] > 0.7 > 0.3 > inner[0, 0]


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), block=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_blocks_cover_an_axis_and_overlap_as_asked(length: int, block: int, overlap: float) -> None:
    starts = tile(
        (length, 1, 1), Window(mode="patch", patch=(block, 1, 1), overlap=overlap)
    ).starts[0]
    assert starts[0] == 0
    assert starts[-1] + block == max(length, block)
    assert list(starts) == sorted(set(starts))
    assert all(
        b - a <= max(1, block * (1 - overlap) + 1e-6)
        for a, b in zip(starts, starts[1:], strict=False)
    )
