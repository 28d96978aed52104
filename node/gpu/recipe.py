"""What a plan is made of: whatever, changed, makes it another plan, and how one is asked for.

A plan is executable code for one card, made from one network by one version of one library. The
cache (``node/plans.py``) keys it by ``Recipe.identity``, which holds the digest of the weights:
two networks of one structure must never share a plan. ``PlanStore`` is what a runtime takes; who
builds, when, and where plans lie is decided above.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from node.domain.errors import InferenceError
from node.gpu.lineage import origin

Flavour = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "fp16", "int8"]

SCHEMA = 1
"""Of the way in which we build: raised when the same recipe would give another plan."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The lengths that an input with free axes may have; the plan is tuned for ``usual``."""

    tensor: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the builder is set."""

    workspace: int = 4 << 30
    """Bytes that a layer may use as scratch memory."""
    level: int = 3
    """How long the builder looks for faster kernels, 0 to 5."""
    tf32: bool = False
    """Whether FP32 convolutions may be computed with 10 bits of mantissa: faster, and no longer
    what the CPU computes."""
    batch: int = 1
    """The largest batch, of inputs whose first axis alone is free and that have no profile."""
    capability: str = ""
    """The compute capability to build for, "8.9", where the library can choose (TensorRT-RTX);
    empty: all that it knows. A device's own when ``device`` is given."""
    device: int | None = None
    """The number of the device on which to build; None: without one (TensorRT-RTX only)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a plan depends on."""

    model: Path
    """The network as ONNX, of this precision. Its place is no part of the identity."""
    weights: str
    """``digest`` of the network."""
    flavour: Flavour
    version: str
    """Of the loaded library, all numbers: "11.4.0.106"."""
    precision: Precision
    profiles: tuple[Profile, ...] = ()
    settings: Settings = field(default_factory=Settings)
    driver: str = ""
    capability: str = ""
    """The device's compute capability, "8.9"; empty when built without one."""
    device: str = ""
    """The device's name; cards of one model share plans."""
    memory: int = 0
    """The device's memory in bytes."""

    def identity(self) -> dict[str, Any]:
        """What the plan is known by, ready for JSON: all of it but where things lie."""
        known = asdict(self)
        del known["model"], known["settings"]["device"]
        return {"schema": SCHEMA, **known}

    def order(self, out: Path, timing_cache: Path | None = None) -> dict[str, Any]:
        """The order for ``python -m node.gpu.building``, ready for JSON."""
        return {
            "model": str(self.model),
            "flavour": self.flavour,
            "precision": self.precision,
            "profiles": [asdict(profile) for profile in self.profiles],
            "settings": asdict(self.settings),
            "timing_cache": None if timing_cache is None else str(timing_cache),
            "out": str(out),
        }


class PlanStore(Protocol):
    """Where plans come from."""

    @property
    def kernels(self) -> Path | None:
        """A folder for the window's kernels, compiled for a device; None: nothing is kept."""

    def fetch(self, recipe: Recipe) -> bytes:
        """The plan of a recipe, kept from before or built now; its hash has been checked.

        Raises InferenceError when it cannot be built, and RuntimeUnavailable when it is not built
        yet and is not to be built now.
        """

    def reject(self, recipe: Recipe, reason: str) -> None:
        """The plan that ``fetch`` gave does not load: put it aside, the next is built anew."""


def variant(model: Path, precision: Precision) -> Path:
    """The network of a precision beside a package's ``model.onnx``: ``model.fp16.onnx``.

    Raises InferenceError when the package has none (precision lies in the network itself), and
    when it was made of another network than this ``model.onnx``.
    """
    if precision == "fp32":
        return model
    path = model.with_suffix(f".{precision}{model.suffix}")
    if not path.is_file():
        raise InferenceError(
            f"the package has no {path.name}: make it with ai-node engine variants, or choose "
            f'precision = "fp32"'
        )
    _refuse_stranger(path, model)
    return path


def _refuse_stranger(path: Path, model: Path) -> None:
    """A variant without a mark may be its maker's own; verification is what judges that one."""
    try:
        marked = origin(path)
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error}") from error
    if marked and marked != digest(model):
        raise InferenceError(
            f"{path.name} was made of another network than the {model.name} beside it: make it "
            f"again with ai-node engine variants, or remove it"
        )


def digest(model: Path) -> str:
    """The sha256 of a network with the files beside it that it names (external weights).

    Raises InferenceError when it cannot be read.
    """
    try:
        return _digest(model)
    except (OSError, ValueError) as error:
        raise InferenceError(
            f"{model} cannot be read ({error}): check that the file is complete"
        ) from error


def _digest(model: Path) -> str:
    found = hashlib.sha256()
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found.update(text)
        for path in sorted(path for path in model.parent.rglob("*") if path.is_file()):
            name = path.relative_to(model.parent).as_posix()
            if path != model and text.find(name.encode()) >= 0:
                found.update(name.encode())
                found.update(_file_digest(path))
    return found.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_order(order: Mapping[str, Any]) -> tuple[Recipe, Path, Path | None]:
    """What an order asks for: the recipe (without weights and version), out, timing cache.

    Raises InferenceError when a key is absent, unknown or of a wrong kind.
    """
    try:
        profiles = tuple(
            Profile(one["tensor"], *(tuple(one[key]) for key in ("smallest", "usual", "largest")))
            for one in order["profiles"]
        )
        recipe = Recipe(
            model=Path(order["model"]),
            weights="",
            flavour=order["flavour"],
            version="",
            precision=order["precision"],
            profiles=profiles,
            settings=Settings(**order["settings"]),
        )
        cache = order["timing_cache"]
        return recipe, Path(order["out"]), None if cache is None else Path(cache)
    except (KeyError, TypeError) as error:
        raise InferenceError(f"the order to build a plan is wrong: {error!r}") from error
