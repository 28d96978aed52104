"""Tracing: ONNX Runtime answers as torch does, and the file says nothing of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from node.domain.errors import ImportRefused
from node.runtimes.onnx import Onnx
from node.tracing import INPUT, OPSET, OUTPUT, _compared, trace
from tests.trained_models import needs


@pytest.fixture
def torch() -> Any:
    """The library; skips without it."""
    needs("torch", "onnxscript")
    import torch

    torch.manual_seed(5)
    return torch


def small(torch: Any) -> Any:
    """Convolution, norm, the way down and up again."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(0.01),
        nn.Conv3d(4, 4, 3, stride=2, padding=1), nn.ConvTranspose3d(4, 3, 2, stride=2),
    )  # fmt: skip


def test_file_has_fixed_lengths_any_batch_and_opset_18(torch: Any, tmp_path: Path) -> None:
    traced = trace(small(torch), (2, 8, 8, 4), tmp_path / "model.onnx")
    assert traced.shape == (1, 3, 8, 8, 4)
    assert traced.difference < 1e-4 * traced.greatest
    assert traced.notes == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = Onnx().load(traced.path)
    assert [str(one) for one in session.inputs] == [f"{INPUT}: float32 (any, 2, 8, 8, 4)"]
    assert [str(one) for one in session.outputs] == [f"{OUTPUT}: float32 (any, 3, 8, 8, 4)"]
    model = onnx.load(str(traced.path))
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    blocks = np.random.default_rng(2).standard_normal((3, 2, 8, 8, 4), np.float32)
    together = session.infer({INPUT: blocks})[OUTPUT]
    alone = session.infer({INPUT: blocks[2:]})[OUTPUT]
    np.testing.assert_allclose(together[2:], alone, atol=1e-5)


def test_file_says_nothing_of_the_machine_it_was_made_on(torch: Any, tmp_path: Path) -> None:
    traced = trace(small(torch), (2, 8, 8, 8), tmp_path / "model.onnx")
    content = traced.path.read_bytes()
    for words in (b"stack_trace", b"site-packages", str(tmp_path).encode(), b".py"):
        assert words not in content


def test_network_that_is_training_is_exported_as_it_serves(torch: Any, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Dropout(0.9))
    traced = trace(network.train(), (1, 8, 8), tmp_path / "model.onnx")
    assert traced.difference < 1e-5
    assert "Dropout" not in {node.op_type for node in onnx.load(str(traced.path)).graph.node}


def test_network_that_allows_one_block_at_a_time_gets_a_fixed_batch(
    torch: Any, tmp_path: Path
) -> None:
    class Single(torch.nn.Module):  # type: ignore[misc]
        def forward(self, image: Any) -> Any:
            return image.reshape(1, 1, 8, 8) * 2

    traced = trace(Single(), (1, 8, 8), tmp_path / "model.onnx")
    assert "its batch is always 1" in traced.notes[0]
    assert Onnx().load(traced.path).inputs[0].shape == (1, 1, 8, 8)


def test_network_of_several_answers_is_refused(torch: Any, tmp_path: Path) -> None:
    class Two(torch.nn.Module):  # type: ignore[misc]
        def forward(self, image: Any) -> Any:
            return [image, image]

    with pytest.raises(ImportRefused, match="gives a list and not one tensor"):
        trace(Two(), (1, 8, 8), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_block_that_the_network_does_not_take_is_refused(torch: Any, tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"does not take a block of \(1, 1, 8, 8, 8\).*--patch"):
        trace(small(torch), (1, 8, 8, 8), tmp_path / "model.onnx")


def test_network_that_torch_cannot_export_is_refused_with_its_reason(
    torch: Any, tmp_path: Path
) -> None:
    class Choosy(torch.nn.Module):  # type: ignore[misc]
        def forward(self, image: Any) -> Any:
            return image * 2 if bool(image.sum() > 0) else image

    with pytest.raises(ImportRefused, match="torch cannot export the network: "):
        trace(Choosy(), (1, 8, 8), tmp_path / "model.onnx")


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_file_that_answers_otherwise_is_refused(wrong: float, tmp_path: Path) -> None:
    wanted = np.ones((1, 2, 4, 4), np.float32)
    found = wanted.copy()
    found[0, 1, 2, 3] += wrong
    with pytest.raises(ImportRefused, match="answers otherwise than torch"):
        _compared(tmp_path / "model.onnx", wanted, found, ())


def test_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    wanted = np.ones((1, 2, 4, 4), np.float32)
    with pytest.raises(ImportRefused, match=r"torch answers \(1, 2, 4, 4\), the ONNX file"):
        _compared(tmp_path / "model.onnx", wanted, wanted[:, :1], ())


def test_greatest_difference_is_told(tmp_path: Path) -> None:
    wanted = np.full((1, 1, 2, 2), -4.0, np.float32)
    traced = _compared(tmp_path / "model.onnx", wanted, wanted + np.float32(0.001), ("a note",))
    assert traced.difference == pytest.approx(0.001, rel=1e-3)
    assert (traced.greatest, traced.notes) == (4.0, ("a note",))
