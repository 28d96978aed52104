"""A network of torch becomes an ONNX file, and is asked whether it still answers the same.

Shapes are fixed but for the batch, so a compiler sees lengths and not formulas. Torch is imported
only here and in ``node.trained``, only inside functions, and only for ``ai-node engine export``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import ImportRefused
from node.runtimes.onnx import Onnx

OPSET = 18
INPUT, OUTPUT = "image", "output"
LARGEST = 1_900_000_000
"""Bytes of weights that go into one file; ONNX's format ends at 2 GB."""
TOLERANCE = 1e-3
"""The greatest difference between ONNX Runtime and torch, as a share of the greatest answer."""
_SEED = 18


@dataclass(frozen=True, slots=True)
class Traced:
    """What was written. ``difference`` is the greatest one to torch on noise, ``greatest`` the
    greatest absolute value of torch's answer; ``shape`` is that of the answer to one block.
    """

    path: Path
    shape: tuple[int, ...]
    difference: float
    greatest: float
    notes: tuple[str, ...] = ()


def trace(network: Any, block: tuple[int, ...], path: Path) -> Traced:
    """Write a torch module as ONNX; ``block`` is (channels, *patch) of its one input.

    Raises ImportRefused when torch cannot export it, when it gives several tensors, and when the
    file answers otherwise than torch.
    """
    import torch

    network = network.to("cpu", torch.float32).eval()
    noise = np.random.default_rng(_SEED).standard_normal((1, *block), np.float32)
    wanted = _answer(network, noise)
    notes = _written(network, block, path)
    notes += _stripped(path)
    session = Onnx().load(path)
    found = session.infer({INPUT: noise})[OUTPUT]
    session.close()
    return _compared(path, wanted, found, notes)


def _answer(network: Any, noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Torch's own answer. Raises ImportRefused when there is none, or are several."""
    import torch

    try:
        with torch.no_grad(), _silent():
            answer = network(torch.from_numpy(noise))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ImportRefused(
            f"the network does not take a block of {noise.shape}: {_reason(error)}. Name the "
            f"lengths that it was trained on with --patch, the channels with --channels"
        ) from error
    if not isinstance(answer, torch.Tensor):
        raise ImportRefused(
            f"the network gives a {type(answer).__name__} and not one tensor: wrap it in a module "
            f"that returns the tensor that counts, and export that"
        )
    return np.asarray(answer.numpy(), np.float32)


def _written(network: Any, block: tuple[int, ...], path: Path) -> tuple[str, ...]:
    """Export with any batch; where the network allows only one, with a batch of one."""
    import torch

    try:
        _export(network, torch.zeros((2, *block)), path, {0: torch.export.Dim("batch", min=1)})
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        try:
            _export(network, torch.zeros((1, *block)), path, None)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as last:
            raise ImportRefused(f"torch cannot export the network: {_reason(last)}") from last
        return (f"its batch is always 1, for with any batch torch fails: {_reason(error)}",)
    return ()


def _export(network: Any, example: Any, path: Path, free: dict[int, Any] | None) -> None:
    import torch

    size = sum(one.numel() * one.element_size() for one in network.state_dict().values())
    with _silent():
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=None if free is None else (free,),
            external_data=size > LARGEST,
            verbose=False,
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Torch warns of much that nobody here can change."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _stripped(path: Path) -> tuple[str, ...]:
    """Take out what torch wrote of the machine it ran on: every node has a trace of its source."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for one in _described(model.graph):
        del one.metadata_props[:]
        one.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    onnx.save(model, str(path))
    opset = next(one.version for one in model.opset_import if not one.domain)
    return () if opset == OPSET else (f"its operators are of opset {opset}",)


def _described(graph: Any) -> Iterator[Any]:
    """Everything of a graph that may carry words."""
    for part in ("node", "value_info", "initializer", "input", "output"):
        yield from getattr(graph, part)


def _compared(
    path: Path, wanted: NDArray[np.float32], found: NDArray[Any], notes: tuple[str, ...]
) -> Traced:
    if wanted.shape != found.shape:
        raise ImportRefused(f"torch answers {wanted.shape}, the ONNX file {found.shape}")
    difference = float(np.abs(wanted - found).max())
    greatest = float(np.abs(wanted).max())
    if not difference <= TOLERANCE * max(greatest, 1e-6):
        raise ImportRefused(
            f"the ONNX file answers otherwise than torch: {difference:.3g} apart where the "
            f"greatest value is {greatest:.3g}. Nothing was written"
        )
    return Traced(path, wanted.shape, difference, greatest, notes)


def _reason(error: BaseException) -> str:
    """The first line that says something, of the deepest cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(". ")
