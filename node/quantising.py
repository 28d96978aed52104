"""A network whose multiplications are in INT8: quantised and dequantised at their places (Q/DQ).

The ranges are those of real blocks of real studies. Values are symmetric about 0, weights have a
range for each channel, and biases stay FP32: that is what TensorRT takes. What is no convolution
or matrix product stays FP32, and so do the first and the last of them, which matter most and cost
least.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors
from node.runtimes.onnx import raised_by

if TYPE_CHECKING:
    from onnx import ModelProto

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators that are quantised. ConvTranspose is not: its channels lie along another axis."""

_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
    "OpTypesToExcludeOutputQuantization": list(QUANTISED),
}


def quantise(model: ModelProto, path: Path, blocks: Sequence[Tensors]) -> tuple[str, ...]:
    """Write a network as INT8 to ``path``; ``blocks`` are what it is fed, to find its ranges.

    Returns in words what stays FP32. Raises RuntimeUnavailable without ONNX Runtime's tools;
    InferenceError when there is nothing to quantise or nothing to do it with.
    """
    if not blocks:
        raise InferenceError("INT8 needs studies to find the ranges of values: name some")
    inner = [node.name for node in model.graph.node if node.op_type in QUANTISED]
    kept = tuple(dict.fromkeys((*inner[:1], *inner[-1:])))
    if len(inner) <= len(kept):
        raise InferenceError(
            f"the network has {len(inner)} layers that could be INT8, and the first and the last "
            f"stay FP32: nothing would be gained"
        )
    _run(model, path, blocks, kept)
    return (f"in FP32: {', '.join(kept)} (the first and the last) and all that is not in "
            f"{', '.join(QUANTISED)}",)  # fmt: skip


def _run(model: ModelProto, path: Path, blocks: Sequence[Tensors], kept: tuple[str, ...]) -> None:
    tools = _tools()
    expected: tuple[type[Exception], ...] = (AssertionError, *raised_by(_onnxruntime()))
    with _quiet():
        try:
            tools.quantize_static(
                _copied(model),
                path,
                _reader(tools, blocks),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=list(kept),
                per_channel=True,
                activation_type=tools.QuantType.QInt8,
                weight_type=tools.QuantType.QInt8,
                calibrate_method=tools.CalibrationMethod.MinMax,
                extra_options=dict(_OPTIONS),
            )
        except expected as error:
            raise InferenceError(f"the network cannot be quantised: {error}") from error


def _tools() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before its first import, as in node.runtimes.onnx
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise RuntimeUnavailable(
            f"networks cannot be quantised ({error}): install the extra convert, "
            f"pip install 'dicom-ai-node[convert]'"
        ) from error
    return quantization


def _copied(model: ModelProto) -> ModelProto:
    """What is quantised loses its weights to files that are gone afterwards."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _onnxruntime() -> Any:
    import onnxruntime

    return onnxruntime


def _reader(tools: Any, blocks: Sequence[Tensors]) -> Any:
    """ONNX Runtime asks for one block after the other, until there is none."""

    class Blocks(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(blocks)

        def get_next(self) -> Tensors | None:
            return next(self._left, None)

    return Blocks()


@contextmanager
def _quiet() -> Iterator[None]:
    """Its advice is for people who write scripts."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
