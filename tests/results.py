"""A small study with findings in it: what the outputs and the gate are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.dicom.source import Source
from node.domain.codes import Code
from node.domain.finding import (
    Algorithm,
    Assessment,
    Concept,
    Finding,
    Measurement,
    Outline,
    Region,
)
from node.domain.job import derived_uid
from node.domain.volume import Affine, Grid
from node.testing.series import SeriesSpec, make

ANALYSED_AT = 1_735_813_800.25
"""2025-01-02 10:30:00.25 UTC."""
SHAPE = (6, 20, 24)
"""Slices, rows, columns."""
MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LESION = Concept(
    "Lesion",
    MORPHOLOGY,
    Code("52988006", "SCT", "Lesion"),
    site=Code("12738006", "SCT", "Brain"),
    laterality=Code("7771000", "SCT", "Left"),
)
ALGORITHM = Algorithm(
    name="mr-brain-lesion",
    version="1.2.0",
    manufacturer="Phantom works",
    digest="ab" * 32,
    device_uid=derived_uid("ab" * 32),
    parameters="threshold=0.5",
)
Box = tuple[slice, slice, slice]
BOXES: tuple[Box, ...] = (
    (slice(1, 4), slice(5, 12), slice(6, 15)),
    (slice(4, 6), slice(2, 5), slice(17, 23)),
    (slice(0, 1), slice(14, 19), slice(1, 4)),
)


def reread(dataset: Dataset) -> Dataset:
    """The data set as a reader of its bytes sees it."""
    return dcmread(BytesIO(written(dataset)))


def written(dataset: Dataset) -> bytes:
    """The Part 10 bytes of a data set."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def source(spec: SeriesSpec | None = None, shape: tuple[int, int, int] = SHAPE) -> Source:
    """A made series as the node sees it: read from bytes, in the order of the slices."""
    spec = spec or SeriesSpec()
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    headers = [reread(dataset) for dataset in make(spec, voxels)]
    order = list(spec.order or range(shape[0]))
    ordered = sorted(zip(order, headers, strict=True), key=lambda pair: pair[0])
    return Source(tuple(header for _, header in ordered), Grid(shape, spec.affine))


def on_bytes(headers: Sequence[Dataset], affine: Affine) -> Source:
    """A source of given headers that form one volume."""
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    return Source(tuple(headers), Grid(shape, affine))


def finding(number: int = 1, box: Box = BOXES[0], shape: tuple[int, int, int] = SHAPE) -> Finding:
    """A box as a finding, with a volume, a diameter and its outline on the middle slice."""
    mask = np.zeros(shape, bool)
    mask[box] = True
    rows, columns = box[1], box[2]
    corners = [
        (columns.start, rows.start),
        (columns.stop, rows.start),
        (columns.stop, rows.stop),
        (columns.start, rows.stop),
        (columns.start, rows.start),
    ]
    middle = (box[0].start + box[0].stop - 1) // 2
    return Finding(
        concept=LESION,
        tracking_id=f"mr-brain-lesion Lesion {number}",
        tracking_uid=derived_uid("finding", str(number)),
        region=Region.of(mask),
        probability=0.9731,
        measurements=(
            Measurement(
                Code("118565006", "SCT", "Volume"),
                float(mask.sum()) * 5.0,
                Code("mm3", "UCUM", "cubic millimeter"),
            ),
            Measurement(
                Code("103339001", "SCT", "Long Axis"), 11.40175, Code("mm", "UCUM", "millimeter")
            ),
        ),
        outline=Outline(middle, np.array(corners, np.float64)),
    )


def assessment(findings: int = 1, refusal: str = "") -> Assessment:
    """An assessment with so many findings, which do not touch."""
    return Assessment(
        job_id="0123456789abcdef0123456789abcdef",
        algorithm=ALGORITHM,
        analysed_at=ANALYSED_AT,
        findings=tuple(finding(n, BOXES[n - 1]) for n in range(1, findings + 1)),
        refusal=refusal,
    )


def of_algorithm(outcome: Assessment, **changes: str) -> Assessment:
    """The same outcome by an algorithm with other words."""
    return replace(outcome, algorithm=replace(outcome.algorithm, **changes))


def moments(dataset: Dataset) -> set[str]:
    """Every date and time that is not copied from the source, as text."""
    return {
        str(element.value)
        for element in dataset.iterall()
        if element.VR in ("DA", "TM", "DT")
        and element.value
        and element.keyword not in ("StudyDate", "StudyTime", "PatientBirthDate")
    }
