"""ONNX Runtime on the CPU: the embedded default, and the reference for every other runtime."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors, TensorSpec, refuse_other

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg, SessionOptions

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}
"""Where ONNX Runtime's name of a type is not numpy's."""

_FATAL = 4
"""ONNX Runtime's severity below which it says nothing: what matters comes as an exception."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Onnx:
    """ONNX models on the CPU, computed the same way every time."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for one network; 0: one for each processor core."""
    optimise: Literal["none", "basic", "extended", "all"] = "all"
    """How far the graph is rewritten before it runs."""

    def load(self, model: Path) -> OnnxSession:
        """Load a model file, with external weights beside it.

        Raises RuntimeUnavailable without ONNX Runtime; InferenceError when the file is absent or
        is no model that this version can run.
        """
        # It reports its use to its maker unless told not to before it is imported; what runs in a
        # hospital reports to nobody.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailable(
                f"ONNX Runtime cannot be used ({error}); install it with: pip install onnxruntime"
            ) from error
        if not model.is_file():
            raise InferenceError(f"there is no model file {model}")
        failures = raised_by(onnxruntime)
        try:
            session = onnxruntime.InferenceSession(
                str(model), self._options(onnxruntime), providers=["CPUExecutionProvider"]
            )
        except failures as error:
            raise InferenceError(
                f"{model} is no ONNX model that onnxruntime {onnxruntime.__version__} can load: "
                f"{_reason(error)}. Export it again, or check that the file is complete"
            ) from error
        words = f"ONNX Runtime {onnxruntime.__version__} on the CPU"
        return OnnxSession(session, model.name, failures, words)

    def _options(self, onnxruntime: ModuleType) -> SessionOptions:
        options = onnxruntime.SessionOptions()
        # A number of our own, even for "all": left to itself it binds threads to cores, which the
        # service's sandbox forbids.
        options.intra_op_num_threads = self.threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[self.optimise]
        )
        options.log_severity_level = _FATAL
        options.use_deterministic_compute = True
        # Between two batches the threads would otherwise burn the cores that make the next one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OnnxSession:
    """A loaded ONNX network; made by ``Onnx.load``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    words: str
    """What computes, for the results."""

    def __init__(
        self,
        session: InferenceSession,
        name: str,
        failures: tuple[type[Exception], ...],
        words: str,
    ) -> None:
        self._session: InferenceSession | None = session
        self._name = name
        self._failures = failures
        self.words = words
        self.inputs = tuple(_spec(node, name) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, name) for node in session.get_outputs())

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name.

        Raises InferenceError when a tensor is absent, unknown, or of another type or shape than
        the network's, when the network fails, and after ``close``.
        """
        if self._session is None:
            raise InferenceError(f"{self._name} is closed; load it again")
        refuse_other(feeds, self.inputs, self._name)
        names = [spec.name for spec in self.outputs]
        try:
            arrays = self._session.run(names, dict(feeds))
        except self._failures as error:
            raise InferenceError(f"{self._name} failed: {_reason(error)}") from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Give back the memory; closing twice is no error."""
        self._session = None


def _spec(node: NodeArg, model: str) -> TensorSpec:
    kind = str(node.type)
    if not kind.startswith("tensor("):
        raise InferenceError(f"{model}: {node.name} is a {kind}; only tensors can be used")
    dtype = _DTYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape)
    return TensorSpec(str(node.name), shape, dtype)


def raised_by(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """Every class that ONNX Runtime raises: they share no base of their own."""
    kinds = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, ValueError, *own)


def _reason(error: Exception) -> str:
    """The first line without ONNX Runtime's own prefix of codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("[ONNXRuntimeError] : ").rstrip(". ")
