"""Every network that the repository ships compiles for a GPU, or is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.domain.errors import InferenceError
from node.gpu.building import build
from node.gpu.libraries import Library
from node.gpu.recipe import Settings
from tests.compile.models import FIXTURES, Model, models, recipe
from tests.gpu.unets import write


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_network_compiles_or_is_refused_with_the_expected_reason(
    model: Model, library: Library
) -> None:
    if model.fails:
        with pytest.raises(InferenceError, match=model.fails):
            build(library, model.recipe())
        return
    built = build(library, model.recipe())
    assert built.version == library.version
    assert built.activation > 0
    assert 0 < built.weights < 1 << 30
    assert len(built.plan) > 1000


def test_networks_are_listed_in_a_fixed_order() -> None:
    names = [model.name for model in models()]
    assert "engines/mr-brain-lesion/model.onnx" in names
    shipped = [model.name for model in models() if FIXTURES not in model.path.parents]
    assert names == sorted(shipped) + sorted(set(names) - set(shipped))


def test_network_of_the_gpu_figures_compiles_and_fp16_halves_its_memory(
    library: Library, tmp_path: Path
) -> None:
    settings = Settings(batch=1, capability="8.9")
    full, half = (
        build(library, recipe(path, (), settings))
        for path in (write(tmp_path), tmp_path / "model.fp16.onnx")
    )
    assert half.weights < 0.6 * full.weights
    assert half.activation < 0.8 * full.activation
