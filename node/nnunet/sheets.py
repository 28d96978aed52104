"""nnU-Net's two files as it writes them: what of them the node reads, and in which form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from node.domain.errors import ImportRefused

PLANS = "plans.json"
DATASET = "dataset.json"

_LARGEST = 16 << 20
"""Bytes of such a file; dataset.json may list thousands of training images."""
_LOOSE = ConfigDict(extra="ignore", allow_inf_nan=False)

Numbers = tuple[float, ...]
Axes = tuple[int, int, int]
Table = dict[str, Any]


@checked(frozen=True, config=_LOOSE)
class Configuration:
    """One entry of ``configurations`` in plans.json, with what it inherits."""

    patch_size: tuple[int, ...]
    spacing: Numbers
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: str
    resampling_fn_probabilities: str
    resampling_fn_data_kwargs: Table = field(default_factory=dict)
    resampling_fn_probabilities_kwargs: Table = field(default_factory=dict)
    preprocessor_name: str = "DefaultPreprocessor"
    previous_stage: str | None = None


@checked(frozen=True, config=_LOOSE)
class Intensities:
    """What nnU-Net keeps of a channel's grey values over the training images."""

    mean: float = 0.0
    std: float = 1.0
    percentile_00_5: float = 0.0
    percentile_99_5: float = 0.0


@checked(frozen=True, config=_LOOSE)
class Plans:
    """plans.json without its configurations."""

    transpose_forward: Axes = (0, 1, 2)
    image_reader_writer: str = "SimpleITKIO"
    label_manager: str = "LabelManager"
    dataset_name: str = ""
    foreground_intensity_properties_per_channel: dict[str, Intensities] = field(
        default_factory=dict
    )
    foreground_intensity_properties_by_modality: dict[str, Intensities] = field(
        default_factory=dict
    )

    @property
    def intensities(self) -> dict[str, Intensities]:
        """The grey values of each channel by its number; plans of the first days call it so."""
        return (
            self.foreground_intensity_properties_per_channel
            or self.foreground_intensity_properties_by_modality
        )


@dataclass(frozen=True, slots=True)
class Head:
    """An output channel: its name and the label it gives; the background has label 0."""

    name: str
    label: int


@checked(frozen=True, config=_LOOSE)
class Dataset:
    """dataset.json."""

    labels: dict[str, int | Annotated[tuple[int, ...], Field(min_length=1)]]
    channel_names: dict[int, str] = field(default_factory=dict)
    modality: dict[int, str] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] | None = None
    name: str = ""
    description: str = ""
    licence: str = ""
    license: str = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels' names in the network's order."""
        named = self.channel_names or self.modality
        return tuple(named[number] for number in sorted(named))

    @property
    def has_regions(self) -> bool:
        """Whether the network was trained on regions, which may overlap; else on classes."""
        return any(isinstance(one, tuple) and len(one) > 1 for one in self.labels.values())

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions' names in order, without the background."""
        return tuple(
            name
            for name, one in self.labels.items()
            if name != "ignore" and (set(one) if isinstance(one, tuple) else {one}) != {0}
        )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The network's output channels: classes by their number, or regions in order."""
        if self.has_regions:
            order = self.regions_class_order or ()
            return tuple(Head(*one) for one in zip(self.regions, order, strict=False))
        single = [
            (one[0] if isinstance(one, tuple) else one, name)
            for name, one in self.labels.items()
            if name != "ignore"
        ]
        return tuple(Head(name, label) for label, name in sorted(single))


def read(path: Path) -> Table:
    """A JSON object from a file. Raises ImportRefused."""
    try:
        if path.stat().st_size > _LARGEST or not path.is_file():
            raise ImportRefused(f"{path.name} is no file, or larger than {_LARGEST >> 20} MiB")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefused(f"{path.name} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ImportRefused(f"{path.name} holds no JSON object")
    return table


def understood(kind: type[Any], table: Table, place: str) -> Any:
    """A table as one of the dataclasses here. Raises ImportRefused with every key that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in one['loc']) or place}: {one['msg']}"
            for one in error.errors()[:8]
        )
        raise ImportRefused(f"{place} is not as nnU-Net 2 writes it: {faults}") from error


def inherited(plans: Table, name: str) -> Table:
    """A configuration of the plans over those that it inherits from. Raises ImportRefused."""
    known = plans["configurations"]
    chain: list[str] = []
    while name:
        if not isinstance(name, str) or name in chain or name not in known:
            raise ImportRefused(f"{PLANS}: no configuration {name!r}, or it inherits from itself")
        chain.append(name)
        name = known[name].get("inherits_from") or ""
    merged: Table = {}
    for one in reversed(chain):
        merged |= known[one]
    return merged
