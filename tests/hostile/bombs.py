"""Small objects that take much: a few megabytes that ask a parser for gigabytes or minutes."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from node.dicom.scp import Received
from tests.hostile.raw import UNDEFINED, Element, arrived, element, with_element

REFERENCED_IMAGES = 0x00081140
_ITEM = b"\xfe\xff\x00\xe0"
_EMPTY_ITEM = _ITEM + bytes(4)
_OPEN_ITEM = _ITEM + b"\xff\xff\xff\xff"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
_OPEN_SEQUENCE = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff"
_MEGABYTES_OF_BACKSLASHES = b"\\" * 10_000_000


@dataclass(frozen=True)
class Bomb:
    """One element that is put into a valid object.

    ``words`` must be in the reason for which it is kept aside; "" when the object may as well be
    read: the node steps over the element, or the machine decides whether reading it fits into the
    limits of the process that does it.
    """

    name: str
    element: Element
    words: str = ""

    def made(self, dataset: Dataset) -> Received:
        """A valid object with the bomb inside."""
        whole = arrived(dataset)
        return arrived(dataset, with_element(bytes(whole.dataset), self.element))


HEADER_BOMBS = (
    Bomb(
        "a million empty items",
        element(REFERENCED_IMAGES, "SQ", _EMPTY_ITEM * 10**6 + _SEQUENCE_END, UNDEFINED),
    ),
    Bomb("the same with a length", element(REFERENCED_IMAGES, "SQ", _EMPTY_ITEM * 10**6)),
    Bomb(
        "sequences 200,000 deep",
        element(REFERENCED_IMAGES, "SQ", (_OPEN_ITEM + _OPEN_SEQUENCE) * 200_000, UNDEFINED),
        "RecursionError",
    ),
    Bomb(
        "sequences 400 deep",
        element(REFERENCED_IMAGES, "SQ", (_OPEN_ITEM + _OPEN_SEQUENCE) * 400, UNDEFINED),
        "RecursionError",
    ),
    Bomb(
        "a name of 10 MB",
        element(0x00100010, "UN", _MEGABYTES_OF_BACKSLASHES),
        "PatientName holds 10000000 bytes",
    ),
    Bomb(
        "a referrer of 10 MB",
        element(0x00080090, "UN", _MEGABYTES_OF_BACKSLASHES),
        "ReferringPhysicianName holds 10000000 bytes",
    ),
    Bomb(
        "a name of 64 KB",
        element(0x00100010, "PN", b"=" * 60_000),
        "PatientName holds 60000 bytes",
    ),
    Bomb("other names of 10 MB", element(0x00101001, "UN", _MEGABYTES_OF_BACKSLASHES)),
    Bomb("five million character sets", element(0x00080005, "UN", b"1\\" * 5_000_000)),
    Bomb(
        "five million study UIDs",
        element(0x0020000D, "UN", b"1\\" * 5_000_000),
        "StudyInstanceUID holds 10000000 bytes",
    ),
    Bomb("a length of two gigabytes", element(0x00104000, "UN", b"abc", 0x7FFFFFF0), "UID"),
    Bomb("a value without an end", element(0x00104000, "UN", bytes(8_000_000), UNDEFINED), ""),
)
