"""The sweep with real networks: ONNX Runtime's, their tensors where the kernels put them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from node.gpu.canvas import Labelling
from node.gpu.sweep import Portion, Sweep
from node.gpu.task import Task
from node.runtimes.onnx import Onnx
from node.sight import Window
from node.windows import predict
from tests.hosted.device import HostDevice, HostNetwork
from tests.hosted.networks import volume

CLASSES = 3

WINDOWS = {
    "slices": Window("slice", patch=(0, 16), batch=4),
    "slices, channels last": Window("slice", layout="NHWC", batch=3),
    "stacks": Window("stack", stack=5, patch=(12, 12), batch=4, mirror=("i",)),
    "stacks, channels last": Window("stack", layout="NHWC", patch=(16, 16), batch=5),
    "patches": Window("patch", patch=(8, 12, 12), batch=4, skip_air=True),
    "patches as nnU-Net": Window(
        "patch",
        patch=(8, 12, 12),
        placement="rounded",
        centre="voxel",
        mirror=("k", "j", "i"),
        batch=2,
        fixed_batch=True,
    ),
    "patches as MONAI": Window(
        "patch", patch=(8, 12, 12), placement="stride", floor=0.001, fill=0.0, batch=4
    ),
    "patches, channels last": Window("patch", layout="NDHWC", patch=(8, 16, 8), batch=2),
    "whole": Window("volume", multiple=8, fill="reflect"),
}


def write(path: Path, window: Window, channels: int, half: bool) -> Path:
    """Two convolutions with ReLU between them; softmax is left to the window."""
    axes = 2 if window.planar else 3
    wide = channels * (window.stack if window.mode == "stack" else 1)
    rng = np.random.default_rng(5)
    first = rng.standard_normal((4, wide, *[3] * axes)).astype(np.float32) / 100
    second = rng.standard_normal((CLASSES, 4, *[3] * axes)).astype(np.float32)
    free = ["n", *[f"axis{n}" for n in range(axes)]]
    image: list[str | int | None] = [*free, wide]
    logits: list[str | int | None] = [*free, CLASSES]
    steps = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 2 * axes),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], pads=[1] * 2 * axes),
    ]
    if window.channels_last:
        there, back = [0, axes + 1, *range(1, axes + 1)], [0, *range(2, axes + 2), 1]
        steps.insert(0, helper.make_node("Transpose", ["image"], ["x"], perm=there))
        steps.append(helper.make_node("Transpose", ["y"], ["z"], perm=back))
    else:
        image, logits = [free[0], wide, *free[1:]], [free[0], CLASSES, *free[1:]]
        steps.insert(0, helper.make_node("Identity", ["image"], ["x"]))
        steps.append(helper.make_node("Identity", ["y"], ["z"]))
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    steps.append(helper.make_node("Cast", ["z"], ["logits"], to=kind))
    graph = helper.make_graph(
        steps,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("logits", kind, logits)],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.mark.parametrize("half", [False, True], ids=["FP32", "FP16"])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_convolution_swept_in_slabs_says_what_it_says_on_the_processor(
    library: Path, tmp_path: Path, name: str, half: bool
) -> None:
    window = WINDOWS[name]
    session = Onnx(threads=1).load(write(tmp_path / "model.onnx", window, 2, half))
    network = HostNetwork(session.infer, session.inputs, session.outputs)
    image = volume(2, (19, 26, 21), "int16", 7)
    device = HostDevice(library)
    task = Task.of(network, {"image": image}, window, "logits", labels=1)
    budget = task.bytes(Portion(task.first(1 << 30).batch, task.least))
    sweep = Sweep(device, device.kernels(), network, budget)
    fed = {"image": image.astype(np.float32)}
    plain = sweep.probability({"image": image}, window, "logits")
    assert np.array_equal(plain, predict(session.infer, fed, window, "logits"))

    softened = Window(**{**vars(window), "logits": True, "exclusive": True})
    blended = sweep.probability({"image": image}, softened, "logits")
    reference = predict(session.infer, fed, softened, "logits")
    np.testing.assert_allclose(blended, reference, atol=2e-6)
    labels = sweep.labels({"image": image}, softened, "logits", Labelling()).labels
    assert np.array_equal(labels, blended.argmax(axis=0))
    assert 0 < np.count_nonzero(labels) < labels.size
    session.close()
    device.close()
