"""How well an engine's findings meet masks that somebody drew.

The masks are DICOM Segmentations of the same images, or arrays on their grid. What is compared is
what the node would report, after every step of the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import SegmentationStorage

from node.bundle import Bundle
from node.dicom import pixels
from node.domain.errors import HeaderError, InferenceError, NodeError
from node.domain.study import Study
from node.domain.volume import Volume
from node.engine import Engine
from node.findings import Found, Label
from node.selection import select
from node.trial import Folder

Mask = NDArray[np.bool_]

_DRAWS = 10_000
_SEED = 7
ENOUGH = 4
"""With more studies than this an interval of the mean is given."""
_LEVELS = (2.5, 97.5)


class NoMask(NodeError):
    """A mask is absent, does not lie on the images, or says nothing that the engine finds."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One study against its mask: Dice by finding (None: neither has it); or why it was not."""

    study_uid: str
    dice: Mapping[str, float | None]
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One finding over all studies. ``interval`` is of the mean, 95 %, by bootstrap; None where
    there are too few studies. ``absent`` counts the studies in which neither side has it."""

    finding: str
    values: tuple[float, ...]
    absent: int
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """Mean Dice; NaN without any study."""
        return float(np.mean(self.values)) if self.values else float("nan")


def compare(
    bundle: Bundle, engine: Engine, studies: Folder, masks: tuple[Path, Folder]
) -> tuple[Compared, ...]:
    """Every study against its mask; ``masks`` is a folder, and the DICOM that lies in it."""
    arrays = sorted(masks[0].rglob("*.npy"))
    alone = sum(1 for study in studies.studies if _has_images(study)) == 1
    results = []
    for study in studies.studies:
        if not _has_images(study):
            continue
        own = [path for path in arrays if alone or _belongs(path, study)]
        segs = [*_segmentations(study), *_segmentations_of(masks[1], study.uid)]
        results.append(_compared(bundle, engine, study, (own, sorted(set(segs)))))
    return tuple(results)


def agreements(compared: Sequence[Compared]) -> tuple[Agreement, ...]:
    """The findings over all studies, in their order."""
    names = dict.fromkeys(name for one in compared for name in one.dice)
    return tuple(
        _agreement(name, [one.dice[name] for one in compared if one.dice]) for name in names
    )


def overlap(one: Mask, other: Mask) -> float | None:
    """Dice coefficient 2|A and B| / (|A| + |B|) (Dice 1945); None when both are empty."""
    every = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / every if every else None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean, studies resampled; the same values give the same one."""
    if len(values) <= ENOUGH:
        return None
    draws = np.random.default_rng(_SEED).integers(0, len(values), (_DRAWS, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(axis=1), _LEVELS)
    return float(low), float(high)


def _agreement(name: str, found: Sequence[float | None]) -> Agreement:
    values = tuple(value for value in found if value is not None)
    return Agreement(name, values, len(found) - len(values), interval(values))


def _compared(
    bundle: Bundle, engine: Engine, study: Study, masks: tuple[Sequence[Path], Sequence[Path]]
) -> Compared:
    try:
        volumes = _volumes(bundle, study)
        reference = volumes[bundle.manifest.roles[0]]
        truth = _truth(reference, bundle.manifest.findings, masks)
        found = engine.examine(volumes, "comparison")
    except (NoMask, HeaderError, InferenceError) as error:
        return Compared(study.uid, {}, str(error))
    seen = _union(found, reference.grid.shape)
    nothing = np.zeros(reference.grid.shape, bool)
    dice = {name: overlap(seen.get(name, nothing), mask) for name, mask in truth.items()}
    return Compared(study.uid, dice)


def _volumes(bundle: Bundle, study: Study) -> dict[str, Volume]:
    selection = select(study, bundle.wanted)
    if selection.refusal:
        raise NoMask(selection.refusal)
    return {role: pixels.load(choice.geometry) for role, choice in selection.chosen.items()}


def _union(found: Found, shape: tuple[int, int, int]) -> dict[str, Mask]:
    """Every finding of a name as one mask."""
    masks: dict[str, Mask] = {}
    for finding in found.findings:
        name = finding.concept.label
        masks.setdefault(name, np.zeros(shape, bool))
        masks[name] |= finding.mask
    return masks


def _truth(
    volume: Volume, labels: Sequence[Label], masks: tuple[Sequence[Path], Sequence[Path]]
) -> dict[str, Mask]:
    """The drawn masks by the finding's name. Raises NoMask."""
    arrays, segs = masks
    truth: dict[str, Mask] = {}
    for path in segs:
        for name, mask in _segments(path, volume, labels):
            truth[name] = truth[name] | mask if name in truth else mask
    for path in arrays:
        truth |= _arrays(path, volume, labels, alone=len(arrays) == 1)
    if not truth:
        names = ", ".join(label.name for label in labels)
        raise NoMask(f"no mask for it: wanted a DICOM SEG of these images, or a .npy ({names})")
    return truth


def _arrays(path: Path, volume: Volume, labels: Sequence[Label], alone: bool) -> dict[str, Mask]:
    """The masks in a ``.npy``: a label map of all findings, or that of the finding it names."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise NoMask(f"{path.name} is no array of numbers: {error}") from error
    if array.shape != volume.grid.shape:
        raise NoMask(
            f"{path.name} has shape {array.shape}, the images {volume.grid.shape} (slices, rows, "
            f"columns; slices in the order of their place in the patient)"
        )
    named = [label for label in labels if _same(label.name, path.stem)]
    if named:
        return {named[0].name: array != 0}
    if not alone:
        raise NoMask(f"{path.name} names no finding of the engine, and there are several arrays")
    if len(labels) == 1:
        return {labels[0].name: array != 0}
    return {label.name: array == label.label for label in labels}


def _segments(path: Path, volume: Volume, labels: Sequence[Label]) -> Iterator[tuple[str, Mask]]:
    """The segments of a SEG that mean a finding, on the slices of the volume."""
    seg = hd.seg.segread(path)
    try:
        stack = seg.get_pixels_by_source_instance(
            [source.sop_instance_uid for source in volume.sources],
            ignore_spatial_locations=False,
            assert_missing_frames_are_empty=True,
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise NoMask(f"{path.name} does not lie on the series that was taken: {error}") from error
    only = len(labels) == 1
    for number in range(1, seg.number_of_segments + 1):
        segment = seg.get_segment_description(number)
        code = segment.segmented_property_type
        for label in labels:
            if only or _same(label.name, segment.segment_label) or code.value == label.type.value:
                yield label.name, np.asarray(stack[..., number - 1] > 0)
                break


def _same(name: str, other: str) -> bool:
    return _letters(name) == _letters(str(other))


def _letters(words: str) -> str:
    return "".join(one for one in words.lower() if one.isalnum())


def _has_images(study: Study) -> bool:
    return any(instance.is_image for instance in study.instances)


def _segmentations(study: Study) -> list[Path]:
    return [one.path for one in study.instances if one.sop_class_uid == SegmentationStorage]


def _segmentations_of(masks: Folder, uid: str) -> list[Path]:
    return [path for one in masks.studies if one.uid == uid for path in _segmentations(one)]


def _belongs(path: Path, study: Study) -> bool:
    """Whether an array lies in the study's folder, in one of its name, or has its name."""
    folder = Path(os.path.commonpath([one.path.parent for one in study.instances]))
    return folder in path.parents or folder.name in (path.stem, path.parent.name)
