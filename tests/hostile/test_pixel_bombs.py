"""Compressed pixels that ask for more than they are: refused in words, before they are decoded."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from node.dicom.geometry import Geometry
from node.dicom.pixels import load
from node.domain.errors import PixelError
from node.domain.study import Instance
from node.domain.volume import Grid
from node.testing.series import SeriesSpec, make, received, save
from tests.hostile.peak import grown

LARGE, HUGE = 12_000, 60_000


def instance(directory: Path, syntax: str, codestream: bytes, side: int) -> Instance:
    """A valid header of ``side`` x ``side`` pixels over a codestream."""
    dataset = make(SeriesSpec(), np.zeros((1, 8, 8), np.uint16))[0]
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.Rows = dataset.Columns = side
    return received(save([dataset], directory))[0]


def geometry(one: Instance, side: int) -> Geometry:
    return Geometry((one,), Grid((1, side, side), np.eye(4)), "")


def encoded(syntax: str, side: int = 64) -> bytes:
    """A black slice: the smallest codestream of its size."""
    dataset = make(SeriesSpec(), np.zeros((1, side, side), np.uint16))[0]
    dataset.compress(syntax)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def jpeg_2000(side: int, components: int = 1) -> bytes:
    """A few hundred bytes that state any size."""
    stream = bytearray(encoded(JPEG2000Lossless))
    struct.pack_into(">2I", stream, 8, side, side)
    struct.pack_into(">2I", stream, 24, side, side)
    struct.pack_into(">H", stream, 40, components)
    return bytes(stream)


def refused(one: Instance, side: int, words: str) -> None:
    started = perf_counter()
    with grown() as peak, pytest.raises(PixelError, match=words):
        load(geometry(one, side))
    assert perf_counter() - started < 2.0
    assert peak() < 64 * 2**20


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2K])
@pytest.mark.parametrize("side", [LARGE, HUGE])
def test_a_codestream_as_large_as_its_header_says_is_held_to_the_limit(
    syntax: str, side: int, tmp_path: Path
) -> None:
    one = instance(tmp_path, syntax, jpeg_2000(side), side)
    refused(one, side, f"may take {side * side * 2 * 8} bytes of memory, the limit is 2147483648")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2K])
def test_a_codestream_larger_than_its_header_is_not_decoded(syntax: str, tmp_path: Path) -> None:
    one = instance(tmp_path, syntax, jpeg_2000(LARGE), 16)
    refused(one, 16, "the codestream is 12000 x 12000")


def test_a_file_around_the_codestream_hides_nothing(tmp_path: Path) -> None:
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + b"\0\0\0\0jp2c"
    one = instance(tmp_path, JPEG2000Lossless, boxes + jpeg_2000(LARGE), 16)
    refused(one, 16, "the codestream is 12000 x 12000")


def test_a_thousand_components_are_not_decoded(tmp_path: Path) -> None:
    one = instance(tmp_path, JPEG2000Lossless, jpeg_2000(64, components=1000), 64)
    refused(one, 64, "the codestream has 1000 components")


@pytest.mark.parametrize("side", [LARGE, 65_535])
def test_run_lengths_cannot_make_more_than_they_can(side: int, tmp_path: Path) -> None:
    header = struct.pack("<16I", 2, 64, 96, *[0] * 13)
    codestream = header + b"\x81\0" * 32
    one = instance(tmp_path, RLELossless, codestream, side)
    refused(one, side, "the object is incomplete|the limit is")


def test_run_lengths_of_64_megabytes_are_held_to_the_limit(tmp_path: Path) -> None:
    header = struct.pack("<16I", 2, 64, 64 + 2**25, *[0] * 13)
    one = instance(tmp_path, RLELossless, header + b"\x81\0" * 2**25, 30_000)
    refused(one, 30_000, "the limit is 2147483648")


def test_run_lengths_that_end_early_or_lead_outside_are_refused(tmp_path: Path) -> None:
    for number, segments in enumerate(([2, 64, 2**31], [2, 2**32 - 1, 64], [15] + [0] * 15, [0])):
        header = struct.pack("<16I", *(segments + [0] * 16)[:16])
        one = instance(tmp_path / str(number), RLELossless, header + b"\x81\0" * 100, 64)
        refused(one, 64, "could not be decoded")


def test_jpeg_ls_that_states_another_size_is_not_decoded(tmp_path: Path) -> None:
    stream = bytearray(encoded(JPEGLSLossless))
    at = stream.index(b"\xff\xf7")
    struct.pack_into(">HH", stream, at + 5, 65_535, 65_535)
    refused(instance(tmp_path, JPEGLSLossless, bytes(stream), 16), 16, "65535 x 65535")


def test_native_pixels_beyond_the_limit_are_refused_before_the_file_is_read(
    tmp_path: Path,
) -> None:
    dataset = make(SeriesSpec(), np.zeros((1, 8, 8), np.uint16))[0]
    (one,) = received(save([dataset], tmp_path))
    facts = {**one.facts, "Rows": 65_535.0, "Columns": 65_535.0, "BitsAllocated": 16.0}
    with one.path.open("r+b") as stream:
        stream.truncate(9 * 2**30)  # a sparse file: no disk is used
    large = replace(one, facts=facts)
    assert large.transfer_syntax_uid == ExplicitVRLittleEndian
    refused(large, 65_535, "the limit is 2147483648")


def test_a_slice_of_a_usual_size_still_passes(tmp_path: Path) -> None:
    for number, syntax in enumerate((JPEG2000Lossless, JPEGLSLossless, RLELossless)):
        one = instance(tmp_path / str(number), syntax, encoded(syntax, 1024), 1024)
        assert not load(geometry(one, 1024)).voxels.any()
