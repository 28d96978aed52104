"""Looks at the first elements of a data set before it is acknowledged, without a DICOM library.

What cannot become an instance is better refused while its sender listens than acknowledged and
put aside. The look is bounded: it steps from element to element, reads four UIDs, and copies
nothing else, so that no data set can keep the receiver busy. What it cannot tell within its bound
it lets pass, for the indexer reads the whole header in a process that may be killed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from node.dicom.statuses import CANNOT_UNDERSTAND

NOT_THE_CLASS = 0xA900
"""Failure: the data set does not match its SOP class (PS3.4 table B.2-1)."""

_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_NAMES = {
    _SOP_CLASS: "SOP Class UID",
    _SOP_INSTANCE: "SOP Instance UID",
    _STUDY: "Study Instance UID",
    _SERIES: "Series Instance UID",
}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of two bytes (PS3.5 7.1.2); the others have four."""
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

_OF_UIDS = (b"UI", b"UN")

_MOST_ELEMENTS = 256
"""A CT or MR header has 60 to 120 elements before its Series Instance UID."""
_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """The DIMSE status to answer, and why, in words that fit into Error Comment (0000,0902)."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Syntax:
    explicit: bool
    head: struct.Struct
    long: struct.Struct


class _Broken(Exception):
    """The bytes are no data set in their transfer syntax."""


class _Odd(Exception):
    """An element without a value representation where one must stand."""


class _Lost(Exception):
    """Within its bound the look cannot tell what follows."""


def scan(
    dataset: memoryview, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str
) -> Refusal | None:
    """Why a data set cannot be accepted as what its C-STORE request says; None: it may be.

    ``dataset`` is the whole data set in its transfer syntax; the other UIDs are those of the
    presentation context and of the command. Raises nothing, whatever the bytes are.
    """
    if transfer_syntax_uid in _DEFLATED:
        return Refusal(CANNOT_UNDERSTAND, "deflated data sets are not read")
    if not dataset:
        return Refusal(CANNOT_UNDERSTAND, "data set is empty")
    wanted = {_SOP_CLASS: sop_class_uid.encode(), _SOP_INSTANCE: sop_instance_uid.encode()}
    try:
        return _judge(dataset, _syntax(transfer_syntax_uid), wanted)
    except _Lost:
        return None
    except _Broken as error:
        return Refusal(CANNOT_UNDERSTAND, str(error))
    except struct.error:
        return Refusal(CANNOT_UNDERSTAND, "data set ends within an element")


def _judge(view: memoryview, syntax: _Syntax, wanted: dict[int, bytes]) -> Refusal | None:
    missing, first = dict(_NAMES), _SOP_CLASS
    try:
        for tag, begin, end in _elements(view, syntax):
            refusal = _late(tag, missing) if tag > first else None
            if refusal is None and tag in _NAMES:
                missing.pop(tag, None)
                first = next(iter(missing), _UNDEFINED)
                refusal = _wrong(tag, bytes(view[begin : min(end, begin + 80)]), wanted)
            if refusal or tag > _SERIES:
                return refusal
    except _Odd:
        if _SOP_INSTANCE in missing:
            raise _Broken("an element has no value representation") from None
        # Old devices write odd representations in private elements, and pydicom reads them.
        return None
    return _late(_UNDEFINED, missing)


def _late(tag: int, missing: dict[int, str]) -> Refusal | None:
    """A UID that is not there, though its place has been passed (PS3.5 7.1: ascending tags)."""
    for expected, name in missing.items():
        if expected < tag:
            return Refusal(NOT_THE_CLASS, f"data set has no {name}")
    return None


def _wrong(tag: int, raw: bytes, wanted: dict[int, bytes]) -> Refusal | None:
    value = raw.strip(b"\0 ")
    name = _NAMES[tag]
    if not value:
        return Refusal(NOT_THE_CLASS, f"data set has an empty {name}")
    if len(value) > _LONGEST_UID or not _UID.fullmatch(value):
        return Refusal(NOT_THE_CLASS, f"{name} in the data set is not a UID")
    if wanted.get(tag, value) != value:
        return Refusal(NOT_THE_CLASS, f"{name} in data set and command differ")
    return None


def _syntax(transfer_syntax_uid: str) -> _Syntax:
    """Every syntax but two is Explicit VR Little Endian outside the pixels (PS3.5 annex A)."""
    return _SYNTAXES.get(transfer_syntax_uid, _EXPLICIT_LITTLE)


def _of(order: str, explicit: bool) -> _Syntax:
    return _Syntax(explicit, struct.Struct(f"{order}HH2sH"), struct.Struct(f"{order}I"))


_EXPLICIT_LITTLE = _of("<", explicit=True)
_SYNTAXES = {_IMPLICIT: _of("<", explicit=False), _BIG_ENDIAN: _of(">", explicit=True)}


def _elements(view: memoryview, syntax: _Syntax) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of each value of the outermost data set, sequences stepped over."""
    at, depth = 0, 0
    for _ in range(_MOST_ELEMENTS):
        if at >= len(view):
            return
        tag, length, begin = _header(view, at, syntax)
        if depth == 0 and tag >= _ITEM:
            raise _Broken("an item stands outside a sequence")
        if length == _UNDEFINED:
            depth, at = depth + 1, begin
            continue
        at = begin + length
        if at > len(view):
            raise _Broken("an element is longer than the data set")
        if depth == 0:
            yield tag, begin, at
        elif tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
    raise _Lost


def _header(view: memoryview, at: int, syntax: _Syntax) -> tuple[int, int, int]:
    """Tag, length, and where the value begins."""
    # Four fields at once, whether they are there or not: this is most of what a look costs.
    group, number, vr, length = syntax.head.unpack_from(view, at)
    tag = group << 16 | number
    if group < 0x0008:
        raise _Broken(f"group {group:04X} is no part of a data set")
    if group == 0xFFFE or not syntax.explicit:
        return tag, syntax.long.unpack_from(view, at + 4)[0], at + 8
    if tag in _NAMES and vr not in _OF_UIDS:
        raise _Broken(f"{_NAMES[tag]} is not written as a UID")
    if vr in _SHORT:
        return tag, length, at + 8
    if vr in _LONG:
        return tag, syntax.long.unpack_from(view, at + 8)[0], at + 12
    raise _Odd
