"""A sender that costs nothing: PDUs recorded in advance, one association, a C-STORE loop.

    python -m tests.bench.replay FOLDER PORT [--bare]

Reads every Part 10 file of a folder, says ``ready``, waits for a line, sends, and prints the
monotonic times at which it began and ended. With ``--bare`` there is no DICOM around the bytes:
a length of eight bytes, the data set, and one byte as the answer, for a bare socket.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom.filereader import read_file_meta_info

AE_TITLE = "AINODE"
CALLING = "REPLAY"
PDU = 131072
_CT = "1.2.840.10008.5.1.4.1.1.2"
_VERIFICATION = "1.2.840.10008.1.1"
_EXPLICIT = "1.2.840.10008.1.2.1"


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


def _context(number: int, abstract: str, syntax: str = _EXPLICIT) -> bytes:
    proposed = _item(0x30, abstract.encode()) + _item(0x40, syntax.encode())
    return _item(0x20, bytes((number, 0, 0, 0)) + proposed)


def association_request(
    calling: str = CALLING, called: str = AE_TITLE, sop_class_uid: str = _CT
) -> bytes:
    """An A-ASSOCIATE-RQ PDU that proposes one storage class (context 1) and C-ECHO (context 3)."""
    user = _item(0x51, struct.pack(">I", PDU)) + _item(0x52, b"1.2.3.4")
    body = struct.pack(">HH16s16s32x", 1, 0, called.encode().ljust(16), calling.encode().ljust(16))
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + _context(1, sop_class_uid)
    body += _context(3, _VERIFICATION) + _item(0x50, user)
    return struct.pack(">BBI", 1, 0, len(body)) + body


RELEASE = struct.pack(">BBII", 5, 0, 4, 0)


def element(number: int, value: bytes) -> bytes:
    """A command element."""
    return struct.pack("<HHI", 0, number, len(value)) + value


def uid_value(uid: str) -> bytes:
    """A UID, padded."""
    return uid.encode() + b"\0" * (len(uid) % 2)


def store_command(sop_class_uid: str, sop_instance_uid: str, message_id: int = 1) -> bytes:
    """A C-STORE-RQ command set."""
    body = element(0x0002, uid_value(sop_class_uid)) + element(0x0100, b"\1\0")
    body += element(0x0110, struct.pack("<H", message_id)) + element(0x0700, b"\0\0")
    body += element(0x0800, b"\0\0") + element(0x1000, uid_value(sop_instance_uid))
    return element(0x0000, struct.pack("<I", len(body))) + body


def echo_command() -> bytes:
    """A C-ECHO-RQ command set."""
    body = element(0x0002, uid_value(_VERIFICATION)) + element(0x0100, b"\x30\0")
    body += element(0x0110, b"\1\0") + element(0x0800, b"\1\1")
    return element(0x0000, struct.pack("<I", len(body))) + body


def pdata(context_id: int, control: int, content: bytes) -> bytes:
    """A P-DATA-TF PDU with one fragment."""
    size = len(content) + 2
    return struct.pack(">BBIIBB", 4, 0, size + 4, size, context_id, control) + content


def message(command: bytes, dataset: bytes, longest: int = PDU) -> bytes:
    """All PDUs of one C-STORE under context 1."""
    room = longest - 6
    parts = [pdata(1, 3, command)]
    for at in range(0, len(dataset), room):
        last = at + room >= len(dataset)
        parts.append(pdata(1, 2 if last else 0, dataset[at : at + room]))
    return b"".join(parts)


def read_pdu(connection: socket.socket) -> bytes:
    """One whole PDU; empty at the end of the connection."""
    head = _read(connection, 6)
    return head + _read(connection, int.from_bytes(head[2:], "big")) if head else b""


def _read(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count and (part := connection.recv(count - len(content))):
        content += part
    return content if len(content) == count else b""


def status_of(answer: bytes) -> int:
    """The status of a response PDU; -1 where it has none."""
    at = answer.find(b"\x00\x00\x00\x09\x02\x00\x00\x00")
    return int.from_bytes(answer[at + 8 : at + 10], "little") if at >= 0 else -1


def connect(port: int) -> socket.socket:
    """A connection to this machine."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def dataset_of(path: Path) -> tuple[str, bytes]:
    """SOP Instance UID and data set of a Part 10 file."""
    meta = read_file_meta_info(path)
    content = path.read_bytes()[144 + int(meta.FileMetaInformationGroupLength) :]
    return str(meta.MediaStorageSOPInstanceUID), content


def longest_of(answer: bytes) -> int:
    """The longest PDU that an A-ASSOCIATE-AC allows, but not more than we like."""
    at = answer.rfind(b"\x51\x00\x00\x04")
    longest = int.from_bytes(answer[at + 4 : at + 8], "big")
    return min(longest or PDU, PDU)


def _allowed(port: int) -> int:
    """The longest PDU that a receiver takes."""
    with connect(port) as connection:
        connection.sendall(association_request())
        answer = read_pdu(connection)
        assert answer[:1] == b"\x02"
        connection.sendall(RELEASE)
        read_pdu(connection)
    return longest_of(answer)


def _send_dicom(port: int, messages: Sequence[bytes]) -> None:
    connection = connect(port)
    connection.sendall(association_request())
    assert read_pdu(connection)[:1] == b"\x02"
    for content in messages:
        connection.sendall(content)
        assert status_of(read_pdu(connection)) == 0
    connection.sendall(RELEASE)
    read_pdu(connection)
    connection.close()


def _send_bare(port: int, contents: Sequence[bytes]) -> None:
    connection = connect(port)
    for content in contents:
        connection.sendall(struct.pack(">Q", len(content)))
        connection.sendall(content)
        assert connection.recv(1) == b"!"
    connection.close()


def main() -> None:
    """Send a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--bare", action="store_true")
    options = parser.parse_args()
    objects = [dataset_of(path) for path in sorted(options.folder.iterdir())]
    contents = [content for _, content in objects]
    if not options.bare:
        longest = _allowed(options.port)
        contents = [message(store_command(_CT, uid), c, longest) for uid, c in objects]
    send = _send_bare if options.bare else _send_dicom
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    begun = time.monotonic()
    send(options.port, contents)
    sys.stdout.write(f"{begun} {time.monotonic()}\n")


if __name__ == "__main__":
    main()
