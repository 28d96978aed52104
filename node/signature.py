"""What a network's file says of itself, read without trusting it and without running it.

Only ONNX Runtime is needed; where the package ``onnx`` is installed, the graph itself is looked
into, and says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from node.domain.errors import ImportRefused, InferenceError
from node.domain.tensor import TensorSpec
from node.runtimes.onnx import Onnx, OnnxSession

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

_PASSING = frozenset(
    ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice")
)
"""Operators behind which probabilities are still probabilities."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What the file states.

    ``symbols`` has the names of the dynamic axes of each tensor ("" where an axis is fixed).
    ``notes`` is the metadata that its maker put in. ``last`` is the last operator behind each
    output; empty where the package ``onnx`` is not installed to see it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, str] = field(default_factory=dict)


def read(model: Path, look_inside: bool = True) -> tuple[Signature, OnnxSession]:
    """What a file states, and the network loaded on the CPU; the caller closes it.

    ``look_inside`` reads the graph with the package ``onnx`` where that is installed. Raises
    ImportRefused when it cannot be loaded.
    """
    try:
        session = Onnx(optimise="basic").load(model)
    except InferenceError as error:
        raise ImportRefused(f"{error}. Nothing was written") from error
    symbols, notes = _described(model)
    last = _last_operators(model) if look_inside else {}
    return Signature(session.inputs, session.outputs, symbols, notes, last), session


def external_files(model: Path, look_inside: bool = True) -> tuple[str, ...]:
    """Names of the files beside a model that hold its weights; each begins with the model's name.

    Without the package ``onnx`` these are the ones that exporters usually write. Raises
    ImportRefused for others: only such files are in a package's digest, and what a network names
    could lie anywhere on this machine.
    """
    graph = _graph(model) if look_inside else None
    if graph is None:
        usual = [f"{model.name}{end}" for end in (".data", "_data", ".bin", ".weights")]
        return _beside(model, [name for name in usual if (model.parent / name).is_file()])
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    outside = [tensor for tensor in graph.initializer if uses_external_data(tensor)]
    return _beside(model, sorted({str(ExternalDataInfo(tensor).location) for tensor in outside}))


def _beside(model: Path, names: list[str]) -> tuple[str, ...]:
    """The names, when all are of files in the model's folder. Raises ImportRefused.

    ONNX Runtime refuses links and paths that lead out, but only for weights that the graph uses.
    """
    astray = [n for n in names if not n.startswith(model.name) or {"/", "\\", "\0"} & set(n)]
    if astray:
        raise ImportRefused(
            f"its weights lie in {', '.join(astray[:3])}{' and others' * (len(astray) > 3)}, but "
            f'in a package they lie in {model.name}.data. Save it again: python -c "import onnx; '
            f"onnx.save_model(onnx.load('{model.name}'), 'model.onnx', "
            f"save_as_external_data=True, location='model.onnx.data')\""
        )
    folders = {model.parent.resolve(), model.resolve().parent}
    for name in names:
        if (model.parent / name).resolve().parent not in folders:
            raise ImportRefused(f"{name} is a link that leads elsewhere; copy the file there")
    return tuple(names)


def _described(model: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    raw = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    symbols = {
        str(node.name): tuple(axis if isinstance(axis, str) else "" for axis in node.shape)
        for node in (*raw.get_inputs(), *raw.get_outputs())
    }
    stated = raw.get_modelmeta()
    notes = {str(key).lower(): str(value) for key, value in stated.custom_metadata_map.items()}
    return symbols, {"description": str(stated.description), **notes}


def _graph(model: Path) -> GraphProto | None:
    try:
        import onnx
    except ImportError:
        return None
    return onnx.load(str(model), load_external_data=False).graph


def _last_operators(model: Path) -> dict[str, str]:
    graph = _graph(model)
    if graph is None:
        return {}
    makers = {name: node for node in graph.node for name in node.output}
    return {output.name: _origin(output.name, makers) for output in graph.output}


def _origin(name: str, makers: Mapping[str, NodeProto]) -> str:
    """The operator whose values an output has, whatever moves them around."""
    for _ in range(len(makers)):
        node = makers.get(name)
        if node is None or not node.input or node.op_type not in _PASSING:
            return str(node.op_type) if node is not None else ""
        name = node.input[0]
    return ""
