"""Pixels read at their recorded place: the same voxels as by way of the header, or that way."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from node.dicom.geometry import Geometry, arrange
from node.dicom.pixels import load
from node.domain.errors import PixelError
from node.testing.series import SeriesSpec, make, received, save
from tests.dicom.raw import set_raw

ROWS, COLUMNS = 5, 3
RESCALES = [
    (None, 0.0),
    (1.0, -1024.0),
    (2.0, 3.0),
    (3.0, -40_000.0),
    (70_000.0, 0.0),
    (1.0, 900_000.0),
    (0.25, -1.5),
]


def without_offsets(geometry: Geometry) -> Geometry:
    """As if the indexer had not recorded where the pixels are."""
    return moved(geometry, None)


def moved(geometry: Geometry, offset: int | None) -> Geometry:
    instances = tuple(replace(one, pixel_offset=offset) for one in geometry.instances)
    return replace(geometry, instances=instances)


def same(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.dtype == other.dtype
    assert one.tobytes() == other.tobytes()


def stored(directory: Path, spec: SeriesSpec, voxels: NDArray[Any]) -> Geometry:
    return arrange(received(save(make(spec, voxels), directory)))


def ct(directory: Path, **spec: Any) -> Geometry:
    voxels = np.random.default_rng(0).integers(0, 4096, (4, ROWS, COLUMNS)).astype(np.int16)
    return stored(directory, SeriesSpec(modality="CT", intercept=-1024.0, **spec), voxels)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_gives_the_same_bytes_by_either_way(data: st.DataObject) -> None:
    signed = data.draw(st.booleans())
    allocated = data.draw(st.sampled_from([16, 16, 16, 8]))
    bits = data.draw(st.integers(1, allocated))
    slope, intercept = data.draw(st.sampled_from(RESCALES))
    inverted = {"PhotometricInterpretation": "MONOCHROME1"} if data.draw(st.booleans()) else {}
    spec = SeriesSpec(
        slope=slope,
        intercept=intercept,
        bits_stored=bits,
        extra=inverted,
        transfer_syntax_uid=data.draw(
            st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian])
            if allocated == 8
            else st.sampled_from(
                [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
            )
        ),
    )
    slices = data.draw(st.integers(1, 3))
    high = data.draw(st.sampled_from([1, 1 << bits // 2, 1 << bits]))
    seed = data.draw(st.integers(0, 99))
    voxels = np.random.default_rng(seed).integers(0, high, (slices, ROWS, COLUMNS))
    kind = f"{'i' if signed else 'u'}{allocated // 8}"
    with tempfile.TemporaryDirectory() as directory:
        paths = save(make(spec, voxels.astype(kind)), Path(directory))
        if data.draw(st.booleans()):  # an overlay in the high bits
            for path in paths:
                dirty = np.random.default_rng(seed).bytes(ROWS * COLUMNS * allocated // 8)
                set_raw(path, "PixelData", dirty + b"\0" * (len(dirty) % 2), "OW")
        geometry = arrange(received(paths))
        same(load(geometry).voxels, load(without_offsets(geometry)).voxels)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian]))
def test_no_wrong_offset_ever_gives_other_voxels(offset: int, syntax: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        geometry = ct(Path(directory), transfer_syntax_uid=syntax)
        same(load(moved(geometry, offset)).voxels, load(without_offsets(geometry)).voxels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_pixels_are_read_where_they_were_found_and_the_header_is_not_parsed_again(
    syntax: str, tmp_path: Path
) -> None:
    geometry = ct(tmp_path, transfer_syntax_uid=syntax)
    truth = load(geometry).voxels
    for instance in geometry.instances:
        with instance.path.open("r+b") as stream:
            stream.write(bytes(400))
    same(load(geometry).voxels, truth)


def test_compressed_pixels_are_read_where_they_were_found_too(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4096, (3, 8, 8)).astype(np.uint16)
    datasets = make(SeriesSpec(), voxels)
    for dataset in datasets:
        dataset.compress(JPEGLSLossless)
    geometry = arrange(received(save(datasets, tmp_path)))
    truth = load(without_offsets(geometry)).voxels
    for wrong in (0, 5, 300):
        same(load(moved(geometry, wrong)).voxels, truth)
    for instance in geometry.instances:
        with instance.path.open("r+b") as stream:
            stream.write(bytes(400))
    same(load(geometry).voxels, truth)


def test_pixels_that_have_become_longer_or_shorter_are_refused_as_before(tmp_path: Path) -> None:
    geometry = ct(tmp_path)
    path, offset = geometry.instances[2].path, geometry.instances[2].pixel_offset
    assert offset is not None
    content = bytearray(path.read_bytes())
    content[offset - 4 : offset] = (ROWS * COLUMNS * 2 + 2).to_bytes(4, "little")
    path.write_bytes(content + b"\0\0")
    with pytest.raises(PixelError, match="holds 32 bytes of pixel data"):
        load(geometry)


def test_a_value_that_does_not_fit_in_the_last_slice_makes_the_volume_float(
    tmp_path: Path,
) -> None:
    voxels = np.zeros((3, ROWS, COLUMNS), np.uint16)
    voxels[2, 0, 0] = 65_535
    volume = load(stored(tmp_path, SeriesSpec(), voxels)).voxels
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, voxels)
