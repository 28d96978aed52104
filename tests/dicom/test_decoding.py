"""Decoding several slices at once: the order, the words and the refusals of one at a time."""

from __future__ import annotations

import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.dicom.decoding import in_order
from node.dicom.geometry import Geometry, arrange
from node.dicom.layout import DECODING_COSTS, MOST_BYTES, Layout, layouts_of
from node.dicom.pixels import load
from node.domain.errors import PixelError
from node.domain.study import Instance
from node.testing.series import SeriesSpec, make, received, save
from tests.hostile.peak import grown

SLICES = 9


def compressed(directory: Path, syntax: str) -> tuple[Geometry, NDArray[Any]]:
    voxels = np.random.default_rng(0).integers(0, 4096, (SLICES, 40, 34)).astype(np.uint16)
    datasets = make(SeriesSpec(), voxels)
    for dataset in datasets:
        dataset.compress(syntax)
    return arrange(received(save(datasets, directory))), voxels


def broken(one: Instance) -> None:
    """Its pixel data ends in the middle of its codestream."""
    content = one.path.read_bytes()
    one.path.write_bytes(content[: len(content) - 900])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_slices_keep_their_places_and_every_run_is_the_same(syntax: str, tmp_path: Path) -> None:
    geometry, voxels = compressed(tmp_path, syntax)
    for _ in range(3):
        np.testing.assert_array_equal(load(geometry).voxels, voxels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_of_several_broken_slices_the_first_is_named(syntax: str, tmp_path: Path) -> None:
    geometry, _ = compressed(tmp_path, syntax)
    for k in (8, 5, 4):
        broken(geometry.instances[k])
    with pytest.raises(PixelError, match=r"could not be decoded in .*instance number 5\b"):
        load(geometry)


def test_a_bomb_behind_good_slices_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    voxels = np.zeros((SLICES, 64, 64), np.uint16)
    datasets = make(SeriesSpec(), voxels)
    for dataset in datasets:
        dataset.compress(JPEG2000Lossless)
    bomb = bytearray(next(generate_frames(datasets[6].PixelData, number_of_frames=1)))
    struct.pack_into(">2I", bomb, 8, 30_000, 30_000)
    struct.pack_into(">2I", bomb, 24, 30_000, 30_000)
    datasets[6].PixelData = encapsulate([bytes(bomb)])
    geometry = arrange(received(save(datasets, tmp_path)))
    with grown() as peak, pytest.raises(PixelError, match="the codestream is 30000 x 30000"):
        load(geometry)
    assert peak() < 64 * 2**20


class Readers:
    """Counts who reads at once; each waits until as many as possible are there, or a moment."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.failing = failing
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.begun: list[str] = []

    def __call__(self, instance: Instance, layout: Layout) -> NDArray[Any]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.begun.append(instance.sop_instance_uid)
        threading.Event().wait(0.005)
        with self.lock:
            self.now -= 1
        if instance.sop_instance_uid in self.failing:
            raise PixelError(instance.sop_instance_uid)
        return np.full((1, 1), float(str(instance.facts["InstanceNumber"])))


def test_results_come_in_the_order_of_the_slices(tmp_path: Path) -> None:
    geometry, _ = compressed(tmp_path, RLELossless)
    read = Readers()
    results = list(in_order(read, geometry.instances, layouts_of(geometry.instances)))
    assert [int(one[0, 0]) for one in results] == [*range(1, SLICES + 1)]
    assert len(read.begun) == SLICES


def test_nothing_is_begun_before_the_first_slice_is_read(tmp_path: Path) -> None:
    geometry, _ = compressed(tmp_path, RLELossless)
    read = Readers()
    slices = in_order(read, geometry.instances, layouts_of(geometry.instances))
    next(slices)
    assert read.begun == [geometry.instances[0].sop_instance_uid]
    slices.close()


def test_large_slices_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    geometry, _ = compressed(tmp_path, RLELossless)
    side = int((MOST_BYTES / DECODING_COSTS / 2) ** 0.5)
    large = [replace(one, rows=side, columns=side) for one in layouts_of(geometry.instances)]
    read = Readers()
    assert len(list(in_order(read, geometry.instances, large))) == SLICES
    assert read.most == 1


def test_an_error_ends_the_reading_of_what_follows(tmp_path: Path) -> None:
    geometry, _ = compressed(tmp_path, RLELossless)
    uids = [one.sop_instance_uid for one in geometry.instances]
    layouts = [replace(one, rows=11_000, columns=12_000) for one in layouts_of(geometry.instances)]
    read = Readers(frozenset({uids[2], uids[3]}))
    with pytest.raises(PixelError, match=uids[2]):
        list(in_order(read, geometry.instances, layouts))
    assert len(read.begun) < SLICES
    assert threading.active_count() == 1 or all(
        not one.name.startswith("decoding") for one in threading.enumerate()
    )
