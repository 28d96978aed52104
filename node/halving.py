"""A network's graph typed anew in FP16, with what FP16 cannot hold kept in FP32 between casts.

Compilers no longer choose precision: it lies in the graph. Norms, softmaxes, sums over many voxels
and coordinates keep FP32, for squares and sums of halves overflow and places have too few digits.
Inputs and outputs keep FP32, so nobody outside sees a difference but in the third digit.

ONNX Runtime's CPU computes FP16 graphs in FP32 and so hides what a GPU would do. ``stored`` makes
the twin that rounds every value as FP16 stores it, and shows overflow where a GPU has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import InferenceError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FLOAT, HALF = 1, 10
"""ONNX's numbers of the two types."""
LARGEST = float(np.finfo(np.float16).max)

WIDE = frozenset({
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "BatchNormalization",
    "LRN", "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "Softmax",
    "LogSoftmax", "Hardmax", "Softplus", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceProd", "ReduceMax", "ReduceMin", "GlobalAveragePool",
    "GlobalLpPool", "LpPool", "Mean", "ArgMax", "ArgMin", "TopK", "Resize", "Upsample",
    "GridSample", "AffineGrid", "RoiAlign", "MaxRoiPool", "NonMaxSuppression", "OneHot", "Equal",
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Round", "Floor", "Ceil", "Mod", "IsNaN",
    "IsInf", "NonZero", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "Attention", "LSTM", "GRU", "RNN", "DFT", "STFT", "Det",
})  # fmt: skip
"""Operators that stay in FP32."""
MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators that only move values, and so take them as they come."""
_AFFINE = frozenset({"Mul", "Add", "Sub", "Div"})
_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
"""Operators that are worth halving even where they make an output of the network."""
_AS_IT_COMES = frozenset({"Cast", "Shape", "Size"})
_EXACT = MOVING | frozenset({
    "Relu", "MaxPool", "Concat", "Slice", "Split", "Gather", "Expand", "Tile", "Pad",
    "DepthToSpace", "SpaceToDepth", "Neg", "Abs",
})  # fmt: skip
"""Operators whose results are representable where their operands are."""
_FEW = 16
"""Values of a constant that counts as single numbers, of which none may vanish."""


@dataclass(frozen=True, slots=True, eq=False)
class Halved:
    """The network in FP16, and how many nodes were kept in FP32, by operator.

    ``notes`` says in words which were kept for their constants.
    """

    model: ModelProto
    wide: dict[str, int]
    notes: tuple[str, ...]


def halve(model: ModelProto) -> Halved:
    """A network in FP32 as one in FP16.

    Raises InferenceError for graphs that have branches or loops, and for those that are not FP32.
    """
    plain = prepared(model)
    return _Halving(plain, _kinds(plain)).done()


def prepared(model: ModelProto) -> ModelProto:
    """A copy without functions of its own, and with constants where weights are."""
    from onnx import inliner

    plain = inliner.inline_local_functions(model) if model.functions else _copied(model)
    for node in plain.graph.node:
        if any(one.type in {one.GRAPH, one.GRAPHS} for one in node.attribute):
            raise InferenceError(
                f"the network has a {node.op_type}, whose branches cannot be typed anew: export it "
                f"with torch.onnx.export(..., dynamo=True), which leaves none"
            )
    nodes = [node for node in plain.graph.node if not _taken_out(plain.graph, node)]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _copied(model: ModelProto) -> ModelProto:
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _taken_out(graph: GraphProto, node: NodeProto) -> bool:
    """Whether a node is a constant that is now among the weights."""
    from onnx import helper, numpy_helper

    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return False
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64,
             "value_ints": np.int64}  # fmt: skip
    if attribute.name == "value":
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    elif attribute.name in types:
        array = np.asarray(value, types[attribute.name])
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    else:
        return False
    return True


def _kinds(model: ModelProto) -> dict[str, int]:
    """The type of every value by its name. Raises InferenceError where one is not known."""
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except (ValueError, RuntimeError) as error:
        raise InferenceError(f"the network's types cannot be told: {error}") from error
    kinds = {one.name: one.data_type for one in graph.initializer}
    for one in (*graph.input, *graph.output, *graph.value_info):
        kinds[one.name] = one.type.tensor_type.elem_type
    for node in graph.node:
        for name in node.output:
            if name and not kinds.get(name):
                raise InferenceError(f"the type of {name!r}, made by a {node.op_type}, is not told")
    return kinds


@dataclass
class _Halving:
    """One graph on its way."""

    model: ModelProto
    kinds: dict[str, int]
    nodes: list[NodeProto] = field(default_factory=list)
    now: dict[str, int] = field(default_factory=dict)
    """The type in which an FP32 value now is made."""
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    wide: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = {one.name: one for one in graph.initializer}
        self.outputs = {one.name for one in graph.output}
        self.now = {name: FLOAT for name, kind in self.kinds.items() if kind == FLOAT}
        if HALF in self.kinds.values():
            raise InferenceError("the network has FP16 in it already; its FP32 original is wanted")
        if FLOAT not in self.kinds.values():
            raise InferenceError("the network has no FP32 in it, so there is nothing to halve")

    def done(self) -> Halved:
        """The whole graph."""
        graph = self.model.graph
        for node in list(graph.node):
            self._take(node)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        _drop_unused(graph)
        return Halved(self.model, dict(sorted(self.wide.items())), tuple(self.notes))

    def _take(self, node: NodeProto) -> None:
        """A node in the type that suits it."""
        if node.op_type in _AS_IT_COMES or not self._floats(node):
            self.nodes.append(self._fed(node, None))
            return
        kind = self._suited(node)
        if kind == FLOAT:
            self.wide[node.op_type] = self.wide.get(node.op_type, 0) + 1
        fed = self._fed(node, kind)
        self.nodes.append(fed)
        for number, name in enumerate(node.output):
            if kind == HALF and name in self.now:
                self._made_half(fed, number, name)

    def _floats(self, node: NodeProto) -> bool:
        return any(name in self.now for name in (*node.input, *node.output))

    def _suited(self, node: NodeProto) -> int:
        """FP32 or FP16."""
        operands = [name for name in node.input if name in self.now]
        running = [name for name in operands if name not in self.constants]
        if node.op_type in WIDE or node.domain not in {"", "ai.onnx"} or not running:
            return FLOAT
        lost = [reason for name in operands if (reason := self._lost(name))]
        if lost:
            self.notes.append(f"{node.op_type} {node.name or node.output[0]} in FP32: {lost[0]}")
            return FLOAT
        if node.op_type in MOVING or (node.op_type in _AFFINE and len(operands) > len(running)):
            return self._last(running[0])
        if node.op_type in {"Sub", "Div"} and any(self._last(name) == FLOAT for name in running):
            return FLOAT
        makes_output = any(name in self.outputs for name in node.output)
        return FLOAT if makes_output and node.op_type not in _MULTIPLYING else HALF

    def _last(self, name: str) -> int:
        """How a value is made, whatever an output of the network is given as."""
        return HALF if (name, HALF) in self.casts and name in self.outputs else self.now[name]

    def _lost(self, name: str) -> str:
        """What FP16 would lose of a constant that matters; empty when nothing."""
        if name not in self.constants:
            return ""
        array = _array(self.constants[name]).astype(np.float64)
        sizes = np.abs(array[np.isfinite(array)])
        if sizes.max(initial=0.0) > LARGEST:
            return f"its constant {sizes.max():.3g} is beyond what FP16 holds"
        smallest = float(np.finfo(np.float16).smallest_subnormal)
        if sizes.size <= _FEW and bool(np.any((sizes > 0) & (sizes < smallest))):
            return f"its constant {sizes[sizes > 0].min():.3g} would be 0 in FP16"
        return ""

    def _fed(self, node: NodeProto, kind: int | None) -> NodeProto:
        """A copy of a node whose FP32 operands come in a type (None: as they are made)."""
        from onnx import NodeProto

        copy = NodeProto()
        copy.CopyFrom(node)
        if kind is not None:
            names = [self._as(name, kind) if name in self.now else name for name in node.input]
            del copy.input[:]
            copy.input.extend(names)
        return copy

    def _as(self, name: str, kind: int) -> str:
        """The name of a value in a type; cast once for all who ask."""
        from onnx import helper, numpy_helper

        if self.now[name] == kind:
            return name
        if (name, kind) not in self.casts:
            other = f"{name}/{'half' if kind == HALF else 'float'}"
            self.casts[name, kind] = other
            if name in self.constants:
                half = _array(self.constants[name]).astype(np.float16)
                self.model.graph.initializer.append(numpy_helper.from_array(half, other))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], other, to=kind))
        return self.casts[name, kind]

    def _made_half(self, fed: NodeProto, number: int, name: str) -> None:
        """A value is made as FP16; an output of the network is given in FP32 all the same."""
        from onnx import helper

        if name not in self.outputs:
            self.now[name] = HALF
            return
        half = f"{name}/half"
        fed.output[number] = half
        self.casts[name, HALF] = half
        self.nodes.append(helper.make_node("Cast", [half], [name], f"{name}/float", to=FLOAT))


def _array(tensor: TensorProto) -> NDArray[Any]:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _drop_unused(graph: GraphProto) -> None:
    """Weights that nobody asks for any more."""
    asked = {name for node in graph.node for name in node.input}
    asked |= {one.name for one in graph.output}
    kept = [one for one in graph.initializer if one.name in asked]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def stored(model: ModelProto) -> ModelProto:
    """The twin in FP32 of a network in FP16, with every value rounded as FP16 stores it.

    Products are summed in FP32, as a GPU's tensor cores do.
    """
    from onnx import helper, numpy_helper

    twin = _copied(model)
    kinds = _kinds(twin)
    nodes = [one for node in twin.graph.node for one in _rounded(node, kinds)]
    weights = [
        numpy_helper.from_array(_array(one).astype(np.float32), one.name)
        if one.data_type == HALF
        else one
        for one in twin.graph.initializer
    ]
    graph = helper.make_graph(nodes, "stored", twin.graph.input, twin.graph.output, weights)
    return helper.make_model(graph, opset_imports=twin.opset_import, ir_version=twin.ir_version)


def _rounded(node: NodeProto, kinds: dict[str, int]) -> Iterator[NodeProto]:
    """A node, and behind it the rounding of what it makes in FP16."""
    from onnx import helper

    halves = [name for name in node.output if kinds.get(name) == HALF]
    if not halves or node.op_type in _EXACT:
        yield node
        return
    if node.op_type == "Cast":
        yield helper.make_node("Cast", node.input, [f"{node.output[0]}/stored"], to=HALF)
        yield helper.make_node("Cast", [f"{node.output[0]}/stored"], node.output, to=FLOAT)
        return
    for number, name in enumerate(node.output):
        if name in halves:
            node.output[number] = f"{name}/exact"
    yield node
    for name in halves:
        yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/stored"], to=HALF)
        yield helper.make_node("Cast", [f"{name}/stored"], [name], to=FLOAT)
