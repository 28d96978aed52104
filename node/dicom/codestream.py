"""Codestreams: what they say of themselves, and the quick way to decode them.

A few hundred bytes may state gigabytes, so the statement is read before any decoder is. Where
imagecodecs is installed (the extra ``codecs``), its decoders leave the interpreter's lock to
others, so that several slices decode at once. It is asked only where the standard leaves a decoder
no choice of values (lossless, and JPEG-LS near-lossless), and what it makes is taken only when it
is exactly of the stated kind; in all else the ordinary decoders have the word.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from node.dicom.layout import Layout

_SOC_SIZ = b"\xff\x4f\xff\x51"
"""How a JPEG 2000 codestream begins (ISO 15444-1 A.4.1, A.5.1)."""
_RLE_HEADER = 64
"""Bytes of the RLE header: the number of segments and fifteen offsets (PS3.5 G.5)."""
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL)

Codecs = Mapping[str, Callable[..., Any]]
"""Decoders of imagecodecs by their names; empty where it is not installed."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Size and sample format as JPEG, JPEG-LS or JPEG 2000 state them; ``precision`` in bits."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool


def refuse_other_size(codestream: bytes, layout: Layout) -> None:
    """Raise ValueError when the codestream states another size than the header."""
    stated = _stated(codestream)
    if stated is None:
        return
    if (stated.rows, stated.columns) != (layout.rows, layout.columns):
        raise ValueError(
            f"the codestream is {stated.rows} x {stated.columns}, the header says {layout.rows} x "
            f"{layout.columns}"
        )
    if stated.components != 1:
        raise ValueError(f"the codestream has {stated.components} components, the header says 1")


@cache
def codecs() -> Codecs:
    """imagecodecs' decoders that release the interpreter's lock, where it is installed."""
    names = ("jpegls_decode", "jpeg2k_decode", "htj2k_decode", "packbits_decode")
    try:
        import imagecodecs as package

        # Each is loaded when it is first looked up, and may lack its library then.
        if not all(getattr(package, name.split("_")[0].upper()).available for name in names):
            return {}
    except (ImportError, AttributeError):
        return {}
    return {name: getattr(package, name) for name in names}


def decoded_quickly(
    codestream: bytes, transfer_syntax_uid: str, layout: Layout, quick: Codecs
) -> NDArray[Any] | None:
    """Stored values (rows, columns), or None where the ordinary decoders must be asked.

    The codestream's size must have been compared with the layout's before.
    """
    if not quick:
        return None
    if transfer_syntax_uid == RLELossless:
        return _unpacked(codestream, layout, quick["packbits_decode"])
    stated = _stated(codestream)
    if stated is None or stated.precision != layout.stored:
        return None
    try:
        if transfer_syntax_uid in _JPEG_LS:
            values = quick["jpegls_decode"](codestream)
        elif transfer_syntax_uid in _HTJ2K and stated.signed == layout.signed:
            values = quick["htj2k_decode"](codestream)
        elif transfer_syntax_uid == JPEG2000Lossless and stated.signed == layout.signed:
            values = quick["jpeg2k_decode"](codestream, numthreads=1)
        else:
            return None
    except (RuntimeError, ValueError, MemoryError):
        return None  # the ordinary decoders say in words what is wrong, or know better
    return _as_laid_out(values, layout)


def _as_laid_out(values: NDArray[Any], layout: Layout) -> NDArray[Any] | None:
    if values.shape != (layout.rows, layout.columns) or values.itemsize != layout.dtype.itemsize:
        return None
    return values.view(layout.dtype) if values.dtype.kind in "iu" else None


def _unpacked(
    codestream: bytes, layout: Layout, packbits_decode: Callable[..., Any]
) -> NDArray[Any] | None:
    """RLE segments are the bytes of all pixels, the most significant first (PS3.5 G.2)."""
    count = layout.dtype.itemsize
    if len(codestream) < _RLE_HEADER:
        return None
    segments, *offsets = struct.unpack_from("<16I", codestream)
    bounds = [*offsets[:count], len(codestream)]
    if segments != count or bounds[0] < _RLE_HEADER or sorted(set(bounds)) != bounds:
        return None
    pixels = layout.rows * layout.columns
    values = np.empty((layout.rows, layout.columns), layout.dtype.newbyteorder("<"))
    places = values.reshape(-1).view(np.uint8).reshape(pixels, count)
    content, segment = memoryview(codestream), np.empty(pixels, np.uint8)
    for number in range(count):
        packed = content[bounds[number] : bounds[number + 1]]
        try:
            if len(packbits_decode(packed, out=segment)) != pixels:
                return None
        except (RuntimeError, ValueError):
            return None
        places[:, count - 1 - number] = segment
    return values


def _stated(codestream: bytes) -> Statement | None:
    """What a JPEG, JPEG-LS or JPEG 2000 codestream says of itself; None of any other."""
    # A JP2 file around the codestream is against the standard (PS3.5 A.4.4), but decoders open it.
    begin = codestream.find(_SOC_SIZ) if codestream[4:8] == b"jP  " else 0
    if begin >= 0 and codestream.startswith(_SOC_SIZ, begin):
        right, bottom, left, top = struct.unpack_from(">4I", codestream, begin + 8)
        components, depth = struct.unpack_from(">HB", codestream, begin + 40)
        return Statement(bottom - top, right - left, components, (depth & 0x7F) + 1, depth >= 0x80)
    if codestream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker, length = codestream[at + 1], struct.unpack_from(">H", codestream, at + 2)[0]
        if _is_frame_header(marker):
            precision, rows, columns, components = struct.unpack_from(">BHHB", codestream, at + 4)
            return Statement(rows, columns, components, precision, signed=False)
        at += 1 if marker == 0xFF else 2 + length  # any number of fill bytes may precede
    return None


def _is_frame_header(marker: int) -> bool:
    """SOF0 to SOF15 without DHT, JPG and DAC (ISO 10918-1 B.1.1.3), or SOF55 of JPEG-LS."""
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
