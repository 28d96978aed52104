"""Reads the pixels of an arranged series into one volume.

The header facts have been judged before; what is checked here is that the bytes are what the
header says, before memory is spent on them. Where the place of the pixels in the file is known
and they are whole numbers of 16 bits, they are read into the volume itself and rescaled there;
every other slice passes through a buffer of its own, and compressed ones through several at once.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Generator
from contextlib import closing
from io import BufferedReader
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.dicom.decoding import decoded, decoder_of, in_order
from node.dicom.geometry import Geometry
from node.dicom.headers import reading, where
from node.dicom.layout import NATIVE, Layout, layouts_of
from node.domain.errors import PixelError
from node.domain.study import Instance
from node.domain.volume import Volume

_log = structlog.get_logger()

_PIXEL_DATA = 0x7FE00010
_MODALITY_LUT = 0x00283000
_UNDEFINED = 0xFFFFFFFF
_INT16 = np.iinfo(np.int16)
_HEAD = 12
"""Bytes of an explicit element's tag, VR and length (PS3.5 7.1.2); an implicit one has 8."""


def load(geometry: Geometry) -> Volume:
    """The voxels of the series as one volume, in modality units (PS3.3 C.11.1: rescaled).

    int16 when every slope and intercept is whole and all values fit, else float32. MONOCHROME1 is
    inverted, so that larger always means brighter. Raises PixelError when a slice has no pixel
    data, too little of it, or cannot be decoded; HeaderError when a number of the header that the
    decoding needs is missing or out of range; SpoolError when a file cannot be read.
    """
    layouts = layouts_of(geometry.instances)
    voxels = _in_place(geometry, layouts)
    if voxels is None:
        voxels = _slice_by_slice(geometry, layouts)
    if any(layout.inverted for layout in layouts):
        _log.info("monochrome1 inverted", slices=sum(layout.inverted for layout in layouts))
    return Volume(
        voxels=voxels,
        affine=geometry.grid.affine,
        frame_of_reference_uid=geometry.frame_of_reference_uid,
        sources=geometry.instances,
    )


def _in_place(geometry: Geometry, layouts: list[Layout]) -> NDArray[np.int16] | None:
    """The int16 volume, read where it will lie; None where a slice wants the longer way.

    The longer way also has the words for what is wrong with a slice, so none are said here.
    """
    shape = geometry.grid.shape
    pairs = list(zip(geometry.instances, layouts, strict=True))
    if not all(_lies_ready(*pair) and pair[1].length == 2 * shape[1] * shape[2] for pair in pairs):
        return None
    voxels = np.empty(shape, np.int16)
    for values, (instance, layout) in zip(voxels, pairs, strict=True):
        if not _read_at_offset(values, instance):
            return None
        if _rescaled_in_place(_interpreted(values.view(layout.dtype), layout), layout) is None:
            return None
    return voxels


def _lies_ready(instance: Instance, layout: Layout) -> bool:
    known = instance.pixel_offset is not None and instance.pixel_offset >= _HEAD
    little = instance.transfer_syntax_uid in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
    whole = layout.allocated == 16 and layout.integral
    return known and little and whole and sys.byteorder == "little"


def _read_at_offset(values: NDArray[np.int16], instance: Instance) -> bool:
    """Whether Pixel Data of this very length stood at the recorded place and was read whole.

    The element's own head is read with it, so that a place that is no longer right is noticed.
    """
    offset = instance.pixel_offset or 0
    head = bytearray(_HEAD)
    with reading(instance.path):
        file = os.open(instance.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = os.preadv(file, [head, values.reshape(-1).view(np.uint8).data], offset - _HEAD)
        finally:
            os.close(file)
    return count == _HEAD + values.nbytes and _announces(bytes(head), instance, values.nbytes)


def _announces(head: bytes, instance: Instance, length: int) -> bool:
    if instance.transfer_syntax_uid == ImplicitVRLittleEndian:
        return head[4:] == struct.pack("<HHI", 0x7FE0, 0x0010, length)
    tag, vr, stated = head[:4], head[4:6], head[8:]
    return (
        tag == struct.pack("<HH", 0x7FE0, 0x0010)
        and vr in (b"OB", b"OW", b"UN")
        and stated == struct.pack("<I", length)
    )


def _slice_by_slice(geometry: Geometry, layouts: list[Layout]) -> NDArray[Any]:
    integral = all(layout.integral for layout in layouts)
    voxels: NDArray[Any] | None = None
    with closing(_slices(geometry, layouts)) as slices:
        for k, values in enumerate(slices):
            if voxels is None:  # one slice must decode before memory is taken for all of them
                voxels = np.empty(geometry.grid.shape, np.int16 if integral else np.float32)
            if voxels.dtype == np.int16 and not _fits(values):
                voxels = voxels.astype(np.float32)
            voxels[k] = values
    if voxels is None:
        raise PixelError("the series has no slices")
    return voxels


def _slices(geometry: Geometry, layouts: list[Layout]) -> Generator[NDArray[Any], None, None]:
    """The rescaled values of each slice in their order."""
    if all(instance.transfer_syntax_uid in NATIVE for instance in geometry.instances):
        # A second thread gains nothing where nothing is decoded (measured).
        for instance, layout in zip(geometry.instances, layouts, strict=True):
            yield _values(instance, layout)
    else:
        yield from in_order(_values, geometry.instances, layouts)


def _fits(values: NDArray[Any]) -> bool:
    if values.dtype == np.int16:
        return True
    return bool(values.min() >= _INT16.min and values.max() <= _INT16.max)


def _values(instance: Instance, layout: Layout) -> NDArray[Any]:
    """A slice (rows, columns) in modality units."""
    return _rescaled(_interpreted(_stored(instance, layout), layout), layout)


def _rescaled(stored: NDArray[Any], layout: Layout) -> NDArray[Any]:
    slope, intercept = layout.slope, layout.intercept
    if layout.integral and stored.dtype.itemsize == 2 and stored.dtype.isnative:
        small = _rescaled_in_place(stored, layout)
        if small is not None:
            return small
    if (slope, intercept) == (1.0, 0.0):
        return stored
    values: NDArray[Any]
    if layout.integral:
        narrow = layout.allocated <= 16 and max(slope, abs(intercept)) < 2**14
        values = np.multiply(stored, int(slope), dtype=np.int32 if narrow else np.int64)
        values += int(intercept)
    else:
        values = np.multiply(stored, slope, dtype=np.float64)
        values += intercept
    return values


def _rescaled_in_place(stored: NDArray[Any], layout: Layout) -> NDArray[np.int16] | None:
    """The 16 bit values rescaled where they lie, as int16; None, and unchanged, if they overflow.

    The slope is positive, so the extremes tell whether all fit. If they do, arithmetic modulo
    2^16 is exact, whatever its intermediate results.
    """
    slope, intercept = int(layout.slope), int(layout.intercept)
    low, high = (int(one) * slope + intercept for one in (stored.min(), stored.max()))
    if low < _INT16.min or high > _INT16.max:
        return None
    bits = stored.view(np.uint16)
    if slope != 1:
        bits *= np.uint16(slope % 2**16)
    if intercept != 0:
        bits += np.uint16(intercept % 2**16)
    return bits.view(np.int16)


def _interpreted(values: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """The same array: sign-extended, unused high bits cleared, MONOCHROME1 inverted."""
    unused = layout.allocated - layout.stored
    most = (1 << layout.stored) - 1
    if unused and layout.signed:
        values <<= unused
        values >>= unused
    elif unused:
        values &= most
    if layout.inverted and layout.signed:
        # -1 - v and (2^n - 1) - v are both the bitwise complement within the stored bits.
        np.invert(values, out=values)
    elif layout.inverted:
        values ^= most
    return values


def _stored(instance: Instance, layout: Layout) -> NDArray[Any]:
    """The stored values (rows, columns) as they were encoded, unused high bits and all."""
    with reading(instance.path), instance.path.open("rb") as stream:
        if instance.transfer_syntax_uid in NATIVE:
            return _native(stream, instance, layout)
        return decoded(_encapsulated(stream, instance), instance, layout)


def _encapsulated(stream: BufferedReader, instance: Instance) -> bytes:
    decoder = decoder_of(instance)
    if instance.pixel_offset is not None and instance.pixel_offset >= _HEAD:
        stream.seek(instance.pixel_offset - _HEAD)
        if _announces(stream.read(_HEAD), instance, _UNDEFINED):
            return stream.read()
        stream.seek(0)
    length, _ = _seek_pixels(stream, instance)
    if length != _UNDEFINED:
        raise PixelError(f"{where(instance)} says {decoder.UID.name}, but is not encapsulated")
    return stream.read()


def _native(stream: BufferedReader, instance: Instance, layout: Layout) -> NDArray[Any]:
    length, vr = _seek_pixels(stream, instance)
    if length not in (layout.length, layout.length + layout.length % 2):
        raise PixelError(
            f"{where(instance)} holds {length} bytes of pixel data, but {layout.rows} x "
            f"{layout.columns} pixels of {layout.allocated} bits are {layout.length}"
        )
    big = instance.transfer_syntax_uid == ExplicitVRBigEndian
    if big and vr == b"OW" and layout.allocated == 8:
        raise PixelError(f"{where(instance)} has 8 bit pixels in big endian words: not supported")
    buffer = np.empty((layout.rows, layout.columns), layout.dtype.newbyteorder(">" if big else "<"))
    if stream.readinto(buffer.view(np.uint8).data) != layout.length:
        raise PixelError(f"{where(instance)} ends within its pixel data: it is incomplete")
    return buffer


def _seek_pixels(stream: BufferedReader, instance: Instance) -> tuple[int, bytes]:
    """Put the stream on the value of Pixel Data; its length, and its VR where one is written."""
    tags = [_PIXEL_DATA, _MODALITY_LUT]
    if _MODALITY_LUT in dcmread(stream, stop_before_pixels=True, specific_tags=tags):
        raise PixelError(f"{where(instance)} has a Modality LUT Sequence: not supported")
    head = stream.read(8)
    big = instance.transfer_syntax_uid == ExplicitVRBigEndian
    order = ">" if big else "<"
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise PixelError(f"{where(instance)} has no pixel data")
    if head[4:6] not in (b"OB", b"OW", b"UN"):  # as a length these would be odd: implicit VR
        return struct.unpack(f"{order}I", head[4:])[0], b""
    return struct.unpack(f"{order}I", stream.read(4))[0], head[4:6]
