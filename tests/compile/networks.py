"""Small networks of every precision, and some that TensorRT-RTX does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.runtimes.networks import FLOAT, Tensors, kernel, model

HALF = TensorProto.FLOAT16
_SIDE = 8


def _node(operator: str, inputs: list[str], output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs, [output], name=f"the {operator} of {output}", **options
    )


def unet(path: Path, batch: int | str = 1, weights: type[np.floating[Any]] = np.float32) -> Path:
    """A 3-D U-Net of one level with instance norm; with FP16 weights, the norm stays FP32."""
    half = weights is np.float16
    pads = {"pads": [1] * 6}
    nodes = [
        *(
            [_node("Cast", ["image"], "x", to=HALF)]
            if half
            else [_node("Identity", ["image"], "x")]
        ),
        _node("Conv", ["x", "w1"], "a", **pads),
        *([_node("Cast", ["a"], "wide", to=FLOAT)] if half else [_node("Identity", ["a"], "wide")]),
        _node("InstanceNormalization", ["wide", "scale", "shift"], "normed"),
        *(
            [_node("Cast", ["normed"], "b", to=HALF)]
            if half
            else [_node("Identity", ["normed"], "b")]
        ),
        _node("LeakyRelu", ["b"], "c", alpha=0.01),
        _node("Conv", ["c", "w2"], "d", strides=[2, 2, 2], **pads),
        _node("Relu", ["d"], "e"),
        _node("ConvTranspose", ["e", "w3"], "f", strides=[2, 2, 2]),
        _node("Concat", ["c", "f"], "g", axis=1),
        _node("Conv", ["g", "w4"], "logits", **pads),
        *(
            [_node("Cast", ["logits"], "h", to=FLOAT)]
            if half
            else [_node("Identity", ["logits"], "h")]
        ),
        _node("Softmax", ["h"], "probability", axis=1),
    ]
    arrays: dict[str, NDArray[Any]] = {
        "w1": kernel(4, 1, 3, 3, 3).astype(weights),
        "w2": kernel(8, 4, 3, 3, 3).astype(weights),
        "w3": kernel(8, 4, 2, 2, 2).astype(weights),
        "w4": kernel(3, 8, 3, 3, 3).astype(weights),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
    }
    side = [_SIDE] * 3
    inputs: Tensors = {"image": (FLOAT, [batch, 1, *side])}
    return model(path, nodes, inputs, {"probability": (FLOAT, [batch, 3, *side])}, arrays)


def halved(path: Path) -> Path:
    """The U-Net typed in FP16, FP32 outside and in its norm."""
    return unet(path, weights=np.float16)


def quantised(path: Path) -> Path:
    """Two convolutions in INT8: quantised and dequantised before, weights too."""
    nodes = []
    arrays: dict[str, NDArray[Any]] = {
        "scale": np.array(0.05, np.float32),
        "zero": np.array(0, np.int8),
    }
    source = "image"
    for number, shape in enumerate(((8, 1, 3, 3, 3), (3, 8, 3, 3, 3))):
        weights = kernel(*shape)
        step = np.array(np.abs(weights).max() / 127, np.float32)
        arrays[f"w{number}"] = np.round(weights / step).astype(np.int8)
        arrays[f"s{number}"] = step
        nodes += [
            _node("QuantizeLinear", [source, "scale", "zero"], f"q{number}"),
            _node("DequantizeLinear", [f"q{number}", "scale", "zero"], f"x{number}"),
            _node("DequantizeLinear", [f"w{number}", f"s{number}", "zero"], f"k{number}"),
            _node("Conv", [f"x{number}", f"k{number}"], f"y{number}", pads=[1] * 6),
        ]
        source = f"y{number}"
    nodes.append(_node("Softmax", [source], "probability", axis=1))
    side = [_SIDE] * 3
    inputs: Tensors = {"image": (FLOAT, [1, 1, *side])}
    return model(path, nodes, inputs, {"probability": (FLOAT, [1, 3, *side])}, arrays)


def cubic(path: Path) -> Path:
    """Cubic interpolation along three axes."""
    nodes = [_node("Resize", ["image", "", "scales"], "out", mode="cubic")]
    arrays = {"scales": np.array([1, 1, 2, 2, 2], np.float32)}
    return model(
        path, nodes, {"image": (FLOAT, [1, 1, 4, 4, 4])}, {"out": (FLOAT, [1, 1, 8, 8, 8])}, arrays
    )


def short_integers(path: Path) -> Path:
    """An input of int16, as CT is stored."""
    nodes = [_node("Cast", ["image"], "out", to=FLOAT)]
    inputs: Tensors = {"image": (TensorProto.INT16, [1, 1, 4, 4])}
    return model(path, nodes, inputs, {"out": (FLOAT, [1, 1, 4, 4])})


def foreign(path: Path) -> Path:
    """An operator of somebody's own; the checker would refuse it, so it is not asked."""
    node = helper.make_node("Blur", ["image"], ["out"], name="secret sauce", domain="com.example")
    shape = [1, 1, 4, 4]
    graph = helper.make_graph(
        [node],
        "foreign",
        [helper.make_tensor_value_info("image", FLOAT, shape)],
        [helper.make_tensor_value_info("out", FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def anywhere(path: Path) -> Path:
    """A convolution for images of any size."""
    nodes = [_node("Conv", ["image", "w"], "out", pads=[1] * 4)]
    inputs: Tensors = {"image": (FLOAT, ["n", 1, "h", "w"])}
    outputs: Tensors = {"out": (FLOAT, ["n", 2, "h", "w"])}
    return model(path, nodes, inputs, outputs, {"w": kernel(2, 1, 3, 3)})


def deep(path: Path, layers: int = 60) -> Path:
    """So many layers that there is time to stop."""
    nodes = []
    for number in range(layers):
        nodes += [
            _node("Conv", [f"x{number}", "w"], f"y{number}", pads=[1] * 6),
            _node("InstanceNormalization", [f"y{number}", "scale", "shift"], f"z{number}"),
            _node("Relu", [f"z{number}"], f"x{number + 1}"),
        ]
    arrays: dict[str, NDArray[Any]] = {
        "w": kernel(4, 4, 3, 3, 3),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
    }
    shape = [1, 4, _SIDE, _SIDE, _SIDE]
    return model(path, nodes, {"x0": (FLOAT, shape)}, {f"x{layers}": (FLOAT, shape)}, arrays)
