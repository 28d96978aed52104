"""The GPU of these tests, or the exact reason why there is none.

All tests of this folder carry the marker ``gpu``. With ``NODE_REQUIRE_GPU=1`` in the environment a
missing piece is a failure, so that a machine with a GPU cannot pass by skipping.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.gpu.cuda import open_device
from node.gpu.device import Card, Device
from node.gpu.libraries import Library, load_library
from node.gpu.probing import probe
from node.gpu.recipe import PlanStore
from node.runtimes.tensorrt import Kept, TensorRt
from tests.gpu.shelf import Shelf

_FIGURES = pytest.StashKey[list[dict[str, Any]]]()

Record = Callable[..., None]
"""Called with the name of a figure and what was measured."""


def absent(reason: str) -> None:
    """Skip, or fail where a GPU was promised."""
    if os.environ.get("NODE_REQUIRE_GPU") == "1":
        pytest.fail(f"NODE_REQUIRE_GPU=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Gpu:
    """A device on which a plan has been built and loaded."""

    card: Card
    library: Library
    plans: PlanStore = field(default_factory=Shelf)

    def runtime(self, **options: Any) -> Kept:
        """The runtime with these options and the plans of this session."""
        flavour = self.library.flavour
        return TensorRt(device=self.card.index, flavour=flavour, **options).kept(self.plans)


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The first GPU with whatever TensorRT runs on it; NODE_GPU names another."""
    index = int(os.environ.get("NODE_GPU", "0"))
    found = probe(index)
    if found.runs is None:
        absent(found.reason)
        raise AssertionError("unreachable")
    return Gpu(found.devices[index], load_library(found.runs))


@pytest.fixture
def device(gpu: Gpu) -> Iterator[Device]:
    """The bare device, for what needs no network."""
    opened = open_device(gpu.card.index)
    yield opened
    opened.close()


@pytest.fixture
def record(gpu: Gpu, request: pytest.FixtureRequest) -> Record:
    """Keeps a figure with what it was measured on; shown at the end of the run."""

    def keep(name: str, **figures: Any) -> None:
        where = {
            "gpu": gpu.card.name,
            "capability": ".".join(map(str, gpu.card.capability)),
            "driver": gpu.card.driver,
            "library": gpu.library.title,
        }
        line = {"figure": name, **figures, **where}
        request.config.stash.setdefault(_FIGURES, []).append(line)

    return keep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker, for this folder only."""
    for one in items:
        if Path(__file__).parent in one.path.parents:
            one.add_marker(pytest.mark.gpu)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The figures, one JSON object a line; also into the file that NODE_GPU_FIGURES names."""
    lines = [json.dumps(one) for one in config.stash.get(_FIGURES, [])]
    for line in lines:
        terminalreporter.write_line(f"figure {line}")
    path = os.environ.get("NODE_GPU_FIGURES")
    if path and lines:
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
