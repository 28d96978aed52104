"""What nnU-Net 2 wrote down of a trained model: plans.json, dataset.json, and its folds.

Both files are nnU-Net's own, so they are believed; but everything in them that changes what the
network sees is either understood or refused by its name. Checkpoints are pickles, and reading one
executes it: what only they know comes from a small JSON file beside the exported network, or has
to be guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.domain.errors import ImportRefused
from node.nnunet.sheets import (
    DATASET,
    PLANS,
    Configuration,
    Dataset,
    Intensities,
    Plans,
    Table,
    inherited,
    read,
)
from node.nnunet.sheets import understood as checked
from node.nnunet.splines import Spline, spline, spline_faults

MODEL = "model.onnx"
BESIDE = "model.json"
"""What the export writes beside a network: configuration, inference_allowed_mirroring_axes."""

_SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "unit",
    "RGBTo01Normalization": "rgb",
}
_READERS = ("SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient")
_MOST_LABELS = 255


@dataclass(frozen=True, slots=True)
class Trained:
    """A model folder as the node understands it. ``spline`` is None where nothing is resampled."""

    folder: Path
    configuration: str
    sheet: Configuration
    plans: Plans
    dataset: Dataset
    spline: Spline | None
    models: tuple[Path, ...]
    mirror: tuple[int, ...]
    mirror_stated: bool

    @property
    def schemes(self) -> tuple[str, ...]:
        """The normalisation of each channel, as the node's step calls it."""
        return tuple(_SCHEMES[name] for name in self.sheet.normalization_schemes)

    @property
    def intensities(self) -> tuple[Intensities, ...]:
        """What is known of each channel's grey values."""
        known = self.plans.intensities
        return tuple(known.get(str(n), Intensities()) for n in range(len(self.schemes)))

    @property
    def exclusive(self) -> bool:
        """Whether the heads exclude one another (classes); else they are regions."""
        return not self.dataset.has_regions

    @property
    def reoriented(self) -> bool:
        """Whether nnU-Net turned the images to RAS before anything else."""
        return self.plans.image_reader_writer.endswith("WithReorient")


def is_model_folder(folder: Path) -> bool:
    """Whether both of nnU-Net's files lie in it, or in folders of it."""
    return _is_model(folder) or bool(_inner(folder))


def _is_model(folder: Path) -> bool:
    return (folder / PLANS).is_file() and (folder / DATASET).is_file()


def _inner(folder: Path) -> list[Path]:
    """The model folders in the folder of a data set, by name."""
    return sorted(place.parent for place in folder.glob(f"*/{PLANS}") if _is_model(place.parent))


def understood(folder: Path) -> Trained:
    """Everything about a model folder. Raises ImportRefused with all that stands in the way."""
    if not _is_model(folder):
        inner = ", ".join(str(one) for one in _inner(folder))
        raise ImportRefused(f"{folder.name} holds several trained models: add one of {inner}")
    raw = read(folder / PLANS)
    dataset = checked(Dataset, read(folder / DATASET), DATASET)
    plans = checked(Plans, raw, PLANS)
    beside = _beside(folder)
    name = _chosen(folder, raw, beside)
    sheet = checked(Configuration, inherited(raw, name), f"{PLANS}, configuration {name}")
    faults = [*_faults(sheet, plans, dataset, name), *spline_faults(sheet)]
    if faults:
        raise ImportRefused(
            f"{folder.name} cannot become an engine as it is: " + "; ".join(dict.fromkeys(faults))
        )
    return Trained(
        folder, name, sheet, plans, dataset, spline(sheet), _models(folder),
        _mirror(folder, beside, len(sheet.patch_size)),
        "inference_allowed_mirroring_axes" in beside,
    )  # fmt: skip


def _chosen(folder: Path, plans: Table, beside: Mapping[str, Any]) -> str:
    """The configuration that was trained: stated beside the network, else by the folder's name."""
    known = plans.get("configurations")
    if not isinstance(known, dict) or not all(isinstance(one, dict) for one in known.values()):
        raise ImportRefused(f"{PLANS} has no table 'configurations': is it of nnU-Net 2?")
    for name in (beside.get("configuration"), folder.resolve().name.rpartition("__")[2]):
        if isinstance(name, str) and name in known:
            return name
    if len(known) == 1:
        return str(next(iter(known)))
    raise ImportRefused(
        f"which configuration was trained ({', '.join(known)})? nnU-Net says it in the folder's "
        f"name, as in nnUNetTrainer__nnUNetPlans__3d_fullres: give the folder that name again, "
        f"or export it: the export writes it down"
    )


def _models(folder: Path) -> tuple[Path, ...]:
    """The exported network of every fold, in order. Raises ImportRefused when one has none."""
    if (folder / MODEL).is_file():
        return (folder / MODEL,)
    folds = sorted(
        (place for place in folder.glob("fold_*") if place.is_dir() and _holds_network(place)),
        key=lambda place: (place.name == "fold_all", len(place.name), place.name),
    )
    # As nnU-Net does: the network trained on all is taken only where it is the only one.
    folds = [place for place in folds if place.name != "fold_all"] or folds
    bare = [place.name for place in folds if not (place / MODEL).is_file()]
    if bare or not folds:
        has = f"only a checkpoint in {', '.join(bare)}" if bare else "no fold with a network"
        raise ImportRefused(
            f"{folder.name} has {has}, and a checkpoint is a pickle: reading it would execute it. "
            f"Where you trained it, or in a throw-away environment with torch and nnunetv2, run: "
            f"ai-node engine export {folder} --out {folder}  "
            f"(it writes {MODEL} into every fold), and add the folder again"
        )
    return tuple(place / MODEL for place in folds)


def _holds_network(fold: Path) -> bool:
    return (fold / MODEL).is_file() or any(fold.glob("checkpoint_*.pth"))


def _beside(folder: Path) -> Table:
    """What the export wrote beside the networks; nnU-Net takes the first one's word, too."""
    for path in (folder / BESIDE, *sorted(folder.glob(f"fold_*/{BESIDE}"))):
        if path.is_file():
            return read(path)
    return {}


def _mirror(folder: Path, beside: Table, rank: int) -> tuple[int, ...]:
    """The axes that may be mirrored: as the checkpoint said, else as its trainer does it."""
    key = "inference_allowed_mirroring_axes"
    if key in beside:
        axes = beside[key] or []
        if not isinstance(axes, list) or not all(axis in range(rank) for axis in axes):
            raise ImportRefused(f"{BESIDE}: {key} is {beside[key]!r}")
        return tuple(axes)
    trainer = folder.resolve().name.partition("__")[0]
    if any(word in trainer for word in ("NoMirroring", "NoDA", "DAOrd0")):
        return ()
    return tuple(range(rank - 1 if "onlyMirror01" in trainer else rank))


def _faults(sheet: Configuration, plans: Plans, dataset: Dataset, name: str) -> Iterator[str]:
    """What would make the network see or answer something else than it was trained for."""
    if sheet.previous_stage:
        yield (
            f"{name} is the second stage of a cascade: its input has the labels of "
            f"{sheet.previous_stage} as channels, which the node cannot feed. Add the folder of "
            f"3d_fullres or 3d_lowres instead"
        )
    if sheet.preprocessor_name != "DefaultPreprocessor":
        yield f"the preprocessor {sheet.preprocessor_name} is not nnU-Net's own"
    if plans.label_manager != "LabelManager":
        yield f"the label manager {plans.label_manager} is not nnU-Net's own"
    if plans.image_reader_writer not in _READERS:
        yield f"the images were read by {plans.image_reader_writer}: they are no volumes in space"
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        yield f"transpose_forward is {plans.transpose_forward}"
    for scheme in sheet.normalization_schemes:
        if scheme not in _SCHEMES:
            yield f"the normalisation {scheme} is not known (known: {', '.join(_SCHEMES)})"
    if not (
        len(dataset.channels) == len(sheet.normalization_schemes) == len(sheet.use_mask_for_norm)
    ):
        yield f"{DATASET} names {len(dataset.channels)} channels, {PLANS} normalises others"
    if (len(sheet.patch_size), len(sheet.spacing)) not in {(2, 2), (3, 3)}:
        yield f"patch_size {sheet.patch_size} and spacing {sheet.spacing} do not fit"
    yield from _grey_faults(sheet, plans)
    yield from _label_faults(dataset)


def _grey_faults(sheet: Configuration, plans: Plans) -> Iterator[str]:
    """CT values cannot be normalised without those of the training images."""
    for number, scheme in enumerate(sheet.normalization_schemes):
        known = plans.intensities.get(str(number))
        if scheme == "CTNormalization" and not (
            known and known.percentile_00_5 < known.percentile_99_5 and known.std > 0
        ):
            yield f"{PLANS} has no foreground_intensity_properties for channel {number}"


def _label_faults(dataset: Dataset) -> Iterator[str]:
    heads = dataset.heads
    labels = [head.label for head in heads]
    if dataset.has_regions:
        order = dataset.regions_class_order or ()
        if len(order) != len(dataset.regions) or len(set(order)) != len(order):
            yield "regions_class_order does not have one label of its own for each region"
    elif labels != list(range(len(labels))):
        yield f"the labels are {labels}: nnU-Net numbers them 0, 1, 2 and so on"
    if not heads or max(labels) > _MOST_LABELS:
        yield f"the labels go up to {max(labels, default=0)}; a segmentation holds 1 to 255"
