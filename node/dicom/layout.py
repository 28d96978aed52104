"""How the pixels of a slice are stored, judged before any of them is read.

The header states what reading costs. Here that statement is held against the file and against the
memory a slice may take, so that neither the reading nor the decoding has to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from node.dicom.headers import optional, reading, where, whole
from node.domain.errors import PixelError
from node.domain.study import Instance

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes whose pixels lie in the file as they are (PS3.5 A.4: not encapsulated)."""
MOST_BYTES = 2 * 2**30
"""What one slice, or all that are decoded at once, may take of memory while they are read."""
DECODING_COSTS = 8
"""Bytes of memory that a decoder takes at most per byte that it makes (JPEG 2000, measured)."""

_FLATTEST, _STEEPEST = 1e-6, 1e6
"""Rescale Slope that a modality can mean; beyond it is a header gone wrong."""
_RESCALED = ("CT", "PT")
"""Modalities whose stored values mean nothing without a rescale (Type 1 in their IODs)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one slice's pixels are stored (PS3.3 C.7.6.3) and rescaled (C.11.1).

    ``allocated`` and ``stored`` are bits of a pixel, ``inverted`` is MONOCHROME1.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    inverted: bool
    slope: float
    intercept: float

    @property
    def length(self) -> int:
        """Bytes of one uncompressed slice; Python's integers do not overflow."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def integral(self) -> bool:
        """Whether whole numbers stay whole numbers when they are rescaled."""
        return self.slope.is_integer() and self.intercept.is_integer()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a stored value in memory, in this machine's byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")


def layouts_of(instances: Sequence[Instance]) -> list[Layout]:
    """The layout of each slice, in their order.

    Raises PixelError when the pixels cannot become one volume, when a slice would take too much
    memory, or when its file is too small for it; HeaderError when a number of the header is
    missing or out of range; SpoolError when a file cannot be read.
    """
    layouts = [_layout(instance) for instance in instances]
    _refuse_partly_rescaled(instances)
    for instance, layout in zip(instances, layouts, strict=True):
        _refuse_large_slice(instance, layout)
        _refuse_small_file(instance, layout)
    return layouts


def _layout(instance: Instance) -> Layout:
    samples = optional(instance, "SamplesPerPixel", 1, 4) or 1.0
    photometric = instance.facts.get("PhotometricInterpretation", "")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise PixelError(
            f"{where(instance)} has {samples:g} samples per pixel, {str(photometric)[:32]!r}; "
            "a volume wants 1 sample, MONOCHROME1 or MONOCHROME2"
        )
    allocated = whole(instance, "BitsAllocated", 1, 64)
    stored = whole(instance, "BitsStored", 1, 64)
    high = optional(instance, "HighBit", 0, 63)
    if allocated not in (8, 16, 32) or stored > allocated or high not in (None, stored - 1):
        raise PixelError(
            f"{where(instance)} stores {stored} of {allocated} bits below bit {high}; wanted 8, "
            "16 or 32 bits allocated, with the stored bits at the low end"
        )
    slope, intercept = _rescale(instance)
    return Layout(
        rows=whole(instance, "Rows", 1, 65535),
        columns=whole(instance, "Columns", 1, 65535),
        allocated=allocated,
        stored=stored,
        signed=whole(instance, "PixelRepresentation", 0, 1) == 1,
        inverted=photometric == "MONOCHROME1",
        slope=slope,
        intercept=intercept,
    )


def _rescale(instance: Instance) -> tuple[float, float]:
    """Slope and intercept; (1, 0) where the header has neither and need not have them."""
    slope = optional(instance, "RescaleSlope", _FLATTEST, _STEEPEST)
    intercept = optional(instance, "RescaleIntercept", -_STEEPEST, _STEEPEST)
    if slope is not None and intercept is not None:
        return slope, intercept
    if slope is intercept is None and instance.facts.get("Modality") not in _RESCALED:
        return 1.0, 0.0
    raise PixelError(
        f"RescaleSlope is {slope} and RescaleIntercept is {intercept} in {where(instance)}; "
        "wanted both"
    )


def _refuse_partly_rescaled(instances: Sequence[Instance]) -> None:
    missing = sum(one.facts.get("RescaleSlope", "") == "" for one in instances)
    if 0 < missing < len(instances):
        raise PixelError(
            f"RescaleSlope is missing in {missing} of {len(instances)} instances: "
            "their values are not comparable with the others"
        )


def _refuse_large_slice(instance: Instance, layout: Layout) -> None:
    costs = 1 if instance.transfer_syntax_uid in NATIVE else DECODING_COSTS
    if layout.length * costs > MOST_BYTES:
        raise PixelError(
            f"{where(instance)} has {layout.rows} x {layout.columns} pixels of "
            f"{layout.allocated} bits; reading them may take {layout.length * costs} bytes of "
            f"memory, the limit is {MOST_BYTES}"
        )


def _refuse_small_file(instance: Instance, layout: Layout) -> None:
    with reading(instance.path):
        size = os.stat(instance.path).st_size
    syntax = instance.transfer_syntax_uid
    # PackBits makes at most 128 bytes of two (PS3.5 G.3.2); the other codecs state their size.
    most = size * 64 if syntax == RLELossless else size
    if (syntax in NATIVE or syntax == RLELossless) and most < layout.length:
        raise PixelError(
            f"{where(instance)} has {size} bytes, but {layout.rows} x {layout.columns} pixels of "
            f"{layout.allocated} bits need {layout.length}: the object is incomplete"
        )
