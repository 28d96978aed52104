"""Made series are valid objects and say what their specification says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node.testing.series import CORONAL, SeriesSpec, make, received, save
from tests.places import tool

SPECS = [
    SeriesSpec(),
    SeriesSpec(modality="CT", intercept=-1024.0, orientation=CORONAL, thickness=2.5),
    SeriesSpec(slope=0.5, intercept=3.25, bits_stored=12, tilt_degrees=5.0),
    SeriesSpec(character_set="GB18030", patient_name="Wang^XiaoDong=王^小东"),
    SeriesSpec(
        character_set=["", "ISO 2022 IR 87"],
        patient_name="Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
]


@pytest.mark.peer
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.modality}-{spec.patient_name}")
def test_a_made_series_passes_dciodvfy_without_an_error(spec: SeriesSpec, tmp_path: Path) -> None:
    dciodvfy = tool("dciodvfy")
    dtype = np.int16 if spec.modality == "CT" else np.uint16
    for path in save(make(spec, np.zeros((2, 4, 5), dtype)), tmp_path):
        told = subprocess.run([dciodvfy, path], capture_output=True, text=True, check=False)
        assert "Error" not in told.stderr


def test_instances_carry_the_slices_in_the_order_asked_for(tmp_path: Path) -> None:
    voxels = np.arange(3 * 2 * 2, dtype=np.uint16).reshape(3, 2, 2)
    spec = SeriesSpec(order=[2, 0, 1], spacing=(5.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    read = [dcmread(path) for path in save(make(spec, voxels), tmp_path)]
    assert [one.InstanceNumber for one in read] == [1, 2, 3]
    for one, k in zip(read, spec.order, strict=True):
        np.testing.assert_array_equal(one.pixel_array, voxels[k])
        assert one.ImagePositionPatient == [0, 0, 5 * k]


def test_equal_names_make_equal_uids() -> None:
    voxels = np.zeros((1, 2, 2), np.uint16)
    one = make(SeriesSpec(), voxels)[0]
    same = make(SeriesSpec(), voxels)[0]
    other = make(SeriesSpec(series="t1", series_number=2), voxels)[0]
    assert one.SOPInstanceUID == same.SOPInstanceUID
    assert one.StudyInstanceUID == other.StudyInstanceUID
    assert one.FrameOfReferenceUID == other.FrameOfReferenceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID


def test_extra_attributes_are_set_last_and_none_removes() -> None:
    extra = {"InversionTime": None, "ImageComments": "made"}
    (dataset,) = make(SeriesSpec(extra=extra), np.zeros((1, 2, 2), np.uint16))
    assert "InversionTime" not in dataset
    assert dataset.ImageComments == "made"


@pytest.mark.parametrize("voxels", [np.zeros((2, 2)), np.zeros((1, 2, 2), np.int32)])
def test_voxels_that_no_image_can_hold_are_refused(voxels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="voxels are"):
        make(SeriesSpec(), voxels)


def test_received_instances_keep_one_digest_per_content(tmp_path: Path) -> None:
    datasets = make(SeriesSpec(), np.zeros((2, 2, 2), np.uint16))
    first, second = received(save(datasets, tmp_path / "a"))
    assert first.sha256 != second.sha256
    assert received(save(datasets, tmp_path / "b"))[0].key == first.key
