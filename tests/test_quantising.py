"""INT8 graphs as TensorRT wants them: symmetric, a range for each channel, biases left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from node.domain.errors import InferenceError
from node.halving import prepared
from node.quantising import quantise
from node.runtimes.onnx import Onnx
from tests.compile.networks import deep
from tests.runtimes.networks import image

SHAPE = (1, 4, 8, 8, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four convolutions with norms between them, in INT8 beside its original."""
    folder = tmp_path_factory.mktemp("int8")
    path = deep(folder / "model.onnx", layers=4)
    model = prepared(onnx.load(str(path)))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "bias"))
    shared = next(one for one in model.graph.initializer if one.name == "w")
    for number, node in enumerate(one for one in model.graph.node if one.op_type == "Conv"):
        own = numpy_helper.from_array(numpy_helper.to_array(shared), f"w{number}")
        model.graph.initializer.append(own)
        node.input[:] = [node.input[0], own.name, "bias"]
    onnx.save(model, str(path))
    blocks = [{"x0": image(*SHAPE, seed=seed)} for seed in range(3)]
    words = quantise(model, folder / "model.int8.onnx", blocks)
    assert "the Conv of y0, the Conv of y3" in words[0]
    return folder


def test_inner_layers_alone_are_quantised(made: Path) -> None:
    model = onnx.load(str(made / "model.int8.onnx"))
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    fed = [
        (
            makers.get(node.input[0], ""),
            makers.get(node.input[1], ""),
            makers.get(node.input[2], ""),
        )
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    narrow = ("DequantizeLinear", "DequantizeLinear", "")
    assert fed[1:3] == [narrow, narrow]
    assert fed[0] == ("", "", "")
    assert fed[3][1:] == ("", "")
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 2


def test_ranges_are_symmetric_and_of_each_channel(made: Path) -> None:
    arrays = {
        one.name: numpy_helper.to_array(one)
        for one in onnx.load(str(made / "model.int8.onnx")).graph.initializer
    }
    zeros = [array for name, array in arrays.items() if name.endswith("zero_point")]
    assert zeros
    assert all(array.dtype == np.int8 and not array.any() for array in zeros)
    assert arrays["w1_scale"].shape == (4,)
    assert all(array.dtype != np.int32 for array in arrays.values())
    weights = arrays["w1_quantized"]
    assert np.abs(weights.astype(int)).max() == 127


def test_outside_stays_fp32_and_answers_nearly_the_same(made: Path) -> None:
    feeds = {"x0": image(*SHAPE, seed=9)}
    whole, narrow = (
        Onnx(optimise="none").load(made / name) for name in ("model.onnx", "model.int8.onnx")
    )
    assert narrow.inputs == whole.inputs
    assert [one.dtype for one in narrow.outputs] == ["float32"]
    wanted, found = whole.infer(feeds)["x4"], narrow.infer(feeds)["x4"]
    assert 0 < np.abs(wanted - found).max() < 0.35
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.995


def test_network_itself_is_left_as_it_was(made: Path, tmp_path: Path) -> None:
    model = onnx.load(str(made / "model.onnx"))
    before = model.SerializeToString()
    quantise(model, tmp_path / "model.int8.onnx", [{"x0": image(*SHAPE)}])
    assert model.SerializeToString() == before


def test_without_studies_there_are_no_ranges(tmp_path: Path) -> None:
    model = onnx.load(str(deep(tmp_path / "model.onnx", layers=4)))
    with pytest.raises(InferenceError, match="INT8 needs studies"):
        quantise(model, tmp_path / "out.onnx", [])


def test_network_of_two_layers_gains_nothing(tmp_path: Path) -> None:
    model = onnx.load(str(deep(tmp_path / "model.onnx", layers=2)))
    with pytest.raises(
        InferenceError, match="2 layers that could be INT8.*nothing would be gained"
    ):
        quantise(model, tmp_path / "out.onnx", [{"x0": image(*SHAPE)}])
    assert not (tmp_path / "out.onnx").exists()


def test_block_that_does_not_fit_is_told_in_words(tmp_path: Path) -> None:
    model = onnx.load(str(deep(tmp_path / "model.onnx", layers=4)))
    with pytest.raises(InferenceError, match="cannot be quantised"):
        quantise(model, tmp_path / "out.onnx", [{"x0": image(1, 4, 8, 8, 7)}])
