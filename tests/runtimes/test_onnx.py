"""ONNX Runtime on the CPU: what it loads, what it takes, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pydantic import ValidationError

from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.runtimes.onnx import Onnx
from tests.engines.package import brighter_than
from tests.places import ROOT
from tests.runtimes.networks import FLOAT, Shape, doubling, mismatching, model


def test_network_computes_with_any_batch(tmp_path: Path) -> None:
    session = Onnx(threads=1).load(doubling(tmp_path / "model.onnx"))
    assert session.inputs == (TensorSpec("image", (-1, 1, 4, 4), "float32"),)
    assert session.outputs == (TensorSpec("twice", (-1, 1, 4, 4), "float32"),)
    for batch in (1, 5):
        image = np.random.default_rng(batch).random((batch, 1, 4, 4), np.float32)
        assert np.array_equal(session.infer({"image": image})["twice"], image * 2)


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["flair", "t1"], ["difference"]),
        helper.make_node("Add", ["flair", "t1"], ["sum"]),
    ]
    shape = (FLOAT, [None, 2])
    path = model(
        tmp_path / "m.onnx",
        nodes,
        {"flair": shape, "t1": shape},
        {"sum": shape, "difference": shape},
    )
    session = Onnx(threads=1).load(path)
    feeds = {"t1": np.ones((3, 2), np.float32), "flair": np.full((3, 2), 5, np.float32)}
    found = session.infer(feeds)
    assert (found["sum"] == 6).all()
    assert (found["difference"] == 4).all()
    assert [spec.name for spec in session.outputs] == ["sum", "difference"]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.INT64, "int64"),
        (TensorProto.INT32, "int32"),
    ],
)
def test_number_types_have_numpy_names(tmp_path: Path, kind: int, dtype: str) -> None:
    session = Onnx(threads=1).load(doubling(tmp_path / "m.onnx", (2,), kind))
    assert session.inputs[0].dtype == dtype
    assert session.infer({"image": np.ones(2, dtype)})["twice"].dtype == dtype


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((1, 3, 4, 4), np.float32), r"float32 \(1, 3, 4, 4\)"),
        (np.zeros((1, 1, 4), np.float32), r"float32 \(1, 1, 4\)"),
        (np.zeros((1, 1, 4, 4), np.float64), r"float64 \(1, 1, 4, 4\)"),
    ],
)
def test_wrong_tensor_is_named_with_what_was_wanted_and_what_came(
    tmp_path: Path,
    image: NDArray[Any],
    got: str,
) -> None:
    session = Onnx(threads=1).load(doubling(tmp_path / "m.onnx"))
    with pytest.raises(InferenceError, match=rf"image: float32 \(any, 1, 4, 4\).*{got}"):
        session.infer({"image": image})


def test_absent_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    session = Onnx(threads=1).load(doubling(tmp_path / "m.onnx"))
    with pytest.raises(InferenceError, match=r"\['image'\].*\['picture'\]"):
        session.infer({"picture": np.zeros((1, 1, 4, 4), np.float32)})


def test_network_that_fails_while_running_says_why(tmp_path: Path) -> None:
    session = Onnx(threads=1).load(mismatching(tmp_path / "m.onnx"))
    with pytest.raises(InferenceError, match=r"m\.onnx failed: .*MatMul"):
        session.infer({"a": np.zeros((2, 3), np.float32), "b": np.zeros((4, 5), np.float32)})


def test_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"no model file .*absent\.onnx"):
        Onnx().load(tmp_path / "absent.onnx")


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_broken_model_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    path = doubling(tmp_path / "broken.onnx")
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>404</html>", "cut": whole[:-20]}[damage])
    with pytest.raises(InferenceError, match=r"broken\.onnx.*(Export it again|check)"):
        Onnx().load(path)


def test_unknown_operator_is_refused_with_its_name(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["image"], ["out"])
    info = [helper.make_tensor_value_info(name, FLOAT, [1]) for name in ("image", "out")]
    graph = helper.make_graph([node], "tiny", info[:1], info[1:])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
    with pytest.raises(InferenceError, match="NoSuchOperator"):
        Onnx().load(path)


def test_closed_network_says_so_and_closes_twice(tmp_path: Path) -> None:
    session = Onnx(threads=1).load(doubling(tmp_path / "m.onnx"))
    session.close()
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.infer({"image": np.zeros((1, 1, 4, 4), np.float32)})


def test_every_level_of_rewriting_gives_the_same_numbers(tmp_path: Path) -> None:
    path = convolution(tmp_path / "m.onnx")
    image = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
    levels: tuple[Literal["none", "basic", "extended", "all"], ...]
    levels = ("none", "basic", "extended", "all")
    found = [Onnx(1, level).load(path).infer({"image": image})["out"] for level in levels]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def test_computing_twice_gives_the_same_bits_with_any_number_of_threads(tmp_path: Path) -> None:
    path = convolution(tmp_path / "m.onnx")
    image = np.random.default_rng(0).random((4, 1, 16, 16), np.float32)
    found = [Onnx(threads).load(path).infer({"image": image})["out"] for threads in (0, 1, 2, 2)]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def convolution(path: Path) -> Path:
    """A convolution and a rectifier with fixed weights."""
    weights = np.random.default_rng(1).standard_normal((4, 1, 3, 3)).astype(np.float32)
    constant = helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(weights, "w")
    )
    nodes = [
        constant,
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["out"]),
    ]
    inputs: dict[str, tuple[int, Shape]] = {"image": (FLOAT, ["n", 1, 16, 16])}
    return model(path, nodes, inputs, {"out": (FLOAT, ["n", 4, 16, 16])})


def test_nothing_is_said_on_standard_error(tmp_path: Path) -> None:
    path, failing = doubling(tmp_path / "m.onnx"), mismatching(tmp_path / "failing.onnx")
    code = (
        "import sys, pathlib, numpy as np\n"
        "from node.domain.errors import InferenceError\n"
        "from node.runtimes.onnx import Onnx\n"
        "session = Onnx().load(pathlib.Path(sys.argv[1]))\n"
        "session.infer({'image': np.zeros((1, 1, 4, 4), np.float32)})\n"
        "pathlib.Path(sys.argv[1]).write_bytes(b'no model')\n"
        "refused = 0\n"
        "try:\n    Onnx().load(pathlib.Path(sys.argv[1]))\n"
        "except InferenceError:\n    refused += 1\n"
        "session = Onnx().load(pathlib.Path(sys.argv[2]))\n"
        "square = np.zeros((2, 3), np.float32)\n"
        "try:\n    session.infer({'a': square, 'b': square})\n"
        "except InferenceError:\n    refused += 1\n"
        "sys.exit(refused - 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, failing], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("table", [{"threads": -1}, {"optimise": "most"}, {"device": "cpu"}])
def test_options_that_make_no_sense_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Onnx(**table)  # type: ignore[arg-type]


def test_nothing_is_reported_to_the_makers_of_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime keeps the id under which it reports in the home directory."""
    model = brighter_than(tmp_path / "model.onnx", 1.0)
    home = tmp_path / "home"
    home.mkdir()
    code = "from pathlib import Path; from node.runtimes.onnx import Onnx; import sys;"
    code += "Onnx().load(Path(sys.argv[1])).close()"
    subprocess.run(
        [sys.executable, "-c", code, str(model)],
        check=True,
        cwd=ROOT,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(home / "cache")},
    )
    assert list(home.rglob("*")) == []
