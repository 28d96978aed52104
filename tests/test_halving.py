"""FP16 graphs: what is halved, what is not, and that the twin shows what a GPU would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from node.domain.errors import InferenceError
from node.halving import WIDE, halve, stored
from node.runtimes.onnx import Onnx
from tests.compile.graphs import graphs, whole
from tests.compile.networks import unet
from tests.runtimes.networks import SAMPLES, Sample, image, kernel

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Arrays = Mapping[str, NDArray[Any]]


def built(
    nodes: Sequence[onnx.NodeProto], weights: Arrays, shape: Sequence[int], out: Sequence[int]
) -> onnx.ModelProto:
    """A network from ``image`` to ``out``."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", FLOAT, shape)],
        [helper.make_tensor_value_info("out", FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def node(operator: str, inputs: str, output: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **options)


def answered(
    model: onnx.ModelProto, feeds: Arrays, place: Path, name: str = "some"
) -> dict[str, NDArray[Any]]:
    path = place / f"{name}.onnx"
    onnx.save(model, str(path))
    session = Onnx().load(path)
    return dict(session.infer(feeds))


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value."""
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {one.name: one.data_type for one in graph.initializer}
    for one in (*graph.input, *graph.output, *graph.value_info):
        found[one.name] = one.type.tensor_type.elem_type
    return found


def floating(model: onnx.ModelProto, operator: str) -> set[tuple[str, int]]:
    """(operator, type) of every floating operand and result of an operator's nodes."""
    known = kinds(model)
    return {
        (operator, known[name])
        for one in model.graph.node
        if one.op_type == operator
        for name in (*one.input, *one.output)
        if name and known[name] in {FLOAT, HALF}
    }


@pytest.mark.parametrize("graph", graphs(), ids=lambda path: path.stem)
def test_published_network_is_halved_but_for_its_norms(graph: Path) -> None:
    model = whole(graph)
    halved = halve(model).model
    onnx.checker.check_model(halved, full_check=True)
    operators = {one.op_type for one in model.graph.node}
    for operator in operators & WIDE:
        assert floating(halved, operator) == {(operator, FLOAT)}
    for operator in operators & {"Conv", "ConvTranspose", "MatMul", "Gemm"}:
        assert floating(halved, operator) == {(operator, HALF)}
    assert operators & WIDE or "batch" in graph.stem
    assert [one.type for one in halved.graph.input] == [one.type for one in model.graph.input]
    assert [one.type for one in halved.graph.output] == [one.type for one in model.graph.output]
    assert halved.ByteSize() < 0.62 * model.ByteSize()


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_halved_network_answers_nearly_the_same(sample: Sample, tmp_path: Path) -> None:
    feeds = sample(tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    wanted = answered(model, feeds, tmp_path)
    halved = halve(model).model
    onnx.checker.check_model(halved, full_check=True)
    for name, twin in (("half", halved), ("twin", stored(halved))):
        found = answered(twin, feeds, tmp_path, name)
        for output, array in wanted.items():
            assert found[output].dtype == array.dtype
            if np.issubdtype(array.dtype, np.floating):
                np.testing.assert_allclose(found[output], array, atol=6e-3)
            else:
                assert np.mean(found[output] == array) > 0.98


def test_twin_rounds_as_fp16_stores(tmp_path: Path) -> None:
    weight = np.full((1, 1, 1, 1), 1.7, np.float32)
    model = built([node("Conv", "image w", "out")], {"w": weight}, [1, 1, 4, 4], [1, 1, 4, 4])
    block = image(1, 1, 4, 4)
    product = block.astype(np.float16).astype(np.float32) * np.float16(1.7).astype(np.float32)
    found = answered(stored(halve(model).model), {"image": block}, tmp_path)["out"]
    np.testing.assert_array_equal(found, product.astype(np.float16).astype(np.float32))


def test_overflow_that_the_processor_hides_shows_in_the_twin(tmp_path: Path) -> None:
    weights = {"up": np.full((1, 1, 1, 1), 3e4, np.float32), "down": kernel(1, 1, 1, 1) * 1e-4}
    nodes = [node("Conv", "image up", "a"), node("Conv", "a down", "out")]
    halved = halve(built(nodes, weights, [1, 1, 2, 2], [1, 1, 2, 2])).model
    feeds = {"image": np.full((1, 1, 2, 2), 3.0, np.float32)}
    assert np.isfinite(answered(halved, feeds, tmp_path, "half")["out"]).all()
    assert not np.isfinite(answered(stored(halved), feeds, tmp_path, "twin")["out"]).any()


@pytest.mark.parametrize(
    ("operator", "constant", "words"),
    [("Add", 1e6, "1e+06 is beyond"), ("Mul", 1e-9, "1e-09 would be 0"), ("Add", 2.0, "")],
)
def test_constant_that_fp16_cannot_hold_keeps_its_node_in_fp32(
    operator: str, constant: float, words: str, tmp_path: Path
) -> None:
    weights = {
        "w": kernel(2, 1, 1, 1),
        "c": np.array(constant, np.float32),
        "v": kernel(1, 2, 1, 1),
    }
    nodes = [
        node("Conv", "image w", "a"), node(operator, "a c", "b"), node("Conv", "b v", "out"),
    ]  # fmt: skip
    halved = halve(built(nodes, weights, [1, 1, 2, 2], [1, 1, 2, 2]))
    wide = {(operator, FLOAT)} if words else {(operator, HALF)}
    assert floating(halved.model, operator) == wide
    assert [bool(words)] == [bool(halved.notes)]
    assert words in "".join(halved.notes)


def test_infinity_is_no_overflow(tmp_path: Path) -> None:
    weights = {"w": kernel(2, 1, 1, 1), "c": np.array(-np.inf, np.float32), "v": kernel(1, 2, 1, 1)}
    nodes = [node("Conv", "image w", "a"), node("Max", "a c", "b"), node("Conv", "b v", "out")]
    halved = halve(built(nodes, weights, [1, 1, 2, 2], [1, 1, 2, 2]))
    assert floating(halved.model, "Max") == {("Max", HALF)}


def test_scale_and_shift_behind_a_norm_stay_with_it() -> None:
    """GroupNorm of torch: reshape, instance norm, reshape, scale, shift; then it is halved."""
    weights = {
        "w": kernel(4, 1, 1, 1), "one": np.ones(2, np.float32), "none": np.zeros(2, np.float32),
        "groups": np.array([0, 2, -1]), "shape": np.array([1, 4, 4, 4]),
        "scale": kernel(4, 1, 1), "shift": kernel(4, 1, 1), "v": kernel(1, 4, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Conv", "image w", "a"),
        node("Reshape", "a groups", "b"),
        node("InstanceNormalization", "b one none", "c"),
        node("Reshape", "c shape", "d"),
        node("Mul", "d scale", "e"),
        node("Add", "e shift", "f"),
        node("Relu", "f", "g"),
        node("Conv", "g v", "out"),
    ]
    halved = halve(built(nodes, weights, [1, 1, 4, 4], [1, 1, 4, 4])).model
    for operator in ("InstanceNormalization", "Mul", "Add"):
        assert floating(halved, operator) == {(operator, FLOAT)}
    assert floating(halved, "Relu") == {("Relu", HALF)}
    assert sum(one.op_type == "Cast" for one in halved.graph.node) == 4


def test_value_is_cast_once_for_all_who_ask() -> None:
    weights = {"w": kernel(2, 1, 1, 1), "v": kernel(1, 2, 1, 1)}
    nodes = [
        node("Conv", "image w", "a"), node("Softmax", "a", "p", axis=1),
        node("Conv", "p v", "b"), node("Conv", "p v", "c"), node("Add", "b c", "out"),
    ]  # fmt: skip
    halved = halve(built(nodes, weights, [1, 1, 2, 2], [1, 1, 2, 2])).model
    casts = [
        (one.input[0], one.attribute[0].i) for one in halved.graph.node if one.op_type == "Cast"
    ]
    assert len(casts) == len(set(casts))
    assert sum(name == "p" for name, _ in casts) == 1


def test_output_that_others_use_too_is_fp32_outside_and_fp16_inside(tmp_path: Path) -> None:
    nodes = [node("Conv", "image w", "out"), node("Relu", "out", "r"), node("Conv", "r w", "more")]
    model = built(nodes, {"w": kernel(1, 1, 1, 1)}, [1, 1, 2, 2], [1, 1, 2, 2])
    model.graph.output.append(helper.make_tensor_value_info("more", FLOAT, [1, 1, 2, 2]))
    halved = halve(model).model
    onnx.checker.check_model(halved, full_check=True)
    assert floating(halved, "Relu") == {("Relu", HALF)}
    feeds = {"image": image(1, 1, 2, 2)}
    wanted, found = answered(model, feeds, tmp_path), answered(halved, feeds, tmp_path, "half")
    assert {name: array.dtype.name for name, array in found.items()} == {
        "out": "float32", "more": "float32",
    }  # fmt: skip
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-2)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Relu",
                "Softmax",
                "Transpose",
                "Exp",
                "Add",
                "Mul",
                "Conv",
                "Cast",
                "Identity",
                "Sigmoid",
                "ReduceMean",
                "Constant",
                "Sub",
            ]
        ),
        min_size=1,
        max_size=9,
    ),
    st.data(),
)
def test_any_chain_is_typed_without_a_fault(operators: list[str], data: st.DataObject) -> None:
    names, nodes = ["image"], []
    weights = {"w": kernel(2, 2, 1, 1), "c": np.array(0.5, np.float32)}
    for number, operator in enumerate(operators):
        first, second = (data.draw(st.sampled_from(names)) for _ in range(2))
        out = f"v{number}"
        made = {
            "Add": lambda a, b, o: node("Add", f"{a} {b}", o),
            "Sub": lambda a, b, o: node("Sub", f"{a} {b}", o),
            "Mul": lambda a, b, o: node("Mul", f"{a} c", o),
            "Conv": lambda a, b, o: node("Conv", f"{a} w", o),
            "Cast": lambda a, b, o: node("Cast", a, o, to=FLOAT),
            "Transpose": lambda a, b, o: node("Transpose", a, o, perm=[0, 1, 3, 2]),
            "Constant": lambda a, b, o: node(
                "Constant", "", o, value=numpy_helper.from_array(kernel(1, 2, 4, 4))
            ),
        }.get(operator, lambda a, b, o: node(operator, a, o))  # noqa: B023 - called at once
        nodes.append(made(first, second, out))
        if operator != "ReduceMean":
            names.append(out)
    nodes.append(node("Identity", names[-1], "out"))
    model = built(nodes, weights, [1, 2, 4, 4], [1, 2, 4, 4])
    halved = halve(model).model
    onnx.checker.check_model(halved, full_check=True)
    onnx.checker.check_model(stored(halved), full_check=True)
    assert all(one.data_type != HALF for one in stored(halved).graph.initializer)
    assert {one.name for one in halved.graph.output} == {"out"}


def test_network_with_branches_is_refused_with_the_way_out() -> None:
    inner = helper.make_graph([], "then", [], [helper.make_tensor_value_info("image", FLOAT, [1])])
    chosen = helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
    model = built([chosen], {"c": np.array(True)}, [1], [1])
    with pytest.raises(InferenceError, match=r"has a If.*dynamo=True"):
        halve(model)


def test_network_that_is_halved_already_is_refused(tmp_path: Path) -> None:
    halved = halve(onnx.load(str(unet(tmp_path / "model.onnx")))).model
    with pytest.raises(InferenceError, match="FP16 in it already"):
        halve(halved)


def test_network_without_fp32_is_refused() -> None:
    graph = helper.make_graph(
        [node("Neg", "image", "out")],
        "whole",
        [helper.make_tensor_value_info("image", TensorProto.INT32, [1])],
        [helper.make_tensor_value_info("out", TensorProto.INT32, [1])],
    )
    with pytest.raises(InferenceError, match="no FP32 in it"):
        halve(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_network_itself_is_left_as_it_was(tmp_path: Path) -> None:
    model = onnx.load(str(unet(tmp_path / "model.onnx")))
    before = model.SerializeToString()
    halve(model)
    assert model.SerializeToString() == before
