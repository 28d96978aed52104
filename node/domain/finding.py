"""What an engine found, placed on the source series' own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.domain.codes import Code


@dataclass(frozen=True, slots=True)
class Concept:
    """The coded meaning of a label and how it is shown.

    ``category`` and ``type`` are the Segmented Property Category and Type (PS3.3 C.8.20.4);
    ``colour`` is the Recommended Display CIELab Value as (L*, a*, b*).
    """

    label: str
    category: Code
    type: Code
    site: Code | None = None
    laterality: Code | None = None
    colour: tuple[float, float, float] = (65.0, 60.0, 40.0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its concept and UCUM unit."""

    name: Code
    value: float
    unit: Code


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """A closed polygon on one source slice.

    ``slice_index`` counts in the order of the source volume; ``points`` has shape (n, 2) in
    (column, row) image coordinates with the origin at the top left corner of the top left pixel
    (PS3.3 C.18.6.1.1); the last point repeats the first.
    """

    slice_index: int
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One lesion, organ or region.

    ``mask`` is a bool array (k, j, i) on the source grid; ``probability`` is the engine's highest
    value inside it, 0 to 1. The tracking UID is derived, so that the same job names it the same.
    """

    concept: Concept
    tracking_id: str
    tracking_uid: str
    mask: NDArray[np.bool_]
    probability: float | None = None
    measurements: tuple[Measurement, ...] = ()
    outline: Outline | None = None


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Who made a result, as IHE AIR wants it named in every object.

    ``device_uid`` is derived from the digest of the engine package: another model, another UID.
    """

    name: str
    version: str
    manufacturer: str
    digest: str
    device_uid: str
    family: Code = Code("123110", "DCM", "Artificial Intelligence")
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A report of ours that a later one replaces, as PS3.3 C.17.2 names it."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """The outcome of one engine on one study, ready to be encoded.

    ``analysed_at`` is seconds since the epoch and belongs to the job, not to the clock, so that
    encoding twice gives the same bytes. An empty ``findings`` with no ``refusal`` means
    "assessed, nothing found"; ``refusal`` means "could not assess, because ...".
    ``predecessors`` are the reports on an earlier content of the study that this one replaces.
    """

    job_id: str
    algorithm: Algorithm
    analysed_at: float
    findings: tuple[Finding, ...] = ()
    refusal: str = ""
    predecessors: tuple[Predecessor, ...] = ()
