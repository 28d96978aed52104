"""Arrays through a network on the device, whatever batch it was built for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.domain.errors import DeviceMemoryFull, InferenceError
from node.domain.tensor import Tensors, TensorSpec
from node.gpu.exchange import Exchange
from node.gpu.plan import Ranges, Scratch
from tests.hosted.device import HostDevice, HostNetwork

X, Y = TensorSpec("x", (-1, 3), "float32"), TensorSpec("y", (-1, 3), "float32")
TOTAL = TensorSpec("total", (-1,), "int64")


def answer(feeds: Tensors) -> Tensors:
    """Twice each row, and its sum."""
    return {"y": feeds["x"] * 2, "total": feeds["x"].sum(axis=1).astype(np.int64)}


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 9])
def test_batch_is_computed_in_runs_that_the_network_takes(batch: int, library: Path) -> None:
    device = HostDevice(library)
    network = HostNetwork(answer, (X,), (Y, TOTAL), max_batch=4, smallest_batch=2)
    exchange = Exchange(device, network)
    rows = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
    found = exchange.infer({"x": rows})
    assert np.array_equal(found["y"], rows * 2)
    assert np.array_equal(found["total"], rows.sum(axis=1))
    sizes = [shapes["x"][0] for shapes in network.runs]
    assert all(2 <= size <= 4 for size in sizes)
    assert len(sizes) == -(-batch // 4)
    exchange.close()
    device.close()


def test_network_with_a_fixed_batch_is_run_once_as_it_is(library: Path) -> None:
    device = HostDevice(library)
    specs = TensorSpec("x", (5, 3), "float32"), TensorSpec("y", (5, 3), "float32")
    network = HostNetwork(answer, specs[:1], specs[1:], max_batch=5, smallest_batch=5)
    exchange = Exchange(device, network)
    found = exchange.infer({"x": np.ones((5, 3), np.float32)})
    assert found["y"].shape == (5, 3)
    assert len(network.runs) == 1
    exchange.close()


def test_buffers_are_kept_grow_and_are_given_back(library: Path) -> None:
    device = HostDevice(library)
    exchange = Exchange(device, HostNetwork(answer, (X,), (Y, TOTAL)))
    sizes = []
    for batch in (4, 2, 4, 6):
        exchange.infer({"x": np.ones((batch, 3), np.float32)})
        sizes.append(exchange.size)
    assert sizes == [4 * (12 + 12 + 8)] * 3 + [6 * (12 + 12 + 8)]
    exchange.close()
    assert exchange.size == 0
    device.close()


def test_answers_are_the_caller_s_own(library: Path) -> None:
    exchange = Exchange(HostDevice(library), HostNetwork(answer, (X,), (Y, TOTAL)))
    first = exchange.infer({"x": np.ones((1, 3), np.float32)})["y"]
    exchange.infer({"x": np.zeros((1, 3), np.float32)})
    assert (first == 2).all()
    exchange.close()


def test_inputs_of_different_batches_are_refused(library: Path) -> None:
    specs = (X, TensorSpec("z", (-1, 3), "float32"))
    exchange = Exchange(HostDevice(library), HostNetwork(answer, specs, (Y, TOTAL)))
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(InferenceError, match="differ in their batch"):
        exchange.infer({"x": rows, "z": rows[:1]})
    with pytest.raises(InferenceError, match="it is empty"):
        exchange.infer({"x": rows[:0], "z": rows[:0]})


def test_full_device_leaves_what_was_there_usable(library: Path) -> None:
    device = HostDevice(library, total=4096)
    exchange = Exchange(device, HostNetwork(answer, (X,), (Y, TOTAL), max_batch=1000))
    with pytest.raises(DeviceMemoryFull):
        exchange.infer({"x": np.ones((1000, 3), np.float32)})
    assert (exchange.infer({"x": np.ones((2, 3), np.float32)})["y"] == 2).all()
    exchange.close()
    device.close()


def test_scratch_grows_to_the_largest_and_is_one_block(library: Path) -> None:
    device = HostDevice(library, total=4096)
    scratch = Scratch(device)
    assert scratch.size == 0
    small = scratch.reserve(100)
    assert scratch.reserve(50) == small
    scratch.reserve(3000)
    assert scratch.size == 3000
    assert len(device.blocks) == 1
    with pytest.raises(DeviceMemoryFull):
        scratch.reserve(1 << 20)
    scratch.reserve(100)
    scratch.free()
    scratch.free()
    device.close()


@pytest.mark.parametrize(
    ("shape", "admitted"),
    [
        ((1, 8, 8), True),
        ((4, 16, 8), True),
        ((5, 8, 8), False),
        ((1, 7, 8), False),
        ((1, 8), False),
    ],
)
def test_lengths_outside_of_the_profile_are_not_admitted(
    shape: tuple[int, ...], admitted: bool
) -> None:
    ranges = Ranges({"x": (1, 8, 8)}, {"x": (4, 16, 8)})
    assert ranges.admit({"x": shape}) is admitted
