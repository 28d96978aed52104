"""The sliding window on a real device: what ``tests/hosted`` asks of the kernels, asked again here.

The same examples, so a difference can only come from CUDA: the compiler, the threads, the copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.gpu import kernels
from node.gpu.canvas import Labelling
from node.gpu.device import Device, Kernels
from node.gpu.sweep import Portion, Sweep
from node.gpu.task import Shapes, Task
from node.sight import Window
from node.windows import predict
from tests.gpu.conftest import Gpu
from tests.gpu.unets import write
from tests.hosted.device import HostNetwork
from tests.hosted.networks import EXAMPLES, PATCHES, Example, answering, hosted, volume, volumes

often = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def loaded(device: Device) -> Kernels:
    """The kernels, compiled for this device."""
    return device.kernels(kernels.image(device.card.architecture))


@dataclass(frozen=True)
class Lent:
    """Memory of a device that somebody else holds."""

    address: int
    size: int

    def free(self) -> None:
        """Whoever holds it does that."""


class Carried(HostNetwork):
    """A network of the processor between tensors of the device: carried down, and up again."""

    def __init__(self, network: HostNetwork, device: Device) -> None:
        batches = (network.max_batch, network.smallest_batch)
        super().__init__(network.infer, network.inputs, network.outputs, *batches)
        self._device = device

    def run(self, addresses: Mapping[str, int], inputs: Shapes) -> None:
        """Wait for the inputs, compute, and put the outputs where they belong."""
        feeds = {spec.name: self._down(spec, addresses, inputs) for spec in self.inputs}
        self._device.synchronise()
        for name, answer in self.infer(feeds).items():
            held = np.ascontiguousarray(answer)
            self._device.upload(Lent(addresses[name], held.nbytes), held)
            self._device.synchronise()

    def _down(self, spec: TensorSpec, addresses: Mapping[str, int], inputs: Shapes) -> NDArray[Any]:
        array = np.empty(inputs[spec.name], spec.dtype)
        self._device.download(array, Lent(addresses[spec.name], array.nbytes))
        return array


def swept(device: Device, loaded: Kernels, one: Example, window: Window) -> NDArray[np.float32]:
    """Probabilities of an example."""
    network = Carried(one.network(window), device)
    budget = one.budget(network, window)
    return Sweep(device, loaded, network, budget).probability(volumes(one), window, "out")


def expected(one: Example, window: Window) -> NDArray[np.float32]:
    """What the processor's window says."""
    network = one.network(window)
    fed = {spec.name: volumes(one)[spec.name].astype(spec.dtype) for spec in network.inputs}
    return predict(network.infer, fed, window, "out")


@settings(often, max_examples=100)
@given(one=EXAMPLES)
def test_a_device_gives_the_bits_of_the_processors_window(
    device: Device, loaded: Kernels, one: Example
) -> None:
    assert np.array_equal(swept(device, loaded, one, one.window), expected(one, one.window))
    assert device.used == 0


@settings(often, max_examples=50)
@given(one=EXAMPLES)
def test_a_device_differs_by_its_exponential_alone(
    device: Device, loaded: Kernels, one: Example
) -> None:
    window = replace(one.window, logits=True)
    found = swept(device, loaded, one, window)
    np.testing.assert_allclose(found, expected(one, window), atol=2e-6)
    assert np.array_equal(swept(device, loaded, one, window), found)


@settings(often, max_examples=50)
@given(one=EXAMPLES, values=st.sampled_from(((), (0.3, 0.5, 0.1))))
def test_labels_are_those_of_the_same_probabilities(
    device: Device, loaded: Kernels, one: Example, values: tuple[float, ...]
) -> None:
    window = replace(one.window, logits=True, exclusive=True)
    probability = swept(device, loaded, one, window)
    rule = Labelling(values=values, certainty=True)
    network = Carried(one.network(window), device)
    found = Sweep(device, loaded, network).labels(volumes(one), window, "out", rule)
    best = probability.argmax(axis=0)
    if values:
        may = probability >= np.array(values, np.float32)[:, None, None, None]
        best = np.where(may.any(axis=0), np.where(may, probability, -1).argmax(axis=0) + 1, 0)
    assert np.array_equal(found.labels, best)
    assert found.certainty is not None
    some = found.labels > 0
    assert np.array_equal(found.certainty[some], probability.max(axis=0)[some]) or values


def test_every_half_and_the_floats_between_them_convert_as_numpy_does(
    device: Device, loaded: Kernels
) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    exact = halves.astype(np.float32)
    middles = (exact[1:] + exact[:-1]) / 2
    floats = np.hstack([exact, middles, np.nextafter(middles, np.float32(0))])
    window = Window("volume")
    for values, fed in ((halves, "float32"), (floats, "float16")):
        echo = hosted(lambda feeds: {"out": feeds["image"]}, window, {"image": fed}, fed)
        sweep = Sweep(device, loaded, Carried(echo, device))
        got = sweep.probability({"image": values.reshape(1, 1, 1, -1)}, window, "out")
        assert np.array_equal(got.ravel(), values.astype(fed).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(
    device: Device, loaded: Kernels, bad: float
) -> None:
    def infer(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"out": np.where(feeds["image"] == 77, bad, 0).astype(np.float16)}

    network = Carried(hosted(infer, PATCHES, {"image": "float32"}, "float16"), device)
    image = np.zeros((1, 20, 20, 20), np.int16)
    image[0, 19, 19, 19] = 77
    with pytest.raises(InferenceError, match="'out' holds NaN or infinite values"):
        Sweep(device, loaded, network).probability({"image": image}, PATCHES, "out")
    assert device.used == 0


def test_slabs_of_a_large_volume_give_the_same_bits_as_the_whole(
    device: Device, loaded: Kernels
) -> None:
    window = Window("patch", patch=(32, 48, 48), batch=4, exclusive=True, skip_air=True)
    network = Carried(hosted(answering(window), window, {"image": "float32"}), device)
    image = {"image": volume(1, (150, 130, 140), "int16", 3)}
    whole = Sweep(device, loaded, network).probability(image, window, "out")
    task = Task.of(network, image, window, "out")
    for slices in (task.least, 57):
        sweep = Sweep(device, loaded, network, task.bytes(Portion(4, slices)))
        assert np.array_equal(sweep.probability(image, window, "out"), whole)


def test_a_plan_swept_on_the_device_says_what_it_says_block_by_block(
    gpu: Gpu, tmp_path: Path
) -> None:
    session = gpu.runtime().load(write(tmp_path, size=64, channels=(8, 16, 32)))
    window = Window("patch", patch=(64, 64, 64), batch=4)
    image = {"image": volume(1, (100, 110, 120), "float32", 1) / 50}
    raw = session.sweep(image, window, "logits")
    assert np.array_equal(raw, predict(session.infer, image, window, "logits"))
    soft = replace(window, logits=True, exclusive=True)
    found = session.sweep(image, soft, "logits")
    np.testing.assert_allclose(found, predict(session.infer, image, soft, "logits"), atol=2e-6)
    labels = session.labels(image, soft, "logits", Labelling()).labels
    assert np.array_equal(labels, found.argmax(axis=0))
    session.close()
