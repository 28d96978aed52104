"""Reads the pixels of an arranged series into one volume.

The header facts have been judged before; what is checked here is that the bytes are what the
header says, before memory is spent on them. Uncompressed slices go from the file into one buffer
and from there into the volume, so that loading costs little more memory than the volume itself.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from node.dicom.geometry import Geometry
from node.dicom.headers import optional, reading, where, whole
from node.domain.errors import PixelError
from node.domain.study import Instance
from node.domain.volume import Volume

_log = structlog.get_logger()

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_PIXEL_DATA = 0x7FE00010
_MODALITY_LUT = 0x00283000
_UNDEFINED = 0xFFFFFFFF
_FLATTEST, _STEEPEST = 1e-6, 1e6
"""Rescale Slope that a modality can mean; beyond it is a header gone wrong."""
_RESCALED = ("CT", "PT")
"""Modalities whose stored values mean nothing without a rescale (Type 1 in their IODs)."""
_INT16 = np.iinfo(np.int16)

# The faster plugin where there are two, as measured; JPEG has one that may be shipped.
_PLUGINS = (
    (JPEGLSTransferSyntaxes, "pyjpegls"),
    (JPEG2000TransferSyntaxes, "pylibjpeg"),
    (JPEGTransferSyntaxes, "gdcm"),
    ([RLELossless], "pylibjpeg"),
)
# What pydicom and its plugins raise on a codestream that is none.
_UNDECODABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def load(geometry: Geometry) -> Volume:
    """The voxels of the series as one volume, in modality units (PS3.3 C.11.1: rescaled).

    int16 when every slope and intercept is whole and all values fit, else float32. MONOCHROME1 is
    inverted, so that larger always means brighter. Raises PixelError when a slice has no pixel
    data, too little of it, or cannot be decoded; HeaderError when a number of the header that the
    decoding needs is missing or out of range; SpoolError when a file cannot be read.
    """
    layouts = [_layout(instance) for instance in geometry.instances]
    _refuse_partly_rescaled(geometry.instances)
    for instance, layout in zip(geometry.instances, layouts, strict=True):
        _refuse_small_file(instance, layout)
    slices = (
        _rescaled(_stored(instance, layout), layout)
        for instance, layout in zip(geometry.instances, layouts, strict=True)
    )
    # One slice must decode before memory is taken for all of them.
    first = next(slices)
    integral = all(layout.integral for layout in layouts)
    voxels: NDArray[Any] = np.empty(geometry.grid.shape, np.int16 if integral else np.float32)
    for k, values in enumerate(itertools.chain((first,), slices)):
        if voxels.dtype == np.int16 and not _fits(values):
            voxels = voxels.astype(np.float32)
        voxels[k] = values
    if any(layout.inverted for layout in layouts):
        _log.info("monochrome1 inverted", slices=sum(layout.inverted for layout in layouts))
    return Volume(
        voxels=voxels,
        affine=geometry.grid.affine,
        frame_of_reference_uid=geometry.frame_of_reference_uid,
        sources=geometry.instances,
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one slice's pixels are stored (PS3.3 C.7.6.3) and rescaled (C.11.1)."""

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
        return self.slope.is_integer() and self.intercept.is_integer()

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")


def _layout(instance: Instance) -> _Layout:
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
    return _Layout(
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


def _refuse_small_file(instance: Instance, layout: _Layout) -> None:
    with reading(instance.path):
        size = os.stat(instance.path).st_size
    syntax = instance.transfer_syntax_uid
    # PackBits makes at most 128 bytes of two (PS3.5 G.3.2); the other codecs state their size.
    most = size * 64 if syntax == RLELossless else size
    if (syntax in _NATIVE or syntax == RLELossless) and most < layout.length:
        raise PixelError(
            f"{where(instance)} has {size} bytes, but {layout.rows} x {layout.columns} pixels of "
            f"{layout.allocated} bits need {layout.length}: the object is incomplete"
        )


def _fits(values: NDArray[Any]) -> bool:
    return bool(values.min() >= _INT16.min and values.max() <= _INT16.max)


def _rescaled(stored: NDArray[Any], layout: _Layout) -> NDArray[Any]:
    slope, intercept = layout.slope, layout.intercept
    if (slope, intercept) == (1.0, 0.0):
        return stored
    values: NDArray[Any]
    if layout.integral:
        small = layout.allocated <= 16 and max(slope, abs(intercept)) < 2**14
        values = np.multiply(stored, int(slope), dtype=np.int32 if small else np.int64)
        values += int(intercept)
    else:
        values = np.multiply(stored, slope, dtype=np.float64)
        values += intercept
    return values


def _stored(instance: Instance, layout: _Layout) -> NDArray[Any]:
    """The stored values (rows, columns): decoded, sign-extended, unused high bits cleared."""
    with reading(instance.path), instance.path.open("rb") as stream:
        if instance.transfer_syntax_uid in _NATIVE:
            values = _native(stream, instance, layout)
        else:
            values = _decoded(stream, instance, layout)
    unused = layout.allocated - layout.stored
    if unused and layout.signed:
        values = (values << unused) >> unused
    elif unused:
        values &= (1 << layout.stored) - 1
    if not layout.inverted:
        return values
    # -1 - v and (2^n - 1) - v are both the bitwise complement within the stored bits.
    return ~values if layout.signed else values ^ ((1 << layout.stored) - 1)


def _native(stream: BufferedReader, instance: Instance, layout: _Layout) -> NDArray[Any]:
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


def _decoded(stream: BufferedReader, instance: Instance, layout: _Layout) -> NDArray[Any]:
    decoder = _decoder(instance)
    length, _ = _seek_pixels(stream, instance)
    if length != _UNDEFINED:
        raise PixelError(f"{where(instance)} says {decoder.UID.name}, but is not encapsulated")
    encapsulated = stream.read()
    try:
        _refuse_other_size(next(generate_frames(encapsulated, number_of_frames=1)), layout)
    except (*_UNDECODABLE, StopIteration) as error:
        raise _undecodable(decoder, instance, [str(error)]) from error
    values = _tried(decoder, encapsulated, instance, layout)
    if values.shape != (layout.rows, layout.columns):
        raise PixelError(
            f"{where(instance)} decodes to {values.shape}; wanted ({layout.rows}, {layout.columns})"
        )
    return values.astype(layout.dtype, copy=False)


def _tried(
    decoder: Decoder, encapsulated: bytes, instance: Instance, layout: _Layout
) -> NDArray[Any]:
    """What the first plugin makes that can: each takes codestreams that another refuses."""
    preferred = next((name for known, name in _PLUGINS if decoder.UID in known), "")
    said = []
    for plugin in sorted(decoder.available_plugins, key=lambda name: name != preferred):
        try:
            values, _ = decoder.as_array(
                encapsulated, raw=True, decoding_plugin=plugin, **_options(layout)
            )
        except _UNDECODABLE as error:
            said.append(str(error).splitlines()[-1])
        else:
            return values
    raise _undecodable(decoder, instance, said)


def _undecodable(decoder: Decoder, instance: Instance, said: list[str]) -> PixelError:
    return PixelError(
        f"{decoder.UID.name} could not be decoded in {where(instance)}: "
        f"{'; '.join(' '.join(one.split()) for one in said)[:300]}; have the peer send it "
        "uncompressed"
    )


def _decoder(instance: Instance) -> Decoder:
    uid = UID(instance.transfer_syntax_uid)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError as error:
        raise PixelError(f"no decoder is known for transfer syntax {uid.name}") from error
    if not decoder.is_available:
        raise PixelError(
            f"no decoder is installed for {uid.name}; it needs "
            f"{' or '.join(decoder.missing_dependencies)}"
        )
    return decoder


def _options(layout: _Layout) -> dict[str, Any]:
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
        "allow_excess_frames": False,
    }


def _refuse_other_size(codestream: bytes, layout: _Layout) -> None:
    """A few hundred bytes of codestream may state gigabytes: compare before they are made."""
    size = _codestream_size(codestream)
    if size is not None and size != (layout.rows, layout.columns):
        raise ValueError(
            f"the codestream is {size[0]} x {size[1]}, the header says {layout.rows} x "
            f"{layout.columns}"
        )


def _codestream_size(codestream: bytes) -> tuple[int, int] | None:
    """Rows and columns as JPEG, JPEG-LS or JPEG 2000 state them; None for other codecs."""
    if codestream[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
        return bottom - top, right - left
    if codestream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(codestream) and codestream[at] == 0xFF:
        marker, length = codestream[at + 1], struct.unpack_from(">H", codestream, at + 2)[0]
        if _is_frame_header(marker):
            rows, columns = struct.unpack_from(">HH", codestream, at + 5)
            return rows, columns
        at += 1 if marker == 0xFF else 2 + length  # any number of fill bytes may precede
    return None


def _is_frame_header(marker: int) -> bool:
    """SOF0 to SOF15 without DHT, JPG and DAC (ISO 10918-1 B.1.1.3), or SOF55 of JPEG-LS."""
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
