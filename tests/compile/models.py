"""Every network that the repository ships, as the compiler is asked for it.

A fixture is ``fixtures/NAME.onnx`` (``NAME.fp16.onnx``, ``NAME.int8.onnx`` for other precisions),
made by the script beside it. ``fixtures/NAME.json`` may hold ``{"profiles": {tensor: [smallest,
usual, largest]}}`` for free axes other than the batch, and ``{"fails": "regular expression"}`` for
one that has to be refused in these words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from node.gpu.recipe import Precision, Profile, Recipe, Settings, digest
from tests.places import ROOT

FIXTURES = Path(__file__).parent / "fixtures"
BATCH = 2


@dataclass(frozen=True)
class Model:
    """A network and what becomes of it."""

    path: Path
    profiles: tuple[Profile, ...] = ()
    fails: str = ""

    @property
    def name(self) -> str:
        """For the list of tests."""
        return str(self.path.relative_to(ROOT))

    def recipe(self, batch: int = BATCH, capability: str = "") -> Recipe:
        """How TensorRT-RTX is asked for it."""
        settings = Settings(batch=batch, capability=capability)
        return recipe(self.path, self.profiles, settings)


def models() -> list[Model]:
    """What the repository ships, sorted: the engines' networks, then the fixtures."""
    paths = [*sorted(ROOT.glob("engines/*/*.onnx")), *sorted(FIXTURES.glob("*.onnx"))]
    return [_model(path) for path in paths]


def recipe(
    path: Path, profiles: tuple[Profile, ...] = (), settings: Settings | None = None
) -> Recipe:
    """A recipe for TensorRT-RTX without a device; the precision is the file name's."""
    return Recipe(
        model=path,
        weights=digest(path) if path.is_file() else "",
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        precision=_precision(path),
        profiles=profiles,
        settings=settings or Settings(batch=BATCH),
    )


def _model(path: Path) -> Model:
    beside = path.with_suffix(".json")
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    profiles = tuple(
        Profile(tensor, *(tuple(row) for row in rows))
        for tensor, rows in told.get("profiles", {}).items()
    )
    return Model(path, profiles, told.get("fails", ""))


def _precision(path: Path) -> Precision:
    suffixes: dict[str, Precision] = {".fp16": "fp16", ".int8": "int8"}
    return suffixes.get(Path(path.stem).suffix, "fp32")
