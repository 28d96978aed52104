"""The sweep with its kernels on the processor against ``windows.predict``: arithmetic and order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from node.domain.errors import DeviceMemoryFull, InferenceError, JobCancelled
from node.domain.tensor import Tensors, TensorSpec
from node.domain.volume import Volume
from node.gpu.canvas import Labelling
from node.gpu.sweep import Portion, Sweep
from node.gpu.task import Task
from node.sight import Window, tile
from node.steps.masks import Argmax, Threshold
from node.windows import predict
from tests.hosted.device import HostDevice, HostNetwork
from tests.hosted.networks import (
    EXAMPLES,
    PATCHES,
    SHAPES,
    Example,
    answering,
    hosted,
    volume,
    volumes,
    windows,
)

Arrays = dict[str, NDArray[Any]]

# The compiled kernels are the same for all examples.
often = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def swept(
    device: HostDevice,
    network: HostNetwork,
    volumes: Arrays,
    window: Window,
    slices: int | None = None,
) -> NDArray[np.float32]:
    """Probabilities; ``slices`` of the sum on the device at once, at least a block's."""
    budget = None
    if slices is not None:
        task = Task.of(network, volumes, window, "out")
        first = task.first(1 << 30)
        budget = task.bytes(Portion(first.batch, max(slices, task.least)))
    return Sweep(device, device.kernels(), network, budget).probability(volumes, window, "out")


def expected(network: HostNetwork, volumes: Arrays, window: Window) -> NDArray[np.float32]:
    """What the processor's window says to the volumes as the network wants them."""
    fed = {spec.name: volumes[spec.name].astype(spec.dtype) for spec in network.inputs}
    return predict(network.infer, fed, window, "out")


@settings(often, max_examples=120)
@given(one=EXAMPLES)
def test_a_sweep_gives_the_bits_of_the_processors_window(library: Path, one: Example) -> None:
    network = one.network(one.window)
    device = HostDevice(library, backward=one.backward)
    sweep = Sweep(device, device.kernels(), network, one.budget(network, one.window))
    result = sweep.probability(volumes(one), one.window, "out")
    assert np.array_equal(result, expected(network, volumes(one), one.window))
    device.close()


@settings(often, max_examples=40)
@given(one=EXAMPLES)
def test_logits_become_probabilities_before_they_are_blended(library: Path, one: Example) -> None:
    window = replace(one.window, logits=True)
    network = one.network(window)
    device = HostDevice(library)
    sweep = Sweep(device, device.kernels(), network, one.budget(network, window))
    result = sweep.probability(volumes(one), window, "out")
    # The exponential is the processor's, not numpy's; a CUDA device has another one again.
    np.testing.assert_allclose(result, expected(network, volumes(one), window), atol=2e-6)
    device.close()


@settings(often, max_examples=40)
@given(
    window=windows(),
    shape=SHAPES,
    slices=st.none() | st.integers(1, 9),
    rule=st.sampled_from(
        (
            Argmax(),
            Argmax(labels=(9, 0, 9)),
            Threshold(),
            Threshold(value=(0.2, 0.4, 0.0), labels=(3, 0, 200)),
        )
    ),
)
def test_labels_are_those_of_the_mask_steps(
    library: Path,
    window: Window,
    shape: tuple[int, int, int],
    slices: int | None,
    rule: Argmax | Threshold,
) -> None:
    window = replace(window, logits=True)
    volumes = {"image": volume(1, shape, "int16", 3)}
    network = hosted(answering(window, scale=6), window, {"image": "float32"})
    device = HostDevice(library)
    probability = swept(device, network, volumes, window, slices)
    labels = rule.apply(Volume(probability, np.eye(4))).voxels
    found = Sweep(device, device.kernels(), network).labels(
        volumes, window, "out", labelling(rule, certainty=True)
    )
    assert np.array_equal(found.labels, labels)
    assert found.certainty is not None
    chosen = found.certainty > 0
    assert (found.certainty[chosen] <= probability.max(axis=0)[chosen]).all()
    if isinstance(rule, Argmax):
        assert np.array_equal(found.certainty, probability.max(axis=0))
    device.close()


def labelling(rule: Argmax | Threshold, certainty: bool = False) -> Labelling:
    """The rule of a mask step for three classes."""
    if isinstance(rule, Argmax):
        return Labelling(rule.labels, certainty=certainty)
    values = rule.value if isinstance(rule.value, tuple) else (rule.value,) * 3
    return Labelling(rule.labels, values, certainty)


@pytest.mark.parametrize("after", ["sigmoid", "softmax"])
def test_what_was_blended_raw_becomes_probabilities_on_the_device(
    library: Path, after: Literal["sigmoid", "softmax"]
) -> None:
    volumes = {"image": volume(1, (21, 9, 9), "int16", 6)}
    network = plain(scale=6)
    raw = expected(network, volumes, PATCHES)
    wanted = special.softmax(raw, axis=0) if after == "softmax" else special.expit(raw)
    device = HostDevice(library)
    task = Task.of(network, volumes, PATCHES, "out", labels=1)
    sweep = Sweep(device, device.kernels(), network, task.bytes(Portion(1, 5)))
    found = sweep.probability(volumes, PATCHES, "out", after=after)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    rule = Labelling(values=(0.6, 0.5, 0.7), after=after)
    labels = Threshold(value=rule.values).apply(Volume(found, np.eye(4))).voxels
    assert 0 < np.count_nonzero(labels) < labels.size
    assert np.array_equal(sweep.labels(volumes, PATCHES, "out", rule).labels, labels)


def plain(window: Window = PATCHES, scale: float = 1, **options: Any) -> HostNetwork:
    """The network of three classes on one input."""
    return hosted(answering(window, scale=scale), window, {"image": "float32"}, **options)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_whole_numbers_reach_a_network_that_wants_them(library: Path, dtype: str) -> None:
    volumes = {"image": volume(1, (5, 6, 7), dtype, 2)}
    if dtype == "int32":
        volumes["image"][0, 4, 5, 6] = 2**31 - 1  # no float32 is that number

    def difference(feeds: Tensors) -> Tensors:
        assert feeds["image"].dtype == dtype
        return {"out": (feeds["image"].astype(np.int64) % 1000).astype(np.float32)}

    window = replace(PATCHES, fill=3.0)
    network = hosted(difference, window, {"image": dtype})
    device = HostDevice(library)
    assert np.array_equal(
        swept(device, network, volumes, window), expected(network, volumes, window)
    )


def test_every_half_and_the_floats_between_them_convert_as_numpy_does(library: Path) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    exact = halves.astype(np.float32)
    window = Window("volume")
    edges = [np.nextafter(exact, np.float32(way)) for way in (-np.inf, np.inf)]
    middles = (exact[1:] + exact[:-1]) / 2
    tiny = np.array([2.0**-25, 2.0**-25 * (1 + 2**-20), 2.0**-149, 65519.996], np.float32)
    for values, fed in (
        (halves, "float32"),
        (np.hstack([exact, *edges, middles, tiny]), "float16"),
    ):
        echo = hosted(lambda feeds: {"out": feeds["image"]}, window, {"image": fed}, fed)
        got = swept(HostDevice(library), echo, {"image": values.reshape(1, 1, 1, -1)}, window)
        assert np.array_equal(got.ravel(), values.astype(fed).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mirror", [(), ("i",)])
def test_an_output_that_is_not_finite_is_refused(
    library: Path, bad: float, dtype: str, mirror: tuple[Any, ...]
) -> None:
    window = replace(PATCHES, logits=True, mirror=mirror)

    def infer(feeds: Tensors) -> Tensors:
        answer = np.zeros(feeds["image"].shape, dtype)
        answer[feeds["image"] == 77] = bad
        return {"out": answer}

    network = hosted(infer, window, {"image": "float32"}, dtype)
    image = np.zeros((1, 8, 8, 8), np.int16)
    device = HostDevice(library)
    swept(device, network, {"image": image}, window)
    image[0, 7, 7, 7] = 77
    with pytest.raises(InferenceError, match="'out' holds NaN or infinite values"):
        swept(device, network, {"image": image}, window)
    device.close()


def test_a_value_that_is_not_finite_in_what_was_filled_in_is_refused_too(library: Path) -> None:
    def infer(feeds: Tensors) -> Tensors:
        return {"out": np.where(feeds["image"] == -7, np.nan, 0).astype(np.float32)}

    window = Window("patch", patch=(4, 4, 4), fill=-7.0)
    network = hosted(infer, window, {"image": "float32"})
    volumes = {"image": np.zeros((1, 2, 4, 4), np.int16)}
    with pytest.raises(InferenceError, match="NaN"):
        predict(infer, {"image": volumes["image"].astype(np.float32)}, window, "out")
    with pytest.raises(InferenceError, match="NaN"):
        swept(HostDevice(library), network, volumes, window)


def test_the_volume_goes_up_once_and_only_labels_come_back(library: Path) -> None:
    image = volume(1, (24, 20, 20), "int16", 4)
    device = HostDevice(library)
    rule = Labelling()
    found = Sweep(device, device.kernels(), plain()).labels({"image": image}, PATCHES, "out", rule)
    assert found.certainty is None
    tables = 24 * 10_000
    assert image.nbytes <= device.uploaded < image.nbytes + tables
    assert found.labels.nbytes <= device.downloaded < found.labels.nbytes + 4 * 200


def test_air_is_not_computed(library: Path) -> None:
    image = volume(1, (12, 13, 14), "int16", 5)
    window = replace(PATCHES, skip_air=True, batch=2, overlap=0.0)
    seen: list[int] = []

    def counting(feeds: Tensors) -> Tensors:
        seen.append(len(feeds["image"]))
        return answering(window)(feeds)

    network = hosted(counting, window, {"image": "float32"})
    expected(network, {"image": image}, window)
    blocks = sum(seen)
    assert 0 < blocks < 27
    swept(HostDevice(library), network, {"image": image}, window)
    assert sum(len(np.zeros(run["image"])) for run in network.runs) == blocks


def test_what_is_filled_in_below_the_volume_is_the_only_air(library: Path) -> None:
    image = {"image": np.zeros((1, 2, 4, 9), np.uint8)}
    for fill, blocks in ((-7.0, 4), (0.0, 1)):
        window = Window("patch", patch=(4, 4, 4), fill=fill, skip_air=True)
        network = plain(window)
        result = swept(HostDevice(library), network, image, window)
        assert len(network.runs) == blocks
        assert np.array_equal(result, expected(network, image, window))


def test_air_between_blocks_may_be_longer_than_the_sum(library: Path) -> None:
    image = np.zeros((1, 30, 6, 6), np.int16)
    image[0, [0, 29]] = 9
    for exclusive in (True, False):
        window = Window("slice", skip_air=True, exclusive=exclusive)
        network = plain(window)
        result = swept(HostDevice(library), network, {"image": image}, window, slices=1)
        assert np.array_equal(result, expected(network, {"image": image}, window))


def test_air_is_background_in_every_slab_that_its_blocks_reach(library: Path) -> None:
    image = np.zeros((1, 23, 12, 12), np.int16)
    image[0, :, :, 2:5] = 9
    window = replace(PATCHES, skip_air=True, exclusive=True, overlap=0.6)
    network = plain(window)
    for slices in (4, 5, 11, 23):
        result = swept(HostDevice(library), network, {"image": image}, window, slices)
        assert np.array_equal(result, expected(network, {"image": image}, window))
    assert (result[0, :, :, -1] > 0.99).all()


def test_a_fixed_batch_is_filled_up_with_its_last_block_and_a_free_one_is_not(
    library: Path,
) -> None:
    for fixed, last in ((True, 5), (False, 2)):
        window = Window("slice", batch=5, fixed_batch=fixed)
        fed: list[NDArray[Any]] = []

        def noted(feeds: Tensors, fed: list[NDArray[Any]] = fed) -> Tensors:
            fed.append(feeds["image"].copy())
            return {"out": feeds["image"] * 2}

        image = volume(1, (7, 4, 4), "int16", 0)
        swept(
            HostDevice(library),
            hosted(noted, window, {"image": "float32"}),
            {"image": image},
            window,
        )
        assert [len(one) for one in fed[-2:]] == [5, last]
        assert all(np.array_equal(block, image[:, 6]) for block in fed[-1][1:])


def test_a_batch_is_no_greater_than_the_network_takes(library: Path) -> None:
    network = plain(batches=(1, 2))
    swept(HostDevice(library), network, {"image": volume(1, (8, 8, 8), "int16", 0)}, PATCHES)
    assert {run["image"][0] for run in network.runs} == {2}


def test_a_batch_is_no_smaller_than_the_network_takes(library: Path) -> None:
    network, volumes = plain(batches=(2, 64)), {"image": volume(1, (4, 5, 11), "int16", 0)}
    result = swept(HostDevice(library), network, volumes, PATCHES)
    assert [run["image"][0] for run in network.runs] == [3]
    assert np.array_equal(result, expected(network, volumes, PATCHES))
    one = {"image": volume(1, (4, 5, 6), "int16", 0)}
    result = swept(HostDevice(library), network, one, PATCHES)
    assert network.runs[-1]["image"][0] == 2
    assert np.array_equal(result, expected(network, one, PATCHES))


class Full(HostNetwork):
    """A network without room for more than so many blocks, nor beside more than so much memory."""

    def __init__(self, network: HostNetwork, device: HostDevice, most: int, beside: int) -> None:
        super().__init__(network.infer, network.inputs, network.outputs)
        self._device, self._most, self._beside = device, most, beside

    def run(self, addresses: Any, inputs: Any) -> None:
        if inputs["image"][0] > self._most or self._device.used > self._beside:
            raise DeviceMemoryFull("no room for scratch memory")
        super().run(addresses, inputs)


def test_a_full_device_halves_the_batch_and_then_the_slices_and_the_answer_stays(
    library: Path,
) -> None:
    window = replace(PATCHES, batch=4)
    volumes = {"image": volume(1, (21, 9, 9), "int16", 6)}
    device = HostDevice(library)
    task = Task.of(plain(window), volumes, window, "out")
    network = Full(plain(window), device, 1, task.bytes(Portion(1, 5)) + 1000)
    told: list[tuple[Portion, Portion]] = []
    sweep = Sweep(
        device, device.kernels(), network, 1 << 30, lambda old, new, _: told.append((old, new))
    )
    result = sweep.probability(volumes, window, "out")
    tried = [told[0][0], *(after for _, after in told)]
    assert [(one.batch, one.slices) for one in tried] == [
        (4, 21),
        (2, 21),
        (1, 21),
        (1, 10),
        (1, 5),
    ]
    assert np.array_equal(result, expected(network, volumes, window))
    device.close()


def test_a_device_that_is_always_full_is_given_up_and_nothing_is_left_on_it(library: Path) -> None:
    device = HostDevice(library)
    network = Full(plain(), device, 0, 0)
    with pytest.raises(DeviceMemoryFull, match="no room for scratch memory"):
        swept(device, network, {"image": volume(1, (9, 9, 9), "int16", 6)}, PATCHES)
    device.close()


def never(before: Portion, after: Portion, reason: str) -> None:
    """For sweeps that must fit as they are."""
    pytest.fail(f"{before} did not fit: {reason}")


@pytest.mark.parametrize("more", [{}, {"mirror": ("k", "i")}, {"floor": 0.3, "skip_air": True}])
def test_what_is_on_the_device_stays_within_the_budget(library: Path, more: Any) -> None:
    window = replace(PATCHES, batch=4, **more)
    image = {"image": volume(1, (40, 24, 24), "int16", 6)}
    task = Task.of(plain(window), image, window, "out", labels=5)
    whole = task.bytes(task.first(1 << 30))
    least = task.bytes(Portion(1, task.least))
    for budget in (whole, (whole + least) // 2, least + 100):
        device = HostDevice(library, budget + 1000)
        sweep = Sweep(device, device.kernels(), plain(window), budget, never)
        sweep.labels(image, window, "out", Labelling(certainty=True))
        device.close()
    with pytest.raises(DeviceMemoryFull, match=r"needs \d+ MB .* at least"):
        task.first(least - 1)


def test_a_budget_takes_slices_before_blocks(library: Path) -> None:
    window = replace(PATCHES, batch=4)
    task = Task.of(plain(window), {"image": volume(1, (40, 24, 24), "int16", 6)}, window, "out")
    assert task.first(task.bytes(Portion(4, 4))) == Portion(4, 4)
    assert task.first(task.bytes(Portion(4, 4)) - 1).batch == 2


def test_progress_rises_to_the_end_and_counts_turns(library: Path) -> None:
    window = replace(PATCHES, mirror=("j", "i"), batch=2)
    told: list[tuple[int, int]] = []
    device = HostDevice(library)
    sweep = Sweep(device, device.kernels(), plain(window))
    image = volume(1, (8, 10, 12), "int16", 0)
    sweep.probability({"image": image}, window, "out", lambda a, b: told.append((a, b)))
    total = len(tile((8, 10, 12), window).places()) * 4
    assert told == [(done, total) for done in range(2, total + 1, 2)]


def test_progress_does_not_stop_the_device_at_every_small_batch(library: Path) -> None:
    window = Window("slice", batch=1)
    told: list[int] = []
    device = HostDevice(library)
    sweep = Sweep(device, device.kernels(), plain(window))
    image = volume(1, (1000, 2, 2), "int16", 0)
    sweep.probability({"image": image}, window, "out", lambda done, _: told.append(done))
    assert len(told) == 100
    assert told[-1] == 1000


def test_a_cancelled_sweep_leaves_nothing_on_the_device(library: Path) -> None:
    def cancel(done: int, total: int) -> None:
        raise JobCancelled("cancelled")

    device = HostDevice(library)
    sweep = Sweep(device, device.kernels(), plain())
    with pytest.raises(JobCancelled):
        sweep.probability({"image": volume(1, (9, 9, 9), "int16", 0)}, PATCHES, "out", cancel)
    device.close()


@pytest.mark.parametrize(
    ("volumes", "window", "output", "words"),
    [
        ({"other": np.zeros((1, 4, 5, 6), np.int16)}, PATCHES, "out", r"takes the tensors \['im"),
        ({"image": np.zeros((4, 5, 6), np.int16)}, PATCHES, "out", "on one grid"),
        ({"image": np.zeros((1, 0, 5, 6), np.int16)}, PATCHES, "out", "on one grid"),
        ({"image": np.zeros((1, 4, 5, 6))}, PATCHES, "out", "float64 cannot go to the GPU"),
        ({"image": np.zeros((1, 4, 5, 6), np.int16)}, PATCHES, "prob", "has no output 'prob'"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    library: Path, volumes: Arrays, window: Window, output: str, words: str
) -> None:
    device = HostDevice(library)
    with pytest.raises(InferenceError, match=words):
        Sweep(device, device.kernels(), plain()).probability(volumes, window, output)


def test_an_output_of_another_shape_or_type_is_refused(library: Path) -> None:
    image = {"image": np.zeros((1, 8, 8, 8), np.int16)}
    wrong = hosted(lambda feeds: {"out": feeds["image"][..., :2]}, PATCHES, {"image": "float32"})
    with pytest.raises(InferenceError, match=r"has shape .* needs \(3, -1, 4, 5, 6\)"):
        swept(HostDevice(library), wrong, image, PATCHES)
    spec = TensorSpec("out", (-1, 3, -1, -1, -1), "int64")
    labels = HostNetwork(answering(PATCHES), plain().inputs, (spec,))
    with pytest.raises(InferenceError, match="GPU blends float32 and float16"):
        swept(HostDevice(library), labels, image, PATCHES)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Labelling(labels=(1, 2)), "3 channels .* 2 labels"),
        (Labelling(values=(0.5,)), "3 channels .* 1 values"),
        (Labelling(labels=(0, 1, 256)), "up to 255"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(library: Path, rule: Labelling, words: str) -> None:
    device = HostDevice(library)
    sweep = Sweep(device, device.kernels(), plain())
    with pytest.raises(InferenceError, match=words):
        sweep.labels({"image": volume(1, (5, 5, 6), "int16", 0)}, PATCHES, "out", rule)
    device.close()


def test_bytes_in_another_order_and_views_go_up_as_they_are_meant(library: Path) -> None:
    image = volume(1, (9, 9, 9), "int16", 6)
    network = plain()
    wanted = expected(network, {"image": image}, PATCHES)
    for same in (image.astype(">i2"), np.asfortranarray(image), image[:, ::-1][:, ::-1]):
        assert np.array_equal(swept(HostDevice(library), network, {"image": same}, PATCHES), wanted)
