"""Makes engine packages with networks so small that their answer is known by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save

FLAIR = """
[[series]]
role = "flair"
accepts = [{ fact = "Modality", equals = "MR" }]
"""
T1 = FLAIR.replace("flair", "t1")
SLICES = """
[window]
mode = "slice"
batch = 4
"""
IMAGE = """
[[input]]
tensor = "image"
roles = ["flair"]
"""
PROBABILITY = """
[output]
tensor = "probability"
"""
THRESHOLD = """
[[post]]
kind = "threshold"
value = 0.5
"""
LESION = """
[[finding]]
label = 1
name = "Lesion"
category = { value = "49755003", scheme = "SCT", meaning = "Morphologically Abnormal Structure" }
type = { value = "52988006", scheme = "SCT", meaning = "Lesion" }
"""
PARTS = (FLAIR, SLICES, IMAGE, PROBABILITY, THRESHOLD, LESION)


def network(
    path: Path,
    weights: Sequence[Sequence[float]],
    biases: Sequence[float],
    activation: str = "Sigmoid",
    shape: Sequence[int | str] = ("n", "c", "h", "w"),
) -> Path:
    """Save a model: one 1x1 convolution (classes, channels), then an activation over channels.

    ``shape`` is the declared input shape; its channels become the number of weights.
    """
    spatial = len(shape) - 2
    kernel = np.array(weights, np.float32)
    declared = [shape[0], kernel.shape[1] if shape[1] == "c" else shape[1], *shape[2:]]
    output = [shape[0], len(kernel), *shape[2:]]
    options: dict[str, Any] = {"axis": 1} if activation == "Softmax" else {}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w", "b"], ["logits"]),
            helper.make_node(activation, ["logits"], ["probability"], **options),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, declared)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, output)],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [*kernel.shape, *[1] * spatial], kernel),
            helper.make_tensor("b", TensorProto.FLOAT, [len(kernel)], biases),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, path)
    return path


def brighter_than(path: Path, level: float, steepness: float = 0.1) -> Path:
    """A network that says how surely a voxel of its one channel is brighter than a level."""
    return network(path, [[steepness]], [-level * steepness])


def package(folder: Path, *parts: str, version: str = "1.0") -> Path:
    """Write ``engine.toml`` for the ``model.onnx`` in a folder, with the tables of ``parts``."""
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    head = f"""\
[engine]
name = "tester"
title = "Test engine"
version = "{version}"
manufacturer = "Nobody"
licence = "Apache-2.0"
model = "model.onnx"
sha256 = "{digest}"
"""
    (folder / "engine.toml").write_text(head + "".join(parts or PARTS), encoding="utf-8")
    return folder


def member(path: Path) -> str:
    """The ``[[member]]`` table of a further network."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f'\n[[member]]\nmodel = "{path.name}"\nsha256 = "{digest}"\n'
