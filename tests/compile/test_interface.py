"""Everything that we ask of TensorRT's Python interface is there, in each flavour installed.

A static check of names: it says that a call exists, never that it works. It reads the sources for
attributes of the variables that hold TensorRT's objects, so a new call is checked without a word
here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.domain.errors import RuntimeUnavailable
from node.gpu.libraries import FLAVOURS, Library, load_library
from node.gpu.recipe import Flavour
from tests.places import ROOT

_OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "layer": "ILayer",
    "optimization": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "_runtime": "Runtime",
}
"""Variables of our sources and the class of what they hold."""

_SOURCES = {
    "building.py": {"builder", "config", "network", "parser", "error", "layer", "optimization"},
    "plan.py": {"engine", "context", "runtime", "_engine", "_context"},
    "probing.py": {"builder", "config", "network"},
    "progress.py": set[str](),
    "workplace.py": set[str](),
}
"""Which of them a file of ``node/gpu`` has."""


_NOT_EVERYWHERE = {
    "ComputeCapability",
    "ComputeCapability.CURRENT",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.get_engine_stat",
    "EngineStat",
    "EngineStat.TOTAL_WEIGHTS_SIZE",
}
"""What only TensorRT-RTX has and is asked of it alone, and what older TensorRT lacks and is asked
for only where it is there."""


@pytest.fixture(scope="module", params=FLAVOURS)
def library(request: pytest.FixtureRequest) -> Library:
    """Every flavour that is installed."""
    flavour: Flavour = request.param
    try:
        return load_library(flavour)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def asked(file: str) -> Iterator[str]:
    """What a file asks of TensorRT: "IBuilderConfig.set_flag", "BuilderFlag.TF32"."""
    text = (ROOT / "node" / "gpu" / file).read_text(encoding="utf-8")
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.Attribute):
            dotted = _dotted(found)
            if len(dotted) > 1 and dotted[0] == "api":
                yield ".".join(dotted[1:])
            if len(dotted) > 1 and dotted[0] in _SOURCES[file]:
                yield f"{_OBJECTS[dotted[0]]}.{dotted[1]}"


def _dotted(found: ast.expr) -> tuple[str, ...]:
    """``self._context.x`` and ``library.api.x`` begin with the object of TensorRT."""
    if isinstance(found, ast.Attribute):
        before = _dotted(found.value)
        inner = before if before not in {("self",), ("library",), ("self", "_library")} else ()
        return (*inner, found.attr)
    if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute):
        return ("_engine",) if found.func.attr == "_live" else ("",)
    return (found.id,) if isinstance(found, ast.Name) else ("",)


def test_every_call_exists(library: Library) -> None:
    missing = []
    for file in _SOURCES:
        for name in sorted(set(asked(file))):
            found = library.api
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is None and name not in _NOT_EVERYWHERE:
                missing.append(f"{file}: {name}")
    assert not missing


def test_calls_are_found_in_the_sources() -> None:
    calls = {name for file in _SOURCES for name in asked(file)}
    assert {
        "Builder",
        "BuilderFlag.TF32",
        "IBuilderConfig.set_memory_pool_limit",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "IProgressMonitor",
        "OnnxParser.parse_from_file",
        "ParserError.node_name",
        "Runtime.deserialize_cuda_engine",
    } <= calls
    assert {Path(file).name for file in _SOURCES} == {
        path.name
        for path in (ROOT / "node" / "gpu").glob("*.py")
        if "api." in path.read_text(encoding="utf-8") and path.name != "libraries.py"
    } | {"plan.py"}
