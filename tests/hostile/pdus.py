"""Inputs that no receiver should be sent, at the level of PDUs and of command sets.

Every input is a function of a seed, so a failure names the one that caused it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.replay import (
    RELEASE,
    association_request,
    echo_command,
    element,
    message,
    pdata,
    store_command,
    uid_value,
)
from tests.dicom.callers import CT, MR, named

_RANDOM_SIZES = (1, 5, 6, 7, 10, 64, 300, 2000)
_LENGTHS = (0, 1, 2, 3, 4, 5, 70000, 131079, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)
_ODD_UIDS = ("", "..", "../../x", "/etc/passwd", "1.2\n3", "a" * 64, "1" * 65, "1.2;rm", "%2e%2e")
_FIELDS = (0x0010, 0x0020, 0x0021, 0x0FFF, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150)
UNKNOWN_FIELDS = (0x0000, 0x7777, 0x8001, 0x8030, 0xFFFF)


@dataclass(frozen=True, slots=True)
class Hostile:
    """What is sent, and whether an association is opened for it first."""

    name: str
    associated: bool
    content: bytes


Maker = Callable[[random.Random], bytes]


def _noise(source: random.Random) -> bytes:
    return source.randbytes(source.choice(_RANDOM_SIZES))


def _flipped(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(source.randint(1, 8)):
        changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


def _cut(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(1, len(content))]


def _flipped_request(source: random.Random) -> bytes:
    return _flipped(association_request(), source)


def _cut_request(source: random.Random) -> bytes:
    return _cut(association_request(), source)


def _padded_request(source: random.Random) -> bytes:
    request = association_request() + _noise(source)
    return request[:2] + struct.pack(">I", len(request) - 6) + request[6:]


def _crowded_request(source: random.Random) -> bytes:
    head = association_request()[6:74]
    kind = source.choice((b"\x10\0\0\0", b"\x20\0\0\0", b"\x20\0\0\4\1\0\0\0", b"\x50\0\0\0"))
    body = head + kind * source.randint(1, 5000)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def _many_contexts(source: random.Random) -> bytes:
    syntax = b"\x40\0\0\x13" + b"1.2.840.10008.1.2.1"
    items = b""
    for number in range(source.randint(1, 700)):
        proposed = b"\x30\0\0\x11" + b"1.2.840.10008.1.1" + syntax * source.randint(0, 3)
        items += struct.pack(">BBHBBBB", 0x20, 0, len(proposed) + 4, number % 256, 0, 0, 0)
        items += proposed
    body = association_request()[6:74] + items
    return struct.pack(">BBI", 1, 0, len(body)) + body


def _long(source: random.Random) -> bytes:
    kind = source.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 255))
    return struct.pack(">BBI", kind, 0, source.choice(_LENGTHS)) + _noise(source)


def _other_protocol(source: random.Random) -> bytes:
    return source.choice(
        (
            b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + source.randbytes(500),
            b"\0\0\0\x85\xffSMBr\0\0\0\0",
            b"\x0b\x53SSH-2.0-x\r\n",
            b"MSH|^~\\&|" + b"A" * 300,
        )
    )


def _unexpected(source: random.Random) -> bytes:
    kind = source.choice((1, 2, 3, 5, 6, 7))
    return struct.pack(">BBI", kind, 0, 4) + source.randbytes(4)


def _fragment(source: random.Random) -> bytes:
    claimed = source.choice((0, 1, 2, 3, 100, 0x7FFFFFFF, 0xFFFFFFFF))
    context_id = source.choice((0, 1, 2, 3, 5, 255))
    body = struct.pack(">IBB", claimed, context_id, source.randrange(256)) + _noise(source)
    return struct.pack(">BBI", 4, 0, len(body)) + body


def _fragment_storm(source: random.Random) -> bytes:
    one = struct.pack(">IBB", 2, 1, source.choice((0, 1)))
    body = one * source.choice((10, 63, 64, 65, 5000))
    return struct.pack(">BBI", 4, 0, len(body)) + body


def _noise_command(source: random.Random) -> bytes:
    return pdata(1, 3, _noise(source))


def _flipped_command(source: random.Random) -> bytes:
    command = _flipped(store_command(MR, "1.2.3"), source)
    return pdata(1, 3, command) + pdata(1, 2, named(MR, "1.2.3"))


def _cut_command(source: random.Random) -> bytes:
    return pdata(1, 3, _cut(store_command(MR, "1.2.3"), source)) + pdata(1, 2, b"1234")


def _odd_field(source: random.Random) -> bytes:
    field = source.choice(_FIELDS + UNKNOWN_FIELDS)
    body = element(0x0002, uid_value(source.choice((MR, "1.2.840.10008.1.1", "1.2"))))
    body += element(0x0100, struct.pack("<H", field)) + element(0x0110, b"\1\0")
    has_dataset = source.random() < 0.5
    body += element(0x0800, b"\0\0" if has_dataset else b"\1\1")
    data = pdata(1, 2, source.randbytes(source.choice((4, 100, 5000)))) if has_dataset else b""
    return pdata(1, 3, element(0, struct.pack("<I", len(body))) + body) + data


def _endless_command(source: random.Random) -> bytes:
    return b"".join(pdata(1, 1, source.randbytes(4000)) for _ in range(source.randint(2, 40)))


def _out_of_order(source: random.Random) -> bytes:
    command, dataset = store_command(MR, "1.2.3"), named(MR, "1.2.3")
    parts = [
        pdata(1, 3, command),
        pdata(1, 1, command[:20]),
        pdata(1, 0, dataset[:20]),
        pdata(1, 2, dataset),
        pdata(3, 3, command),
        pdata(3, 2, dataset),
        pdata(3, 3, echo_command()),
    ]
    return b"".join(source.choices(parts, k=source.randint(1, 8)))


def _odd_uid(source: random.Random) -> bytes:
    uid = source.choice(_ODD_UIDS)
    return message(store_command(MR, uid), named(MR, uid))


def _disagreeing(source: random.Random) -> bytes:
    command = store_command(source.choice((MR, CT, "1.2.3")), "1.2.3")
    dataset = named(source.choice((CT, "1.2.3")), source.choice(("1.2.3", "1.2.4")))
    return message(command, dataset)


def _noise_dataset(source: random.Random) -> bytes:
    return message(store_command(MR, "1.2.3"), source.randbytes(source.choice((1, 8, 5000))))


def _cut_dataset(source: random.Random) -> bytes:
    whole = message(store_command(MR, "1.2.3"), named(MR, "1.2.3") + bytes(60000), 16384)
    return _cut(whole, source) + source.choice((b"", RELEASE, b"\7\0\0\0\0\4\0\0\0\0"))


def _pipelined(source: random.Random) -> bytes:
    uids = [f"1.2.{source.randrange(10**6)}" for _ in range(source.randint(2, 20))]
    return b"".join(message(store_command(MR, uid), named(MR, uid)) for uid in uids) + RELEASE


BEFORE: tuple[Maker, ...] = (
    _noise,
    _flipped_request,
    _cut_request,
    _padded_request,
    _crowded_request,
    _many_contexts,
    _long,
    _other_protocol,
    _unexpected,
    _fragment,
)
WITHIN: tuple[Maker, ...] = (
    _noise,
    _long,
    _unexpected,
    _fragment,
    _fragment_storm,
    _noise_command,
    _flipped_command,
    _cut_command,
    _odd_field,
    _endless_command,
    _out_of_order,
    _odd_uid,
    _disagreeing,
    _noise_dataset,
    _cut_dataset,
    _pipelined,
)


def inputs(seed: int, count: int) -> Iterator[Hostile]:
    """So many inputs of every kind in turn."""
    makers = [(maker, False) for maker in BEFORE] + [(maker, True) for maker in WITHIN]
    for number in range(count):
        maker, associated = makers[number % len(makers)]
        source = random.Random(f"{seed}-{number}")  # noqa: S311 - repeatable, not secret
        yield Hostile(f"{maker.__name__} {seed}-{number}", associated, maker(source))
