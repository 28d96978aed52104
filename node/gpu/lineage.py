"""Which network a variant was made of: a mark in the file itself, read without any library.

A package's ``model.fp16.onnx`` is made of its ``model.onnx``. When that is replaced and the variant
is not, the node would compute a network that nobody asked for. The mark is an entry of ONNX's own
metadata, so it travels with the file; only the outermost fields of the file are looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

ORIGIN = "ai_node.made_of"
"""The entry: the digest (``node.gpu.recipe.digest``) of the network that it was made of."""

_METADATA = 14
"""ONNX's field of entries in a model; each has its key in field 1 and its value in field 2."""
_LONGEST = 65_536
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

_View = bytes | mmap.mmap


def origin(model: Path) -> str:
    """The digest that a variant is marked with; empty where it has no mark, or is no network.

    Raises OSError when it cannot be read.
    """
    if not model.stat().st_size:
        return ""
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        marks = [value for key, value in _entries(content) if key == ORIGIN.encode()]
    return marks[0].decode("ascii", errors="replace") if marks else ""


def _entries(content: mmap.mmap) -> Iterator[tuple[bytes, bytes]]:
    for number, begin, end in _fields(content, 0, len(content)):
        if number == _METADATA and end - begin <= _LONGEST:
            entry = content[begin:end]
            parts = {n: entry[a:b] for n, a, b in _fields(entry, 0, len(entry))}
            yield parts.get(1, b""), parts.get(2, b"")


def _fields(content: _View, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of every field with the place of its bytes; ends where it is no protobuf."""
    while at < end:
        key, at = _varint(content, at, end)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, at = _varint(content, at, end)
        elif kind == _VARINT:
            _, after = _varint(content, at, end)
            length = after - at
        else:
            length = {_EIGHT: 8, _FOUR: 4}.get(kind, -1)
        if number < 1 or length < 0 or at + length > end:
            return
        yield number, at, at + length
        at += length


def _varint(content: _View, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where the next byte is."""
    value = shift = 0
    while at < end and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    return 0, end
