"""C-STORE at the level of bytes: the request read by hand, the response laid out by hand.

pynetdicom takes a third of a receiver's time to write the six elements of a response. Command sets
are Implicit VR Little Endian whatever the presentation context says (PS3.7 6.3.1), so both are a
few lines. Only C-STORE-RQ is read here; everything else goes to the library as it came.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

C_STORE_RQ = 0x0001
_C_STORE_RSP = 0x8001
_NO_DATA_SET = 0x0101
_COMMENT_LENGTH = 64  # Error Comment (0000,0902) is LO
_LAST_COMMAND = 0x03
_HEAD = struct.Struct("<HHI")
_PDU = struct.Struct(">BBIIBB")

_CLASS, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE = 0x0002, 0x0100, 0x0110, 0x0800, 0x1000


class Malformed(Exception):
    """The peer sends what breaks the protocol; the association has to end."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command set, as far as a C-STORE-RQ needs it (PS3.7 9.3.1.1).

    The UIDs are as sent, without padding; empty where there are none. ``message_id`` is -1 where
    there is none.
    """

    field: int
    message_id: int
    has_dataset: bool
    sop_class_uid: str
    sop_instance_uid: str


def read(content: bytes) -> Command:
    """Read a command set. Raises Malformed when it is none."""
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(content):
        if at + _HEAD.size > len(content):
            raise Malformed("a command set ends within an element")
        group, number, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size + length
        if group != 0 or at > len(content):
            raise Malformed("a command set is none")
        elements[number] = content[at - length : at]
    return Command(
        field=_short(elements.get(_FIELD)),
        message_id=_short(elements.get(_MESSAGE_ID)),
        has_dataset=_short(elements.get(_DATA_SET_TYPE)) != _NO_DATA_SET,
        sop_class_uid=_uid(elements.get(_CLASS, b"")),
        sop_instance_uid=_uid(elements.get(_INSTANCE, b"")),
    )


def response(
    command: Command, context_id: int, status: int, comment: str, echoed: tuple[str, str]
) -> bytes:
    """The C-STORE-RSP in one P-DATA-TF PDU (PS3.7 9.3.1.2, PS3.8 9.3.5).

    ``echoed`` are SOP Class and SOP Instance UID; an empty one is left out.
    """
    body = b"".join(
        (
            _element(_CLASS, _padded(echoed[0])) if echoed[0] else b"",
            _element(_FIELD, struct.pack("<H", _C_STORE_RSP)),
            _element(0x0120, struct.pack("<H", command.message_id)),
            _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", status)),
            _element(0x0902, _comment(comment)) if comment else b"",
            _element(_INSTANCE, _padded(echoed[1])) if echoed[1] else b"",
        )
    )
    message = _element(0x0000, struct.pack("<I", len(body))) + body
    length = len(message) + 2
    return _PDU.pack(4, 0, length + 4, length, context_id, _LAST_COMMAND) + message


def _element(number: int, value: bytes) -> bytes:
    return _HEAD.pack(0, number, len(value)) + value


def _padded(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) % 2)


def _comment(text: str) -> bytes:
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")
    value = " ".join(plain.split())[:_COMMENT_LENGTH].encode()
    return value + b" " * (len(value) % 2)


def _short(value: bytes | None) -> int:
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else -1


def _uid(value: bytes) -> str:
    # PS3.5 9.1 pads with one NULL; a space is what some devices take for it.
    return value.decode("ascii", "replace").rstrip(" \0")
