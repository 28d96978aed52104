"""The mark of a variant, read from the file's own bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.errors import InferenceError
from node.gpu.lineage import ORIGIN, origin
from node.gpu.recipe import digest, variant
from tests.runtimes.networks import doubling, planar


def marked(path: Path, **entries: str) -> Path:
    """A network with entries in its metadata."""
    planar(path)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(path))
    return path


def test_mark_is_read_from_among_other_entries(tmp_path: Path) -> None:
    path = marked(tmp_path / "model.onnx", author="x" * 300, **{ORIGIN: "c0ffee"}, last="y")
    assert origin(path) == "c0ffee"


def test_network_without_a_mark_has_none(tmp_path: Path) -> None:
    assert origin(marked(tmp_path / "model.onnx", author=ORIGIN)) == ""
    (tmp_path / "empty.onnx").touch()
    assert origin(tmp_path / "empty.onnx") == ""


@given(st.binary(min_size=1, max_size=200))
def test_file_that_is_no_network_has_no_mark(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    assert origin(path) == ""


@given(st.data())
def test_file_that_was_cut_off_is_read_without_a_fault(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = tmp_path_factory.getbasetemp() / "whole.onnx"
    content = marked(whole, **{ORIGIN: "c0ffee"}).read_bytes()
    cut = tmp_path_factory.getbasetemp() / "cut.onnx"
    cut.write_bytes(content[: data.draw(st.integers(1, len(content) - 1))])
    assert origin(cut) in {"", "c0ffee"}


def test_variant_of_this_network_is_chosen(tmp_path: Path) -> None:
    model = doubling(tmp_path / "model.onnx")
    half = marked(tmp_path / "model.fp16.onnx", **{ORIGIN: digest(model)})
    assert variant(model, "fp16") == half


def test_variant_of_another_network_is_refused(tmp_path: Path) -> None:
    model = doubling(tmp_path / "model.onnx")
    marked(tmp_path / "model.int8.onnx", **{ORIGIN: digest(model)})
    doubling(model, ("batch", 1, 8, 8))
    with pytest.raises(InferenceError, match=r"int8\.onnx was made of another network .* variants"):
        variant(model, "int8")


def test_variant_of_other_weights_beside_the_same_graph_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    planar(model)
    loaded = onnx.load(str(model))
    onnx.save(loaded, str(model), save_as_external_data=True, location="w.bin", size_threshold=0)
    marked(tmp_path / "model.fp16.onnx", **{ORIGIN: digest(model)})
    assert variant(model, "fp16").name == "model.fp16.onnx"
    weights = tmp_path / "w.bin"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(InferenceError, match="another network"):
        variant(model, "fp16")
