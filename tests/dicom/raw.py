"""Changes elements of a written file byte by byte, as no DICOM library would let us."""

from __future__ import annotations

import struct
from pathlib import Path

from pydicom.datadict import dictionary_VR, tag_for_keyword

LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OD", b"OF", b"OL"}


def set_raw(path: Path, keyword: str, raw: bytes | None, vr: str = "") -> None:
    """Put a value into an Explicit VR Little Endian file; None takes the element out."""
    content = path.read_bytes()
    begin = 144 + struct.unpack_from("<I", content, 140)[0]
    elements = _elements(content, begin)
    tag = tag_for_keyword(keyword) or 0
    elements.pop(tag, None)
    if raw is not None:
        elements[tag] = _element(tag, (vr or dictionary_VR(keyword)).encode(), raw)
    path.write_bytes(content[:begin] + b"".join(elements[tag] for tag in sorted(elements)))


def _elements(content: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + 8 <= len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        value = at + 8
        if vr in LONG:
            length, value = struct.unpack_from("<I", content, at + 8)[0], at + 12
        end = len(content) if length == 0xFFFFFFFF else value + length
        found[group << 16 | number] = content[at:end]
        at = end
    return found


def _element(tag: int, vr: bytes, raw: bytes) -> bytes:
    raw += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(raw) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in LONG:
        return head + struct.pack("<HI", 0, len(raw)) + raw
    return head + struct.pack("<H", len(raw)) + raw
