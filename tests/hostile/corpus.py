"""Data sets that are not what they claim to be, each made from a number and a seed.

Valid objects are taken and spoilt: in their bits, their lengths, their order, their values. The
same seed and number always make the same bytes, so a failure is told by two numbers.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from node.testing.series import SeriesSpec, make
from tests.hostile.raw import UNDEFINED, Element, element, elements, joined, with_element

_INSTANCE, _STUDY = "1.2.826.0.1.0000000000", "1.2.826.0.2.0000000000"
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_SYNTAXES = (*_PLAIN, RLELossless, JPEG2000Lossless)
_LENGTHS = (0, 1, 2, 3, 255, 65_534, 65_535, 0x7FFFFFF0, 0x7FFFFFFF, 0xFFFFFFFE, UNDEFINED)
_TEXTS = (
    *(b"", b"nan", b"inf", b"-inf", b"1e400", b"-1e-400", b"1e5\\nan", b"0x10", b"1,5"),
    *(b"../../etc/passwd", b"%s%n%x", b"1.2.3\0.4", b"1..2", b"\0" * 64, b" " * 64, b"\\" * 300),
    *(b"\x1b$B\x1b$)C\xff\xff", b"\xff" * 17, b"A" * 3000, b"^" * 200, b"=" * 200),
    b"<script>alert(1)</script>",
    b"'; DROP TABLE instances; --",
)
_NUMBERS = (
    *(0x00200032, 0x00200037, 0x00280030, 0x00180050, 0x00180088, 0x00281052, 0x00281053),
    *(0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280008),
)
_UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052)
_PIXELS = 0x7FE00010


@dataclass(frozen=True)
class Hostile:
    """One request: what its command says, and the bytes that follow."""

    name: str
    syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    content: bytes


@dataclass(frozen=True)
class _Base:
    """A valid object in a transfer syntax."""

    sop_class_uid: str
    syntax: str
    content: bytes


Mutator = Callable[[bytes, random.Random], bytes]


def mutants(count: int, seed: int = 0) -> Iterator[Hostile]:
    """So many spoilt objects. Each has SOP Instance and Study Instance UIDs of its own."""
    for number in range(count):
        yield mutant(number, seed)


def mutant(number: int, seed: int = 0) -> Hostile:
    """One of them. Every mutator meets every base in turn."""
    dice = random.Random(f"{seed}:{number}")  # noqa: S311 - repeatable, not secret
    every = (*_BYTEWISE.items(), *_ELEMENTWISE.items())
    name, mutate = every[number % len(every)]
    known = bases()
    plain = [base for base in known if base.syntax not in _PLAIN[1:]]
    choice = plain if name in _ELEMENTWISE else known
    base = choice[number // len(every) % len(choice)]
    instance = f"{_INSTANCE[:-10]}{number:010d}"
    content = base.content.replace(_INSTANCE.encode(), instance.encode())
    content = content.replace(_STUDY.encode(), f"{_STUDY[:-10]}{number:010d}".encode())
    spoilt = mutate(content, dice)
    return Hostile(f"{number}: {name}", base.syntax, base.sop_class_uid, instance, spoilt)


@cache
def bases() -> tuple[_Base, ...]:
    """An MR and a CT image in five transfer syntaxes."""
    return tuple(
        _Base(str(dataset.SOPClassUID), syntax, encoded(dataset, syntax))
        for spec in (SeriesSpec(), SeriesSpec(modality="CT"))
        for syntax in _SYNTAXES
        for dataset in [_valid(spec, syntax)]
    )


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """A data set as it travels in a transfer syntax."""
    stream = DicomBytesIO()
    stream.is_little_endian = syntax != ExplicitVRBigEndian
    stream.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(stream, dataset)
    return stream.getvalue()


def _valid(spec: SeriesSpec, syntax: str) -> Dataset:
    (dataset,) = make(spec, np.arange(40 * 40, dtype=np.uint16).reshape(1, 40, 40))
    if syntax not in _PLAIN:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.SOPInstanceUID, dataset.StudyInstanceUID = _INSTANCE, _STUDY
    reference = Dataset()
    reference.ReferencedSOPClassUID = dataset.SOPClassUID
    reference.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedImageSequence = [reference, reference]
    block = dataset.private_block(0x0019, "TESTER", create=True)
    block.add_new(0x01, "LO", "private")
    return dataset


# Mutators of bytes in any syntax.


def _flip(content: bytes, dice: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(dice.randint(1, 16)):
        spoilt[dice.randrange(min(len(spoilt), 1200))] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


def _flip_anywhere(content: bytes, dice: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(dice.randint(1, 64)):
        spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
    return bytes(spoilt)


def _overwrite(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(1200)
    value = struct.pack("<I", dice.choice(_LENGTHS))[: dice.choice((1, 2, 4))]
    return content[:at] + value + content[at + len(value) :]


def _truncate(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(dice.choice((40, 400, len(content))))]


def _insert(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(1200)
    return content[:at] + dice.randbytes(dice.randint(1, 64)) + content[at:]


def _delete(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(1200)
    return content[:at] + content[at + dice.randint(1, 64) :]


def _repeat(content: bytes, dice: random.Random) -> bytes:
    at, length = dice.randrange(1000), dice.randint(1, 400)
    return content[: at + length] + content[at : at + length] * dice.randint(1, 20) + content[at:]


def _swap(content: bytes, dice: random.Random) -> bytes:
    first, second, third = sorted(dice.sample(range(1200), 3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def _another_syntax(content: bytes, dice: random.Random) -> bytes:
    """The bytes of another base: another syntax or another class than was announced."""
    return dice.choice([base.content for base in bases() if base.content != content])


def _noise(content: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice((1, 7, 8, 64, 1000, 20_000)))


def _half_noise(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(1200)] + dice.randbytes(2000)


_BYTEWISE: dict[str, Mutator] = {
    "bits flipped": _flip,
    "bytes changed": _flip_anywhere,
    "overwritten": _overwrite,
    "truncated": _truncate,
    "inserted": _insert,
    "deleted": _delete,
    "repeated": _repeat,
    "swapped": _swap,
    "another syntax": _another_syntax,
    "noise": _noise,
    "half noise": _half_noise,
}


# Mutators of elements, in Explicit VR Little Endian.


def _chosen(content: bytes, dice: random.Random) -> tuple[list[Element], int]:
    parts = list(elements(content))
    return parts, dice.randrange(len(parts))


def _wrong_length(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    head = bytearray(parts[at].content)
    if bytes(head[4:6]) in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        struct.pack_into("<I", head, 8, dice.choice(_LENGTHS))
    else:
        struct.pack_into("<H", head, 6, dice.choice(_LENGTHS) & 0xFFFF)
    parts[at] = Element(parts[at].tag, bytes(head))
    return joined(parts)


def _wrong_vr(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    vr = dice.choice((b"SQ", b"UN", b"OB", b"US", b"FD", b"PN", b"UI", b"??", b"\0\0", b"AT"))
    whole = parts[at].content
    parts[at] = Element(parts[at].tag, whole[:4] + vr + whole[6:])
    return joined(parts)


def _without(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    return joined(parts[:at] + parts[at + 1 :])


def _out_of_order(content: bytes, dice: random.Random) -> bytes:
    parts, _ = _chosen(content, dice)
    dice.shuffle(parts)
    return joined(parts)


def _twice(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    again = element(parts[at].tag, "LO", dice.choice(_TEXTS))
    return joined([*parts[: at + 1], again, *parts[at + 1 :]])


def _other_value(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    vr = parts[at].content[4:6].decode("ascii", "replace")
    return with_element(content, element(parts[at].tag, vr, dice.choice(_TEXTS)))


def _other_tag(content: bytes, dice: random.Random) -> bytes:
    parts, at = _chosen(content, dice)
    whole = parts[at].content
    parts[at] = Element(parts[at].tag, dice.randbytes(4) + whole[4:])
    return joined(parts)


def _other_uid(content: bytes, dice: random.Random) -> bytes:
    return with_element(content, element(dice.choice(_UIDS), "UI", dice.choice(_TEXTS)))


def _other_number(content: bytes, dice: random.Random) -> bytes:
    vr = dice.choice(("DS", "IS", "US", "FD", "LO"))
    return with_element(content, element(dice.choice(_NUMBERS), vr, dice.choice(_TEXTS)))


def _other_character_set(content: bytes, dice: random.Random) -> bytes:
    named = with_element(content, element(0x00100010, "PN", dice.randbytes(dice.randint(1, 64))))
    text = dice.choice((*_TEXTS, b"ISO 2022 IR 87\\ISO 2022 IR 159", b"GB18030", b"ISO_IR 13"))
    return with_element(named, element(0x00080005, "CS", text))


def _nested(content: bytes, dice: random.Random) -> bytes:
    depth = dice.choice((1, 5, 50, 90))
    item, end = b"\xfe\xff\x00\xe0" + b"\xff" * 4, b"\xfe\xff\x0d\xe0" + bytes(4)
    begin = b"\x40\x00\x75\x02SQ\x00\x00" + b"\xff" * 4
    value = (item + begin) * depth + (b"\xfe\xff\xdd\xe0" + bytes(4) + end) * (
        depth - dice.choice((0, 0, 1))
    )
    return with_element(content, element(0x00400275, "SQ", value, UNDEFINED))


def _other_pixels(content: bytes, dice: random.Random) -> bytes:
    value = dice.choice(
        (b"", b"ab", dice.randbytes(511), bytes(100_000), b"\xfe\xff\x00\xe0\xff\xff\xff\x7f")
    )
    length = dice.choice((None, UNDEFINED, 0x7FFFFFF0))
    return with_element(content, element(_PIXELS, dice.choice(("OW", "OB", "UN")), value, length))


_ELEMENTWISE: dict[str, Mutator] = {
    "length": _wrong_length,
    "value representation": _wrong_vr,
    "element missing": _without,
    "out of order": _out_of_order,
    "element twice": _twice,
    "value": _other_value,
    "tag": _other_tag,
    "uid": _other_uid,
    "number": _other_number,
    "character set": _other_character_set,
    "nested": _nested,
    "pixels": _other_pixels,
}
