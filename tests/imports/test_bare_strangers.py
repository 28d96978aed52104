"""A bare ONNX file from a stranger: it reaches no other file, writes no line, takes no memory."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from node.domain.errors import ImportRefused
from node.proposal import GUESSED
from tests.imports.test_bare import ANY, made, proposed, sigmoid, tables
from tests.runtimes.networks import FLOAT, Shape, Tensors


def needless(path: Path, place: str) -> Path:
    """A network with weights that it never uses: ONNX Runtime does not look where they lie."""
    shape: Shape = ("n", 1, "h", "w")
    sigmoid(path, shape)
    content = onnx.load(path)
    weight = content.graph.initializer.add(name="w", dims=[1], data_type=FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    path.write_bytes(content.SerializeToString())
    return path


def test_weights_that_lead_out_of_the_folder_are_refused_though_nobody_uses_them(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0\0\0\0")
    folder = tmp_path / "given"
    (folder / "n.onnx_d").mkdir(parents=True)
    (folder / "n.onnx.data").symlink_to(secret)
    for place in ("n.onnx_d/../../secret", "../secret", str(secret)):
        with pytest.raises(ImportRefused, match="secret"):
            proposed(needless(folder / "n.onnx", place))
    with pytest.raises(ImportRefused, match="leads elsewhere"):
        proposed(needless(folder / "n.onnx", "n.onnx.data"))
    with pytest.raises(ImportRefused, match="leads elsewhere"):
        proposed(folder / "n.onnx", look_inside=False)


def test_names_in_a_graph_write_no_line_of_the_manifest(tmp_path: Path) -> None:
    name = 'q\n[cascade]\npackage = "other"\x7f\u2028\r'
    nodes = [helper.make_node("Sigmoid", ["image"], [one]) for one in ("p", name)]
    outputs: Tensors = {"p": (FLOAT, ANY), name: (FLOAT, ANY)}
    proposal = proposed(made(tmp_path / "n.onnx", nodes, {"image": (FLOAT, ANY)}, outputs))
    assert "cascade" not in tables(proposal)
    assert any(guess.startswith("output.tensor") for guess in proposal.guesses())
    assert proposal.manifest().count(GUESSED) == len(proposal.guesses())


@pytest.mark.parametrize("labels", ["[" * 100_000, '["\\ud800"]', '{"' + "1" * 5_000 + '": "a"}'])
def test_strange_metadata_break_nothing(labels: str, tmp_path: Path) -> None:
    path = sigmoid(tmp_path / "n.onnx", ANY)
    content = onnx.load(path)
    helper.set_model_props(content, {"labels": labels})
    onnx.save(content, path)
    assert tables(proposed(path))["finding"]
    proposed(path).manifest().encode()


def test_network_that_claims_a_huge_input_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = sigmoid(tmp_path / "n.onnx", (1, 1, 40_000, 40_000, 40_000))
    with pytest.raises(ImportRefused, match="too large"):
        proposed(path)
