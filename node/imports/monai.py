"""A MONAI bundle: metadata.json and inference.json become a manifest; nothing of it is executed.

What MONAI would build and run is only read: names of classes with their options, references and
the simplest expressions. A transform without a counterpart is named and the bundle refused; one
that is dropped in silence would let a network see what it was never trained on.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from node.bundle import file_digest
from node.domain.errors import ImportRefused
from node.domain.tensor import TensorSpec
from node.monai.imprint import Imprint
from node.monai.parcel import Parcel, opened
from node.monai.translation import Translation, translate
from node.monai.workflow import Workflow, read_table
from node.proposal import Block, Guess, Proposal
from node.signature import external_files
from node.signature import read as read_signature

METADATA = "configs/metadata.json"
CONFIGURATIONS = (
    "configs/inference.json",
    "configs/inference.yaml",
    "configs/inference.yml",
)
DRAFT = "CARD.draft.md"
"""What the bundle says for a model card; it is no card before a person has made one of it."""

_MODELS = "models/"
_WEIGHTS = (".pt", ".pth", ".ts", ".ckpt", ".safetensors")
_OUTSIDE = (".data", "_data", ".bin", ".weights")


@dataclass(frozen=True)
class Monai:
    """A bundle as a folder or as a zip, with its network as ``models/model.onnx``."""

    def recognises(self, source: Path) -> bool:
        """Whether it has the configuration files of a bundle."""
        if source.is_dir():
            return any((source / name).is_file() for name in (METADATA, *CONFIGURATIONS))
        try:
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
            return False
        return any(name.endswith((METADATA, *CONFIGURATIONS)) for name in names)

    def propose(self, source: Path, name: str) -> Proposal:
        """The package that would be made of the bundle.

        Raises ImportRefused with every transform that cannot be translated; where there are only
        weights, with the command that exports the network.
        """
        parcel = _rooted(opened(source))
        licence = _licence(parcel)
        imprint = Imprint(_metadata(parcel), parcel.text(licence) if licence else "")
        workflow = _workflow(parcel)
        made = translate(workflow, imprint)
        model = _model(parcel)
        reasons = list(dict.fromkeys(made.refused))
        if not model:
            reasons.append(_export(source, parcel, made))
        if reasons:
            raise ImportRefused(_listed(source, reasons))
        files = _files(parcel, model)
        draft = _Draft(name, made, imprint, files)
        terms = {"LICENSE": parcel.placed([licence])[licence]} if licence else {}
        return Proposal(
            name,
            tuple(draft.blocks()),
            {**files, **terms},
            texts={DRAFT: imprint.card()},
            notes=tuple(draft.notes()),
        )


def _rooted(parcel: Parcel) -> Parcel:
    """The files of the bundle itself: a zip often has them in a folder of its name."""
    marks = (METADATA, *CONFIGURATIONS)
    found = {
        file.removesuffix(mark) for file in parcel.files for mark in marks if file.endswith(mark)
    }
    prefixes = {prefix for prefix in found if not prefix or prefix.endswith("/")}
    if not prefixes:
        raise ImportRefused(
            f"{parcel.source.name} is no MONAI bundle: it has neither {METADATA} nor "
            f"{CONFIGURATIONS[0]}"
        )
    shortest = min(prefixes, key=lambda prefix: (prefix.count("/"), prefix))
    others = [one for one in prefixes if one.count("/") == shortest.count("/") and one != shortest]
    if others:
        named = ", ".join(sorted({shortest, *others}))
        raise ImportRefused(f"{parcel.source.name} holds several bundles ({named}); name one")
    return parcel.within(shortest)


def _metadata(parcel: Parcel) -> dict[str, Any]:
    if METADATA not in parcel.files:
        raise ImportRefused(f"there is no {METADATA}: nobody can know what the labels mean")
    return dict(read_table(parcel, METADATA))


def _licence(parcel: Parcel) -> str:
    """The name of the file with the terms; empty where there is none."""
    names = ("LICENSE", "LICENSE.txt", "license.txt", "docs/license.txt", "docs/LICENSE")
    return next((name for name in names if name in parcel.files), "")


def _workflow(parcel: Parcel) -> Workflow:
    name = next((one for one in CONFIGURATIONS if one in parcel.files), "")
    if not name:
        raise ImportRefused(f"there is no {CONFIGURATIONS[0]}: it says how the network is fed")
    return Workflow(name, read_table(parcel, name), parcel)


def _model(parcel: Parcel) -> str:
    """The network's file; empty where there is none. Raises ImportRefused for several."""
    found = sorted(n for n in parcel.files if n.startswith(_MODELS) and n.endswith(".onnx"))
    if f"{_MODELS}model.onnx" in found or len(found) <= 1:
        return f"{_MODELS}model.onnx" if f"{_MODELS}model.onnx" in found else "".join(found)
    raise ImportRefused(
        f"the bundle has several networks ({', '.join(found)}): call the one model.onnx"
    )


def _export(source: Path, parcel: Parcel, made: Translation) -> str:
    """How the network is exported, with what is known of it."""
    weights = sorted(n for n in parcel.files if n.startswith(_MODELS) and n.endswith(_WEIGHTS))
    network, patch = made.network, made.window.get("patch", ())
    known = [
        network.name,
        f"{network.inputs} input channels" if network.inputs else "",
        f"{network.outputs} output channels" if network.outputs else "",
        f"blocks of {' x '.join(str(n or 'any') for n in patch)}" if patch else "",
    ]
    words = ", ".join(part for part in known if part)
    has = (
        f"{', '.join(weights)} holds weights only, and reading them would execute them"
        if weights
        else "there are no weights either (large_files.yml says where they are: fetch them first)"
    )
    folder = source if source.is_dir() else source.with_suffix("")
    unpacked = "" if source.is_dir() else f"unpack it ({source.name}), and "
    command = shlex.join(
        ("ai-node", "engine", "export", f"{folder}", "--out", f"{folder / _MODELS / 'model.onnx'}")
    )
    return (
        f"models: there is no network as ONNX; {has}. {unpacked}where torch and monai are (a "
        f"throw-away environment will do) run: {command}  ({words}), then add {folder}"
    )


def _listed(source: Path, reasons: list[str]) -> str:
    if len(reasons) == 1:
        return f"{source.name}: {reasons[0]}"
    lines = "\n".join(f"- {reason}" for reason in reasons)
    return f"{source.name} cannot be made an engine as it is:\n{lines}"


def _files(parcel: Parcel, model: str) -> dict[str, Path]:
    """The network's file and the weights beside it, by the names that they keep."""
    beside = [f"{model}{end}" for end in _OUTSIDE if f"{model}{end}" in parcel.files]
    if parcel.source.is_dir():
        path = parcel.placed([model])[model]
        stated = {f"{_MODELS}{name}" for name in external_files(path)}
        missing = sorted(stated - parcel.files)
        if missing:
            raise ImportRefused(f"{model} keeps its weights in {', '.join(missing)}: not there")
        beside = sorted(stated)
    return {PurePosixPath(n).name: path for n, path in parcel.placed([model, *beside]).items()}


class _Draft:
    """The manifest of a bundle whose network is at hand."""

    def __init__(
        self, name: str, made: Translation, imprint: Imprint, files: dict[str, Path]
    ) -> None:
        self._name = name
        self._made = made
        self._imprint = imprint
        self._model = next(iter(files))
        self._digest = file_digest(files[self._model])
        signature, session = read_signature(files[self._model], look_inside=False)
        session.close()
        self._input, self._output = _tensors(signature.inputs, signature.outputs, made)

    def blocks(self) -> Iterator[Block]:
        """The manifest's tables in their order."""
        made = self._made
        yield self._imprint.identity(self._name, self._model, self._digest)
        yield from self._imprint.series(made.roles)
        for index, row in enumerate(self._pre()):
            yield Block("pre", row, many=True, comment="" if index else _PRE)
        yield Block("window", made.window)
        rows: dict[str, Any] = {"tensor": self._input.name, "roles": list(made.roles)}
        if len(made.roles) > 1:
            rows["roles"] = Guess(rows["roles"], "in the order of the network's channels?")
        yield Block("input", rows, many=True)
        yield Block("output", {"tensor": self._output.name, **made.output})
        yield from (Block("post", row, many=True) for row in made.post)
        yield from self._imprint.findings(made.channels)

    def notes(self) -> Iterator[str]:
        """What differs, what was left out and why, and what the next step is."""
        made = self._made
        yield from (f"differs from MONAI: {remark}" for remark in made.remarks)
        for name, why in made.needless.items():
            yield f"not needed: {name}, because {why}"
        yield f"{DRAFT} has what the bundle says of itself: write {DRAFT.replace('.draft', '')}"

    def _pre(self) -> list[dict[str, Any]]:
        dtype = self._input.dtype
        cast = [] if dtype == "float32" else [{"kind": "cast", "dtype": dtype}]
        return [*self._made.pre, *cast]


def _tensors(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], made: Translation
) -> tuple[TensorSpec, TensorSpec]:
    """The network's input and output. Raises ImportRefused when it is not the configured one."""
    axes = 4 if made.window["mode"] == "slice" else 5
    fitting = [one for one in outputs if len(one.shape) == axes]
    if len(inputs) != 1 or len(inputs[0].shape) != axes or not fitting:
        shown = "; ".join(str(one) for one in (*inputs, *outputs))
        raise ImportRefused(
            f"the network has the tensors {shown}; wanted one input and an output of {axes} axes"
        )
    _refuse_other(inputs[0].shape[1], len(made.roles), "input channels", "the configuration")
    if made.finish.channels:
        _refuse_other(fitting[0].shape[1], made.finish.channels, "output channels", "it")
    else:
        made.finish.channels = max(fitting[0].shape[1], 0)
    for have, want in zip(inputs[0].shape[2:], made.window.get("patch", ()), strict=False):
        _refuse_other(have, want, "voxels along an axis", "the inferer's roi_size")
    return inputs[0], fitting[0]


def _refuse_other(have: int, want: int, what: str, whose: str) -> None:
    if have > 0 and want and have != want:
        raise ImportRefused(f"the network has {have} {what}, {whose} has {want}: export it again")


_PRE = """\
As MONAI prepares the image, in its order. Slices, rows and columns are turned to be MONAI's first,
second and third axis, so lists of three stand as they stand in the bundle."""
