"""Two series of a study become one input, from their DICOM objects to the results, or say why not.

They lie in other orientations with other spacing, so whoever took one for the other, a column for
a row or a slice for its mirror image would find the lesion elsewhere or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from node import bundle
from node.domain.job import JobState
from node.engine import Engine
from node.runtimes.onnx import Onnx
from node.testing.series import AXIAL, SAGITTAL, SeriesSpec, make
from tests.acceptance.hospital import SPEC
from tests.conftest import Clock
from tests.engines.package import IMAGE, LESION, PROBABILITY, SLICES, THRESHOLD, network, package
from tests.ward import Bench, at_work

CENTRE = np.array([4.0, -9.0, 21.0])
LESION_AT, DECOY_AT = (CENTRE + (7, 5, 6), CENTRE - (7, 5, 6))
"""Bright on FLAIR both, but only the first on T1: patient coordinates, mm."""
ROLES = "".join(
    f'\n[[series]]\nrole = "{role}"\n'
    f'accepts = [{{ fact = "SeriesDescription", matches = "{role}" }}]\n'
    for role in ("flair", "t1")
)


def placed(spec: SeriesSpec, shape: tuple[int, int, int]) -> SeriesSpec:
    """The series with its middle on the centre."""
    middle = spec.affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    x, y, z = (float(value) for value in CENTRE - middle)
    return replace(spec, origin=(x, y, z))


FLAIR_SHAPE, T1_SHAPE = (12, 40, 36), (40, 50, 60)
FLAIR = placed(
    replace(SPEC, description="flair", orientation=AXIAL, spacing=(4.0, 1.0, 1.0), series="flair"),
    FLAIR_SHAPE,
)
T1 = placed(
    replace(
        SPEC, description="t1", orientation=SAGITTAL, spacing=(1.5, 0.9, 0.8), series="t1",
        series_number=2,
    ),
    T1_SHAPE,
)  # fmt: skip


def near(
    spec: SeriesSpec, shape: tuple[int, int, int], at: NDArray[np.float64], reach: Sequence[float]
) -> NDArray[np.bool_]:
    """The voxels whose centres lie in a box of the patient."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    places = index @ spec.affine[:3, :3].T + spec.affine[:3, 3]
    return np.asarray((np.abs(places - at) <= reach).all(axis=-1))


def study(t1: SeriesSpec = T1) -> list[Dataset]:
    flair = np.full(FLAIR_SHAPE, 100, np.uint16)
    for at in (LESION_AT, DECOY_AT):
        flair[near(FLAIR, FLAIR_SHAPE, at, (4, 3, 5))] = 900
    other = np.full(T1_SHAPE, 100, np.uint16)
    other[near(T1, T1_SHAPE, LESION_AT, (8, 7, 10))] = 900
    return [*make(FLAIR, flair), *make(t1, other)]


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> Iterator[Bench]:
    """A bench with an engine that finds what is bright in both series."""
    folder = tmp_path / "both"
    folder.mkdir()
    network(folder / "model.onnx", [[0.05, 0.05]], [-65.0])
    both = IMAGE.replace('["flair"]', '["flair", "t1"]')
    read = bundle.read(package(folder, ROLES, SLICES, both, PROBABILITY, THRESHOLD, LESION))
    with at_work(tmp_path, clock) as bench, Engine.load(read, Onnx(threads=1)) as engine:
        bench.setup = replace(bench.setup, bundle=read, engine=engine)
        yield bench


def results(bench: Bench) -> list[Dataset]:
    return [dcmread(BytesIO(content)) for content in bench.frozen().values()]


def test_lesion_is_found_where_both_series_show_it(bench: Bench) -> None:
    datasets = study()
    bench.receive(datasets=datasets)
    bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.DONE, row.reason
    (made,) = [one for one in results(bench) if one.SOPClassUID == SegmentationStorage]
    uids = [str(one.SOPInstanceUID) for one in datasets[: FLAIR_SHAPE[0]]]
    stack = hd.seg.Segmentation.from_dataset(made).get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True
    )
    assert stack.shape[-1] == 1
    wanted = near(FLAIR, FLAIR_SHAPE, LESION_AT, (4, 3, 5))
    assert wanted.sum() > 100
    assert np.array_equal(stack[..., 0] > 0, wanted)


def test_every_result_says_that_nothing_was_registered(bench: Bench) -> None:
    bench.receive(datasets=study())
    bench.work()
    (row,) = bench.jobs()
    words = "t1 on the grid of flair, not registered: movement between the series is not corrected"
    assert words in row.trace["notes"]
    made = results(bench)
    assert sorted(one.Modality for one in made) == ["SEG", "SR"]
    for one in made:
        assert words in one.to_json()


def test_series_of_another_frame_of_reference_is_refused_in_words(bench: Bench) -> None:
    bench.receive(datasets=study(replace(T1, frame="another examination")))
    bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.REFUSED
    assert row.reason == (
        "volume of role t1: its frame of reference is another than that of flair: the two series "
        "share no coordinates. Register them first, or send series of one examination"
    )
    assert bench.frozen() == {}


def test_series_of_another_part_of_the_patient_is_refused_in_words(bench: Bench) -> None:
    bench.receive(datasets=study(replace(T1, origin=(400.0, 400.0, 400.0))))
    bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.REFUSED
    assert row.reason == "volume of role t1: it covers no part of the series of flair"


def test_study_without_the_second_series_is_refused(bench: Bench) -> None:
    bench.receive(datasets=study()[: FLAIR_SHAPE[0]])
    bench.work()
    (row,) = bench.jobs()
    assert row.job.state is JobState.REFUSED
    assert "'t1'" in row.reason
