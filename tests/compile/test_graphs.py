"""Published networks, and what the node makes of them, before the real TensorRT-RTX compiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from node.gpu.building import build
from node.gpu.libraries import Library
from node.gpu.recipe import Settings
from node.halving import halve, prepared
from node.quantising import quantise
from tests.compile.graphs import MOST_VALUES, graphs, whole, written
from tests.compile.models import BATCH, recipe
from tests.places import ROOT

EXPECTED = {
    "monai-densenet121", "monai-dynunet", "monai-segresnet", "monai-unet", "monai-unet-batch",
    "monai-unetr", "nnunet-plain", "nnunet-residual",
}  # fmt: skip
QUANTISED = [path for path in graphs() if path.stem in {"monai-unet", "monai-densenet121"}]
"""One in three dimensions and one in two."""


def test_graphs_are_small_and_there() -> None:
    sizes = {path.stem: path.stat().st_size for path in graphs()}
    assert sizes.keys() == EXPECTED
    assert max(sizes.values()) < 300_000
    assert sum(sizes.values()) < 1_500_000


@pytest.mark.parametrize("graph", graphs(), ids=lambda path: path.stem)
def test_graph_becomes_the_same_whole_network_each_time(graph: Path) -> None:
    bare = onnx.load(str(graph))
    model = whole(graph)
    assert model.SerializeToString() == whole(graph).SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    assert any(
        not one.raw_data and np.prod(one.dims) > MOST_VALUES for one in bare.graph.initializer
    )
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        assert array.shape == tuple(tensor.dims)
        assert array.dtype.kind != "f" or np.isfinite(array[array > -np.inf]).all()
    assert model.producer_name.split()[0] in {"monai", "dynamic_network_architectures"}


@pytest.mark.parametrize("graph", graphs(), ids=lambda path: path.stem)
def test_published_network_compiles_in_fp32_and_as_the_node_halves_it(
    graph: Path, library: Library, tmp_path: Path
) -> None:
    path = written(graph, tmp_path / "model.onnx")
    half = tmp_path / "model.fp16.onnx"
    onnx.save(halve(onnx.load(str(path))).model, str(half))
    full, narrow = (build(library, recipe(one)) for one in (path, half))
    assert full.version == library.version
    assert 0.45 * full.weights < narrow.weights < 0.62 * full.weights
    assert 0 < narrow.activation < full.activation
    assert full.layers < narrow.layers < 1.5 * full.layers


@pytest.mark.parametrize("graph", QUANTISED, ids=lambda path: path.stem)
def test_published_network_compiles_as_the_node_quantises_it(
    graph: Path, library: Library, tmp_path: Path
) -> None:
    path = written(graph, tmp_path / "model.onnx")
    model = onnx.load(str(path))
    shape = [one.dim_value or 1 for one in model.graph.input[0].type.tensor_type.shape.dim]
    block = np.random.default_rng(1).standard_normal(shape, np.float32)
    narrow = tmp_path / "model.int8.onnx"
    quantise(prepared(model), narrow, [{"image": block}])
    built = build(library, recipe(narrow))
    assert built.weights < build(library, recipe(path)).weights
    assert built.activation > 0


@pytest.mark.parametrize("model", sorted(ROOT.glob("engines/*/model.onnx")), ids=str)
def test_shipped_network_compiles_as_the_node_halves_it(
    model: Path, library: Library, tmp_path: Path
) -> None:
    half = tmp_path / "model.fp16.onnx"
    onnx.save(halve(onnx.load(str(model))).model, str(half))
    settings = Settings(batch=BATCH, capability="8.9")
    full, narrow = (build(library, recipe(one, (), settings)) for one in (model, half))
    assert narrow.weights < 0.62 * full.weights
