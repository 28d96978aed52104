"""A model folder of nnU-Net 2: plans.json and dataset.json become steps that repeat nnU-Net's own.

Nothing of the order of things is guessed: the crop, the grey values, the spacing, the blocks, the
mirror images and the way back are nnU-Net's. What its files do not say is how the training images
lay in the patient, what the labels mean in codes, and which series of a study the channels are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.sr.codedict import codes

from node.bundle import file_digest
from node.domain.errors import ImportRefused, InferenceError
from node.domain.tensor import TensorSpec
from node.nnunet import Trained, is_model_folder, understood
from node.nnunet.sheets import PLANS, Head, Intensities
from node.proposal import Block, Guess, Proposal
from node.runtimes.onnx import Onnx
from node.signature import external_files

_AS_STORED = "LPS"
"""How the axes run in a NIfTI file that was made of axial DICOM slices without turning them."""
_TURNED = "RAS"
_USUAL = ("LPS", "RAS", "LAS")
"""As SimpleITK writes axial slices of DICOM, as nibabel turns them, and as dcm2niix writes them."""
_AXES = "kji"
_MODALITIES = (
    ("CT", re.compile(r"\b(ct|ncct|cta|cbct)\b")),
    ("PT", re.compile(r"\b(pet|pt|suv|fdg)\b")),
    ("MR", re.compile(r"\b(mr|mri|flair|t1\w{0,3}|t2\w{0,3}|adc|dwi|swi|pd|dce|bssfp)\b")),
)
_SEQUENCES = re.compile(r"\b(flair|t1|t2|adc|dwi|swi)")
_CONTRAST = re.compile(r"\bt1\W?w?\W?(ce|c|gd|kc?m)\b|contrast|post")
_SICK = re.compile(
    r"tumou?r|lesion|cancer|carcinoma|metasta|oedema|edema|necro|cyst|nodule|haem|hem|stroke|"
    r"infarct|bleed|fracture|enhanc|core|mass|plaque|embol|thromb|opacit|effusion|infiltrat"
)
_ABNORMAL = {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"}
_ANATOMY = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}
_LESION = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
_COLOURS = (
    (65.0, 60.0, 40.0), (70.0, -50.0, 45.0), (55.0, 20.0, -60.0), (85.0, -5.0, 75.0),
    (60.0, 75.0, -40.0), (80.0, -35.0, -15.0),
)  # fmt: skip


@dataclass(frozen=True)
class Nnunet:
    """A folder with plans.json, dataset.json and a ``model.onnx`` in every fold."""

    axes: str = ""
    """How columns, rows and slices of the training files ran, e.g. ``RAS`` as nibabel names it;
    empty: not known, so it is guessed."""

    def recognises(self, source: Path) -> bool:
        """Whether it is a folder with both of nnU-Net's files."""
        return source.is_dir() and is_model_folder(source)

    def propose(self, source: Path, name: str) -> Proposal:
        """The package that would be made of the folder.

        Raises ImportRefused with everything that cannot be translated; where there are only
        checkpoints, with the command that exports them.
        """
        trained = understood(source)
        tensors = [_tensors(model, trained) for model in trained.models]
        if len(set(tensors)) != 1:
            raise ImportRefused("the folds' networks take or give other tensors than one another")
        draft = _Draft(trained, name, self.axes, *tensors[0])
        return Proposal(name, tuple(draft.blocks()), draft.files(), notes=tuple(draft.notes()))


def _tensors(model: Path, trained: Trained) -> tuple[TensorSpec, TensorSpec]:
    """The input and the output of an exported network. Raises ImportRefused when they do not fit
    the plans.
    """
    place = f"{model.parent.name}/{model.name}"
    try:
        session = Onnx().load(model)
    except InferenceError as error:
        raise ImportRefused(f"{place}: {error}") from error
    inputs, outputs = session.inputs, session.outputs
    session.close()
    if len(inputs) != 1:
        raise ImportRefused(f"{place} takes {len(inputs)} tensors; nnU-Net's networks take one")
    wanted = (-1, len(trained.schemes), *trained.sheet.patch_size)
    if not _fits(inputs[0].shape, wanted):
        raise ImportRefused(
            f"{place} takes {inputs[0]}; {PLANS} says patch_size {trained.sheet.patch_size} and "
            f"{len(trained.schemes)} channels for {trained.configuration}"
        )
    # With deep supervision there are smaller outputs, too: the whole one is the answer.
    answer = (-1, len(trained.dataset.heads), *trained.sheet.patch_size)
    whole = [one for one in outputs if _fits(one.shape, answer)]
    if len(whole) != 1:
        given = "; ".join(str(one) for one in outputs)
        raise ImportRefused(
            f"{place} gives {given}; wanted is one with {len(trained.dataset.heads)} channels "
            f"({', '.join(head.name for head in trained.dataset.heads)}) at the patch's size"
        )
    return inputs[0], whole[0]


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether lengths agree; -1 stands for any."""
    return len(shape) == len(wanted) and all(
        -1 in {have, want} or have == want for have, want in zip(shape, wanted, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """The manifest in the making."""

    trained: Trained
    name: str
    axes: str
    source: TensorSpec
    answer: TensorSpec

    def files(self) -> dict[str, Path]:
        """The package's networks by name. Raises ImportRefused when weights lie outside of several
        of them, for then their names would collide.
        """
        models = self.trained.models
        outside = {model: external_files(model) for model in models}
        if len(models) == 1:
            (model,) = models
            return {model.name: model} | {one: model.parent / one for one in outside[model]}
        if any(outside.values()):
            raise ImportRefused(
                "the folds' networks have their weights in files beside them. Save each as one "
                "file: python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'model.onnx', "
                'save_as_external_data=False)"'
            )
        return {f"{model.parent.name}.onnx": model for model in models}

    def blocks(self) -> Iterator[Block]:
        """Every table in the order in which a study goes through them."""
        files = self.files()
        networks = [name for name in files if name.endswith(".onnx")]
        yield self._engine(networks[0], files)
        for name in networks[1:]:
            rows = {"model": name, "sha256": file_digest(files[name])}
            yield Block("member", rows, many=True)
        if networks[1:]:
            yield Block("ensemble", {"combine": "mean"}, comment="nnU-Net's mean of its folds.")
        for role, channel in self._roles().items():
            yield _series(role, channel)
        yield Block("input", {"tensor": self.source.name, "roles": list(self._roles())}, many=True)
        yield from self._pre()
        yield Block("window", self._window())
        rows = {
            "tensor": self.answer.name,
            "activation": "softmax" if self.trained.exclusive else "sigmoid",
            "activated": "source",
        }
        yield Block("output", rows, comment=_OUTPUT)
        yield Block("post", self._post(), many=True)
        yield from self._findings()

    def notes(self) -> Iterator[str]:
        """What has to be known beside the manifest."""
        trained = self.trained
        if not trained.reoriented and not self.axes:
            ways = ", ".join(f"{files}: {self._turned(files)}" for files in _USUAL)
            yield (
                f"nnU-Net read the training files as they were stored, and nothing says how: "
                f"the axes are taken to have run {_AS_STORED}. Look at one of them "
                f"(nibabel.aff2axcodes of its affine) and correct pre.axes ({ways}); a wrong side "
                f"is not seen in the numbers"
            )
        if not trained.mirror_stated:
            yield (
                "which axes may be mirrored is known to the checkpoint alone: those are taken that "
                "a trainer of this name takes, all of them by default. If it was trained without "
                "mirroring, take window.mirror out"
            )
        if len(trained.schemes) > 1:
            yield (
                "the channels are series of one study on the grid of the first; they are not "
                "registered to one another"
            )
        found = sorted(trained.folder.rglob("postprocessing.*"))
        if found:
            yield (
                f"{found[0].name} lies in the folder: what it removes after the network, such as "
                f"all but the largest part, is not in this manifest; add it as [[post]] steps"
            )

    def _engine(self, model: str, files: Mapping[str, Path]) -> Block:
        trained, dataset = self.trained, self.trained.dataset
        title = dataset.name or trained.plans.dataset_name or trained.folder.name
        licence: Any = dataset.licence or dataset.license
        rows: dict[str, Any] = {
            "name": self.name,
            "title": Guess(_word(title), "the name of the data set"),
            "version": Guess("0.1.0", "nothing says it"),
            "manufacturer": Guess("unknown", "who answers for it?"),
            "licence": licence or Guess("unknown", "under which terms?"),
            "model": model,
            "sha256": file_digest(files[model]),
            "description": f"nnU-Net {trained.configuration}, {len(trained.models)} fold(s). "
            f"{' '.join(dataset.description.split())}"[:400].strip(),
        }
        return Block("engine", rows, comment=_HEAD)

    def _roles(self) -> dict[str, str]:
        """The channels' names by the role that each is given."""
        channels = self.trained.dataset.channels
        slugs = [re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-")[:40] for one in channels]
        if "" in slugs or len(set(slugs)) < len(slugs):
            slugs = [f"channel-{number}" for number in range(len(channels))]
        return dict(zip(slugs, channels, strict=True))

    def _pre(self) -> Iterator[Block]:
        together = {"joint": True} if len(self.trained.schemes) > 1 else {}
        rows: dict[str, Any] = {"kind": "orient", "axes": self._axes()}
        yield Block("pre", rows, many=True, comment=_PRE)
        yield Block("pre", {"kind": "nnunet_crop", **together}, many=True)
        yield Block("pre", {"kind": "nnunet_normalise", **together, **self._grey()}, many=True)
        if self.trained.spline is not None:
            rows = {"kind": "nnunet_resample", **together, **self._spacing()}
            yield Block("pre", rows, many=True)
        if self.source.dtype != "float32":
            yield Block("pre", {"kind": "cast", "dtype": self.source.dtype}, many=True)

    def _axes(self) -> Any:
        """Where columns, rows and slices run to when the network sees them."""
        stated = _TURNED if self.trained.reoriented else self.axes
        if stated:
            return self._turned(stated)
        return Guess(self._turned(_AS_STORED), "how did the training files' axes run?")

    def _turned(self, files: str) -> str:
        """Axes of files (columns, rows, slices) after nnU-Net's transposition."""
        order = self.trained.plans.transpose_forward
        return "".join(files[::-1][axis] for axis in order)[::-1]

    def _grey(self) -> dict[str, Any]:
        trained = self.trained
        rows: dict[str, Any] = {"schemes": list(trained.schemes)}
        masked = trained.sheet.use_mask_for_norm
        if any(masked):
            rows["masked"] = list(masked)
        if "ct" in trained.schemes:
            rows |= _bounds(trained.intensities)
        return rows

    def _spacing(self) -> dict[str, Any]:
        spline = self.trained.spline
        spacing = self.trained.sheet.spacing
        rows: dict[str, Any] = {"spacing": [*[0.0] * (3 - len(spacing)), *spacing]}
        if spline is None:
            return rows
        return rows | {
            "order": spline.order,
            "order_z": spline.order_z,
            "order_back": spline.order_back,
            "order_back_z": spline.order_back_z,
            "separate": spline.separate,
            "anisotropy": spline.anisotropy,
        }

    def _window(self) -> dict[str, Any]:
        patch = list(self.trained.sheet.patch_size)
        rows: dict[str, Any] = {
            "mode": "slice" if len(patch) == 2 else "patch",
            "patch": patch,
            "overlap": 0.5,
            "placement": "rounded",
            "centre": "voxel",
            "fill": 0.0,
        }
        mirror = [_AXES[-len(patch) :][axis] for axis in self.trained.mirror]
        if not self.trained.mirror_stated:
            rows["mirror"] = Guess(mirror, "only the checkpoint knows; its trainer does so")
        elif mirror:
            rows["mirror"] = mirror
        return rows

    def _post(self) -> dict[str, Any]:
        if self.trained.exclusive:
            return {"kind": "argmax"}
        return {"kind": "regions", "labels": [head.label for head in self.trained.dataset.heads]}

    def _findings(self) -> Iterator[Block]:
        seen = sorted((head for head in self.trained.dataset.heads if head.label), key=_label)
        for number, head in enumerate(seen):
            name: Any = _word(head.name)
            if not self.trained.exclusive:
                name = Guess(name, "this region without those that are painted over it later")
            sick = bool(_SICK.search(head.name.lower()))
            yield Block("finding", {
                "label": head.label,
                "name": name,
                "category": Guess(_ABNORMAL if sick else _ANATOMY, "by the label's name"),
                "type": Guess(_meant(head.name) or _LESION, "the code of what it is"),
                "colour": list(_COLOURS[number % len(_COLOURS)]),
                "instances": Guess("components" if sick else "whole", "each part, or all as one?"),
            }, many=True)  # fmt: skip


def _label(head: Head) -> int:
    return head.label


def _word(text: str) -> str:
    """Text that fits into an LO attribute."""
    return " ".join(text.replace("_", " ").split())[:64] or "unnamed"


def _bounds(channels: Sequence[Intensities]) -> dict[str, list[float]]:
    return {
        "low": [one.percentile_00_5 for one in channels],
        "high": [one.percentile_99_5 for one in channels],
        "mean": [one.mean for one in channels],
        "deviation": [one.std for one in channels],
    }


def _meant(name: str) -> dict[str, str] | None:
    """The SNOMED CT code that is called like a label, in DICOM's own dictionary of them."""
    words = "".join(word.capitalize() for word in re.findall(r"[A-Za-z]+", name))
    for spelling in (words, words.removesuffix("s")):
        if spelling and hasattr(codes.SCT, spelling):
            code = getattr(codes.SCT, spelling)
            return {"value": code.value, "scheme": "SCT", "meaning": code.meaning}
    return None


def _series(role: str, channel: str) -> Block:
    seen = channel.lower().replace("_", " ")
    modality = next((one for one, pattern in _MODALITIES if pattern.search(seen)), "")
    fact = {"equals": modality} if modality else {"matches": "^(CT|MR|PT)$"}
    accepts: list[dict[str, Any]] = [{"fact": "Modality", **fact}]
    sequence = _SEQUENCES.search(seen)
    if sequence:
        accepts.append({"fact": "SeriesDescription", "matches": sequence[1]})
    if _CONTRAST.search(seen):
        accepts.append({"fact": "ContrastBolusAgent", "present": True})
    why = f"the channel is called {channel!r}; body part, orientation, what else?"
    return Block("series", {"role": role, "accepts": Guess(accepts, why)}, many=True)


_HEAD = """\
Proposed from an nnU-Net model folder. Steps, window and output repeat nnU-Net's own; every value
that its files do not state is marked "guessed": put it right, or take the mark away."""
_OUTPUT = "nnU-Net blends logits and brings them back before it makes probabilities."
_PRE = """\
nnU-Net's order: the axes as in its training files, then its transposition (both are in "axes");
the box that is not 0; grey values; spacing. The prediction goes the same way back."""
