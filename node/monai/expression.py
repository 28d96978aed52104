"""Reads the few Python expressions that stand in a MONAI bundle, without running any of them.

A bundle's configuration may hold any Python behind a ``$``. What decides how a network is fed is
nearly always the same handful: arithmetic, a choice, a list put together, the name of a number
type. Only these are read here, from the syntax tree; everything else is named as not understood.
"""

from __future__ import annotations

import ast
import operator
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LookUp = Callable[[str], Any]
"""The value that a reference such as ``network_def::in_channels`` stands for."""

LONGEST = 2_000
"""Characters of an expression that is read."""
LARGEST = 10_000
"""Elements of a list with those of lists in it, or characters of a text, that it may make."""
_BEYOND = 1e300
"""Greater than any number that can be computed with."""

_REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")

_TYPES = {
    "float": "float32",
    "float32": "float32",
    "float64": "float64",
    "double": "float64",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "bool_": "bool",
    "uint8": "uint8",
    "int8": "int8",
    "int16": "int16",
    "short": "int16",
    "int32": "int32",
    "int": "int32",
    "int64": "int64",
    "long": "int64",
}
"""Number types as torch and numpy name them."""

_KEYS = {"IMAGE": "image", "LABEL": "label", "PRED": "pred", "LOSS": "loss"}
"""MONAI's ``CommonKeys``."""


class NotUnderstood(ValueError):
    """An expression, or a part of one, that is not among those that are read."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A function that the configuration writes out: ``lambda x: x > 0``. It is never called."""

    text: str
    argument: str
    body: ast.expr = field(repr=False, compare=False)


def evaluate(text: str, look_up: LookUp) -> Any:
    """The value of an expression (without its ``$``).

    Raises NotUnderstood with the part that is not read. A number type is its numpy name, a device
    its name, a function a ``Formula``.
    """
    if len(text) > LONGEST:
        raise NotUnderstood(f"an expression of {len(text)} characters (limit {LONGEST})")
    names: dict[str, str] = {}

    def named(match: re.Match[str]) -> str:
        names[f"reference_{len(names)}"] = match.group()[1:].replace("#", "::")
        return f"reference_{len(names) - 1}"

    try:
        tree = ast.parse(_REFERENCE.sub(named, text.strip()), mode="eval")
        return _read(tree.body, _Scope(text, names, look_up))
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise NotUnderstood(f"it is no expression ({type(error).__name__})") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise NotUnderstood(str(error) or type(error).__name__) from None


@dataclass(frozen=True, slots=True)
class _Scope:
    text: str
    names: Mapping[str, str]
    look_up: LookUp


def _read(node: ast.expr, scope: _Scope) -> Any:
    reader = _READERS.get(type(node))
    if reader is None:
        raise NotUnderstood(f"{type(node).__name__} is not read: {ast.unparse(node)}")
    return reader(node, scope)


def _constant(node: ast.Constant, scope: _Scope) -> Any:
    if isinstance(node.value, (str, bool, int, float)) or node.value is None:
        return node.value
    raise NotUnderstood(f"not a plain value: {ast.unparse(node)}")


def _name(node: ast.Name, scope: _Scope) -> Any:
    if node.id in scope.names:
        return scope.look_up(scope.names[node.id])
    raise NotUnderstood(f"the name {node.id}")


def _sequence(node: ast.List | ast.Tuple, scope: _Scope) -> list[Any]:
    return list(_kept([_read(one, scope) for one in node.elts]))


def _dictionary(node: ast.Dict, scope: _Scope) -> dict[Any, Any]:
    if None in node.keys:
        raise NotUnderstood(f"a dictionary unpacked into another: {ast.unparse(node)}")
    keys = [_read(key, scope) for key in node.keys if key is not None]
    return dict(zip(keys, [_read(value, scope) for value in node.values], strict=True))


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _binary(node: ast.BinOp, scope: _Scope) -> Any:
    left, right = _read(node.left, scope), _read(node.right, scope)
    combine = _BINARY.get(type(node.op))
    numbers = all(isinstance(one, (int, float)) for one in (left, right))
    joined = isinstance(node.op, ast.Add) and type(left) is type(right) and _sized(left)
    repeated = isinstance(node.op, ast.Mult) and (_sized(left) or _sized(right)) and not numbers
    if combine is None or not (numbers or joined or repeated):
        raise NotUnderstood(f"not read: {ast.unparse(node)}")
    if repeated:
        size, times = (_size(left), right) if _sized(left) else (_size(right), left)
        _bounded(size * int(times))
    return _kept(combine(left, right))


def _sized(value: Any) -> bool:
    return isinstance(value, (str, list))


def _bounded(count: int) -> None:
    if count > LARGEST:
        raise NotUnderstood(f"it makes {count} elements (limit {LARGEST})")


def _kept(value: Any) -> Any:
    _bounded(_size(value))
    if isinstance(value, (int, float)) and not is_number(value):
        raise NotUnderstood("it makes a number that cannot be computed with")
    return value


def is_number(value: Any) -> bool:
    """Whether it is one to compute with: JSON has Infinity, and whole numbers of any length."""
    return isinstance(value, (int, float)) and -_BEYOND < value < _BEYOND


def _size(value: Any) -> int:
    """Elements, those of lists in a list too: written out, a list repeated is no longer short."""
    if isinstance(value, list):
        return sum(max(_size(one), 1) for one in value)
    return len(value) if isinstance(value, str) else 1


_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


def _unary(node: ast.UnaryOp, scope: _Scope) -> Any:
    combine = _UNARY.get(type(node.op))
    if combine is None:
        raise NotUnderstood(f"not read: {ast.unparse(node)}")
    return combine(_read(node.operand, scope))


def _truth(node: ast.BoolOp, scope: _Scope) -> Any:
    value: Any = None
    for one in node.values:
        value = _read(one, scope)
        if bool(value) is isinstance(node.op, ast.Or):
            return value
    return value


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
    ast.Is: lambda one, other: one == other,
    ast.IsNot: lambda one, other: one != other,
}


def _comparison(node: ast.Compare, scope: _Scope) -> bool:
    left = _read(node.left, scope)
    for kind, other in zip(node.ops, node.comparators, strict=True):
        right = _read(other, scope)
        if not _COMPARISONS[type(kind)](left, right):
            return False
        left = right
    return True


def _choice(node: ast.IfExp, scope: _Scope) -> Any:
    return _read(node.body if _read(node.test, scope) else node.orelse, scope)


def _element(node: ast.Subscript, scope: _Scope) -> Any:
    value = _read(node.value, scope)
    if not isinstance(value, (str, list, dict)):
        raise NotUnderstood(f"not read: {ast.unparse(node)}")
    if isinstance(node.slice, ast.Slice):
        parts = (node.slice.lower, node.slice.upper, node.slice.step)
        start, stop, step = (None if part is None else _read(part, scope) for part in parts)
        return value[start:stop:step]
    return value[_read(node.slice, scope)]


def _attribute(node: ast.Attribute, scope: _Scope) -> Any:
    dotted = ast.unparse(node)
    module = dotted.partition(".")[0]
    if module in {"torch", "numpy", "np"} and dotted.count(".") == 1 and node.attr in _TYPES:
        return _TYPES[node.attr]
    if dotted.rpartition(".")[0].endswith("CommonKeys") and node.attr in _KEYS:
        return _KEYS[node.attr]
    raise NotUnderstood(f"not read: {dotted}")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "min": min,
    "max": max,
    "sum": sum,
    "abs": abs,
    "round": round,
    "list": list,
    "tuple": list,
    "sorted": sorted,
    "copy.copy": lambda value: value,
    "copy.deepcopy": lambda value: value,
    "numpy.array": list,
    "np.array": list,
    "os.path.join": posixpath.join,
    "torch.cuda.is_available": lambda: False,
    "torch.device": lambda name="cpu", *_: str(name),
}
"""Functions of plain values; which device there is decides nothing here, so there is none."""

_METHODS: dict[str, Callable[..., Any]] = {
    "to": lambda value, *_: value,
    "get": lambda value, key, default=None: value.get(key, default),
    "keys": lambda value: list(value.keys()),
    "values": lambda value: list(value.values()),
    "tolist": list,
}
"""Methods of what a reference stands for; moving a network to a device leaves it what it is."""


def _call(node: ast.Call, scope: _Scope) -> Any:
    if node.keywords:
        raise NotUnderstood(f"not read: {ast.unparse(node)}")
    name = ast.unparse(node.func)
    if name == "range":
        return _range([_read(one, scope) for one in node.args])
    if name in _FUNCTIONS:
        return _kept(_FUNCTIONS[name](*(_read(one, scope) for one in node.args)))
    if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
        value = _read(node.func.value, scope)
        if node.func.attr == "to":
            return value
        return _kept(_METHODS[node.func.attr](value, *(_read(one, scope) for one in node.args)))
    raise NotUnderstood(f"a call of {name}")


def _range(bounds: Sequence[Any]) -> list[int]:
    numbers = range(*bounds)
    _bounded(len(numbers))
    return list(numbers)


def _function(node: ast.Lambda, scope: _Scope) -> Formula:
    arguments = node.args.args
    if len(arguments) != 1 or node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        raise NotUnderstood(f"not read: {ast.unparse(node)}")
    return Formula(scope.text.strip(), arguments[0].arg, node.body)


_READERS: dict[type[ast.expr], Callable[[Any, _Scope], Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _sequence,
    ast.Tuple: _sequence,
    ast.Dict: _dictionary,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _truth,
    ast.Compare: _comparison,
    ast.IfExp: _choice,
    ast.Subscript: _element,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.Lambda: _function,
}


def above(formula: Formula) -> float | None:
    """The number in ``lambda x: x > 0``; None for any other function."""
    body = formula.body
    if not isinstance(body, ast.Compare) or len(body.ops) != 1:
        return None
    if not isinstance(body.ops[0], ast.Gt) or not _is(body.left, formula.argument):
        return None
    return _number(body.comparators[0])


def drops_first(formula: Formula) -> bool:
    """Whether it is ``lambda x: x[1:]``: every channel but the first."""
    return ast.unparse(formula.body) == f"{formula.argument}[1:]"


def painted(formula: Formula) -> tuple[tuple[int, int], ...]:
    """Channels and the labels that they become, the one that wins first.

    Reads ``torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))`` as ((2, 4), (0, 1)); any
    other function is ().
    """
    found: list[tuple[int, int]] = []
    node: ast.expr = formula.body
    while isinstance(node, ast.Call) and ast.unparse(node.func) in _WHERE and len(node.args) == 3:
        condition, then, node = node.args
        channel, label = _channel_above_0(condition, formula.argument), _number(then)
        if channel is None or label is None or not float(label).is_integer():
            return ()
        found.append((channel, int(label)))
    return tuple(found) if _number(node) == 0 else ()


_WHERE = {"torch.where", "numpy.where", "np.where"}


def _channel_above_0(node: ast.expr, argument: str) -> int | None:
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    if not isinstance(node.ops[0], ast.Gt) or _number(node.comparators[0]) not in {0, 0.5}:
        return None
    if not isinstance(node.left, ast.Subscript) or not _is(node.left.value, argument):
        return None
    index = node.left.slice
    if isinstance(index, ast.List) and len(index.elts) == 1:
        index = index.elts[0]
    number = _number(index)
    return None if number is None or number < 0 else int(number)


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
