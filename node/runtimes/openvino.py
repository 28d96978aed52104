"""OpenVINO on the CPU: 3-D networks in two thirds of ONNX Runtime's time, or less.

Left to itself it computes in BF16 where the processor can, and reports its use to its maker. Here
it does neither: FP32 unless asked otherwise, and its reporting package is never imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors, TensorSpec, refuse_other

if TYPE_CHECKING:
    from openvino import CompiledModel, ConstOutput

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Our name of a precision, and OpenVINO's."""

_REPORTER = "openvino_telemetry"

_FORBIDDEN = "can't protect"
"""Its words where memory that was written may not be executed."""

_UNUSABLE = {"bf16", "string", "dynamic", "undefined"}
"""Types of OpenVINO that numpy does not have; what is packed below a byte comes as u1, i4, ..."""


@dataclass(frozen=True, config={"extra": "forbid"})
class OpenVino:
    """ONNX models by OpenVINO on the CPU, computed the same way every time."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for one network; 0: one for each processor core."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the arithmetic. Others than ``fp32`` are faster, differ from the reference
    and are refused on processors without them."""
    performance: Literal["latency", "throughput"] = "latency"
    """What the network is compiled for: one batch as soon as possible, or many at the same time.
    The node computes one batch after the other."""
    cache: str = ""
    """Folder for compiled networks, so that the next start is quicker; empty: none is kept."""

    def load(self, model: Path) -> OpenVinoSession:
        """Load a model file, with external weights beside it.

        Raises RuntimeUnavailable without OpenVINO, or where the processor lacks the precision;
        InferenceError when the file is absent or is no model that this version can run.
        """
        openvino = _library()
        if not model.is_file():
            raise InferenceError(f"there is no model file {model}")
        failures = _failures(openvino)
        core = openvino.Core()
        version = str(openvino.__version__).split("-", 1)[0]
        try:
            # The reader is named: to find out by itself it would try every format it knows, and
            # some of them complain on standard error.
            reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
            network = reader.convert(reader.load(str(model)))
            compiled = core.compile_model(network, "CPU", self._options())
        except failures as error:
            raise _explained(_reason(error), model, version) from error
        if not compiled.outputs:
            raise _explained("it is empty", model, version)
        self._refuse_other_precision(compiled)
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        words = f"OpenVINO {version} {self.precision} on {processor}"
        return OpenVinoSession(compiled, model.name, failures, words)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.precision],
            "EXECUTION_MODE_HINT": "ACCURACY" if self.precision == "fp32" else "PERFORMANCE",
            "PERFORMANCE_HINT": self.performance.upper(),
            # A number of our own: what it would choose counts cores that we may not use.
            "INFERENCE_NUM_THREADS": self.threads or len(os.sched_getaffinity(0)),
            "ENABLE_CPU_PINNING": False,
            "LOG_LEVEL": "LOG_NONE",
        }
        return options | ({"CACHE_DIR": self.cache} if self.cache else {})

    def _refuse_other_precision(self, compiled: CompiledModel) -> None:
        """What the processor cannot do is replaced without a word: FP16 by BF16, for one."""
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != _PRECISIONS[self.precision]:
            raise RuntimeUnavailable(
                f"this processor does not compute in {self.precision} (OpenVINO would take "
                f"{used}): write another precision in the engine's runtime table"
            )


class OpenVinoSession:
    """A loaded network; made by ``OpenVino.load``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    words: str
    """What computes, for the results."""

    def __init__(
        self,
        compiled: CompiledModel,
        name: str,
        failures: tuple[type[Exception], ...],
        words: str,
    ) -> None:
        self.inputs = tuple(_spec(port, name) for port in compiled.inputs)
        self.outputs = tuple(_spec(port, name) for port in compiled.outputs)
        self.words = words
        self._name = name
        self._failures = failures
        self._compiled: CompiledModel | None = compiled
        self._request = compiled.create_infer_request()

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name.

        Raises InferenceError when a tensor is absent, unknown, or of another type or shape than
        the network's, when the network fails, and after ``close``.
        """
        if self._compiled is None:
            raise InferenceError(f"{self._name} is closed; load it again")
        refuse_other(feeds, self.inputs, self._name)
        ordered = [_narrow(feeds[spec.name], spec) for spec in self.inputs]
        try:
            found: Mapping[Any, Any] = self._request.infer(ordered, share_outputs=False)
            arrays = [found[number] for number in range(len(self.outputs))]
        except self._failures as error:
            raise InferenceError(f"{self._name} failed: {_reason(error)}") from error
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Give back the memory; closing twice is no error."""
        self._request = None
        self._compiled = None


def _explained(reason: str, model: Path, version: str) -> InferenceError:
    """Why a network could not be loaded, and what to do."""
    if reason.endswith(_FORBIDDEN):
        return RuntimeUnavailable(
            "OpenVINO writes machine code while it runs, which MemoryDenyWriteExecute=yes forbids "
            "this service: set that to no in a drop-in of its unit, or use the runtime 'onnx'"
        )
    return InferenceError(
        f"{model} is no ONNX model that OpenVINO {version} can load: {reason}. "
        f"Export it again, check that the file is complete, or use the runtime 'onnx'"
    )


def _library() -> ModuleType:
    """OpenVINO without its reporter: an import of that fails, and a stand-in that does nothing
    takes its place, as OpenVINO foresees."""
    sys.modules.setdefault(_REPORTER, None)  # type: ignore[arg-type]  # None: must not be found
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnavailable(
            f"OpenVINO cannot be used ({error}); install it with: "
            f"pip install 'dicom-ai-node[openvino]'"
        ) from error
    library: ModuleType = openvino
    return library


def _spec(port: ConstOutput, model: str) -> TensorSpec:
    """A tensor of the network; its name is the one in the model file."""
    name, kind = _name(port), port.element_type.get_type_name()
    dtype = np.dtype(port.element_type.to_dtype())
    if kind in _UNUSABLE or port.element_type.bitwidth not in {1, 8 * dtype.itemsize}:
        raise InferenceError(f"{model}: {name} has the type {kind}, which numpy does not have")
    if port.partial_shape.rank.is_dynamic:
        raise InferenceError(f"{model}: {name} has no fixed number of axes; export it with one")
    shape = tuple(-1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
    return TensorSpec(name, shape, dtype.name)


def _narrow(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """An array as it can be fed. Wide integers are computed in 32 bits, which must hold them."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.size:
        bounds = np.iinfo(np.int32)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise InferenceError(
                f"OpenVINO computes whole numbers in 32 bits, and {spec.name} holds larger ones; "
                f"use the runtime 'onnx'"
            )
    return np.ascontiguousarray(array).reshape(array.shape)


def _name(port: ConstOutput) -> str:
    """The name in the model file.

    An output may carry every name that the same numbers have on their way; the node that stands
    for the output is called after the one that counts.
    """
    node = str(port.node.friendly_name).partition("/sink_port_")[0]
    return node if node in port.names else str(port.any_name)


def _failures(openvino: ModuleType) -> tuple[type[Exception], ...]:
    """Every class that OpenVINO raises: they share no base of their own."""
    kinds = vars(openvino.frontend).values()
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, ValueError, TypeError, *own)


def _reason(error: Exception) -> str:
    """The last line, which says what was wrong; those before it name OpenVINO's own files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(". ") if lines else type(error).__name__
