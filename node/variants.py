"""A package's network in FP16 or INT8, and what that costs in accuracy, before any GPU has seen it.

What a GPU would do is imitated on the CPU: FP16 by rounding every value as a GPU stores it, INT8 by
quantising and dequantising where the network says. The questions are those of the verification
(golden inputs and noise), and blocks of real studies besides; so are the gates.

A variant is derived: it is no part of the package's digest, for the package is the same engine
whoever compiled it, and results say by the plan's own digest what ran. It is marked with the digest
of the network that it was made of, and is refused beside any other (``node.gpu.lineage``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from node.alignment import gathered
from node.bundle import Bundle
from node.dicom import pixels
from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors
from node.domain.volume import Volume
from node.draft import sync_directory
from node.engine import Engine
from node.gpu.lineage import ORIGIN
from node.gpu.recipe import digest
from node.halving import halve, prepared, stored
from node.ladder import candidate_of
from node.passage import passage
from node.probes import Probe
from node.quantising import quantise
from node.runtimes.onnx import Onnx, OnnxSession
from node.selection import select
from node.trial import gather
from node.verdicts import Verdict
from node.verification import Reference, verify
from node.windows import predict

if TYPE_CHECKING:
    from onnx import ModelProto

Narrow = Literal["fp16", "int8"]
LARGEST = 2**31 - 1
"""Bytes of one file in ONNX's format."""
_SEED = 4
_WORDS = {
    "fp16": "FP16 as a GPU stores it, imitated by {}",
    "int8": "INT8 between its scales, imitated by {}",
}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Blocks of real studies as the network is fed them, and in words what was left out."""

    blocks: tuple[Tensors, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A variant's file: where it is, or would be, and bytes of the original and of itself."""

    path: Path
    before: int
    after: int


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """Variants of all networks of a package; ``verdict`` has what they lose.

    ``kept`` is False where a gate failed: then nothing was written.
    """

    precision: Narrow
    files: tuple[File, ...]
    verdict: Verdict
    notes: tuple[str, ...]
    kept: bool


def sample(bundle: Bundle, folders: Sequence[Path], count: int) -> Sample:
    """At most ``count`` blocks, the same ones each time, of the studies in some folders.

    Raises InferenceError when the engine takes none of the studies.
    """
    if not folders:
        return Sample()
    chance = _Chance(bundle.manifest.output.tensor, bundle.manifest.window.channels_last, count)
    notes: list[str] = []
    with Engine.load(bundle, Onnx()) as engine:
        window = replace(engine.window, mirror=())
        for folder in folders:
            for volumes in _volumes(bundle, folder, notes):
                way = passage(bundle.manifest, gathered(volumes, bundle.manifest.roles), None)
                predict(chance.infer, way.feeds, window, chance.output)
    if not chance.kept:
        raise InferenceError(
            f"the engine takes none of the studies: {'; '.join(notes) or 'there are none'}"
        )
    if bundle.first is not None:
        notes.append("blocks are from the whole volume, not from the box of the engine before it")
    return Sample(tuple(chance.kept), tuple(notes))


def _volumes(bundle: Bundle, folder: Path, notes: list[str]) -> Iterator[dict[str, Volume]]:
    """The volumes of each study that the engine takes, by role."""
    for number, study in enumerate(gather(folder).studies, 1):
        selection = select(study, bundle.wanted)
        if selection.refusal:
            notes.append(f"study {number} of {folder.name} was left out: {selection.refusal}")
            continue
        yield {role: pixels.load(one.geometry) for role, one in selection.chosen.items()}


@dataclass(eq=False)
class _Chance:
    """Stands where the network would, and keeps some of what it is fed: each with equal chance."""

    output: str
    channels_last: bool
    count: int
    kept: list[Tensors] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        self._chance = np.random.default_rng(_SEED)

    def infer(self, feeds: Tensors) -> Tensors:
        """An answer of one class that says nothing."""
        self.seen += 1
        if len(self.kept) < self.count:
            self.kept.append(feeds)
        elif (place := int(self._chance.integers(self.seen))) < self.count:
            self.kept[place] = feeds
        shape = list(next(iter(feeds.values())).shape)
        shape[-1 if self.channels_last else 1] = 1
        return {self.output: np.zeros(shape, np.float32)}


def make(bundle: Bundle, precision: Narrow, known: Sample, force: bool = False) -> Made:
    """Make the variants of a package's networks, ask them, and keep them if they may serve.

    ``force`` keeps those that fail, too. Raises RuntimeUnavailable without the package onnx;
    InferenceError when a network cannot be typed anew, or its folder cannot be written.
    """
    _onnx()
    with _workshop(bundle.folder) as place:
        notes: list[str] = []
        names = {model: model.with_suffix(f".{precision}{model.suffix}") for model in bundle.models}
        twins = {}
        for model, path in names.items():
            twins[model] = _built(model, place / path.name, (precision, known.blocks), notes)
        files = tuple(
            File(path, _size(model), _size(place / path.name)) for model, path in names.items()
        )
        verdict = _asked(bundle, _Imitation(precision, twins), known)
        kept = verdict.passed or force
        if kept:
            for path in names.values():
                _publish(place / path.name, path)
    return Made(precision, files, verdict, tuple(dict.fromkeys(notes)), kept)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise RuntimeUnavailable(
            f"networks cannot be typed anew ({error}): install the extra convert, "
            f"pip install 'dicom-ai-node[convert]'"
        ) from error
    return onnx


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder on the package's disk, gone afterwards."""
    try:
        place = TemporaryDirectory(prefix=".variants-", dir=folder)
    except OSError as error:
        raise InferenceError(
            f"{folder} cannot be written ({error.strerror}): copy it to the engines/ of the node's "
            f"state folder, and name the copy by its path"
        ) from error
    with place as name:
        yield Path(name)


def _built(
    model: Path, path: Path, how: tuple[Narrow, Sequence[Tensors]], notes: list[str]
) -> Path:
    """Write the variant of one network, marked; returns the file that imitates it here."""
    onnx = _onnx()
    original = _loaded(model)
    precision, blocks = how
    if precision == "fp16":
        halved = halve(original)
        wide = ", ".join(f"{count} {name}" for name, count in halved.wide.items())
        notes.extend((f"in FP32: {wide or 'nothing'}", *halved.notes))
        _save(halved.model, path, model)
        twin = path.with_suffix(".twin.onnx")
        onnx.save(stored(halved.model), str(twin))
        return twin
    plain = prepared(original)
    for number, node in enumerate(plain.graph.node):
        node.name = node.name or f"{node.op_type} {number}"
    notes.extend(quantise(plain, path, blocks))
    _save(onnx.load(str(path)), path, model)
    return path


def _loaded(model: Path) -> ModelProto:
    # What this loads the package onnx can read, and this says in words why not.
    Onnx(optimise="none").load(model).close()
    loaded: ModelProto = _onnx().load(str(model))
    return loaded


def _save(variant: ModelProto, path: Path, model: Path) -> None:
    onnx = _onnx()
    props = {one.key: one.value for one in variant.metadata_props}
    onnx.helper.set_model_props(variant, {**props, ORIGIN: digest(model)})
    if variant.ByteSize() > LARGEST:
        raise InferenceError(f"{path.name} would be larger than the 2 GB that ONNX allows a file")
    onnx.save(variant, str(path))


def _size(model: Path) -> int:
    """Bytes of a network with the weights that lie beside it."""
    beside = model.parent.glob(f"{model.name}*")
    return sum(path.stat().st_size for path in beside if path.is_file())


@dataclass(frozen=True, slots=True)
class _Imitation:
    """A runtime that computes the variants' twins where the package's networks are asked for."""

    precision: Narrow
    twins: Mapping[Path, Path]

    def load(self, model: Path) -> OnnxSession:
        """The twin of a network; one that has none is itself."""
        twin = self.twins.get(model)
        if twin is None:
            return Onnx().load(model)
        # Rewritten, an INT8 network would be computed by this processor's own rules.
        session = Onnx(optimise="none" if self.precision == "int8" else "all").load(twin)
        session.words = _WORDS[self.precision].format(session.words)
        return session


def _asked(bundle: Bundle, imitation: _Imitation, known: Sample) -> Verdict:
    probes = [Probe(f"block {number}", feeds) for number, feeds in enumerate(known.blocks, 1)]
    reference = Reference()
    try:
        with Engine.load(bundle, imitation) as engine:
            return verify(candidate_of(engine), reference, further=probes)
    finally:
        reference.close()


def _publish(made: Path, path: Path) -> None:
    """There at once or not at all, readable for the worker, and durable."""
    try:
        made.chmod(0o644)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(made, owner.st_uid, owner.st_gid)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise InferenceError(f"{path} cannot be written: {error.strerror}") from error
