"""Data sets as bytes, taken apart and put together as no library would."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from node.dicom.scp import Received
from tests.ward import received

LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Element:
    """One element of an Explicit VR Little Endian data set: its tag, and all of its bytes."""

    tag: int
    content: bytes


def element(tag: int, vr: str, value: bytes, length: int | None = None) -> Element:
    """An element whose length may be a lie."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    stated = len(value) if length is None else length
    if vr.encode() in LONG:
        return Element(tag, head + struct.pack("<HI", 0, stated) + value)
    return Element(tag, head + struct.pack("<H", stated & 0xFFFF) + value)


def elements(content: bytes) -> Iterator[Element]:
    """The outermost elements of a data set whose sequences have lengths."""
    at = 0
    while at + 8 <= len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        value = at + 8
        if vr in LONG:
            length, value = struct.unpack_from("<I", content, at + 8)[0], at + 12
        end = len(content) if length == UNDEFINED else value + length
        yield Element(group << 16 | number, content[at:end])
        at = end


def joined(parts: list[Element]) -> bytes:
    """The elements in the order in which they are."""
    return b"".join(part.content for part in parts)


def with_element(content: bytes, made: Element) -> bytes:
    """A data set in which an element stands at its place, instead of the one with its tag."""
    others = [part for part in elements(content) if part.tag != made.tag]
    return joined(sorted([*others, made], key=lambda part: part.tag))


def arrived(dataset: Dataset, content: bytes | None = None) -> Received:
    """What the receiver hands over when a request for this data set carries these bytes."""
    whole = received(dataset)
    return whole if content is None else replace(whole, dataset=content)
