"""The Part 10 envelope around a received data set (PS3.10 section 7).

A C-STORE carries no preamble and no file meta information, so both are ours to write. They make
the spool self-describing: who sent the object, when, and the checksum of its bytes travel in the
Private Information element (0002,0102) of the same file, so that one fsync covers everything.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import BinaryIO

from isal.isal_zlib import crc32

from node import __version__
from node.domain.errors import HeaderError
from node.domain.study import Arrival

IMPLEMENTATION_CLASS_UID = "2.25.253428431986134713920640138459227443273"
IMPLEMENTATION_VERSION = f"AI-NODE {__version__}"[:16]
PRIVATE_CREATOR_UID = "2.25.60487212361234901174923468115297018341"

_PREAMBLE = b"\0" * 128 + b"DICM"
# Zeros: what a sender put there could be an executable's header (CVE-2019-11687).
_META_LIMIT = 64 * 1024
_LONG_VRS = {b"OB", b"UN"}
_CRC = b'"crc32": "%s"'


UNKNOWN_CRC = "00000000"
"""In place of a checksum that is not known yet; as long as one."""


def envelope(arrival: Arrival, crc32: str = "") -> bytes:
    """Preamble, prefix and file meta information for a received data set.

    ``crc32`` is that of the data set's bytes, as eight hexadecimal digits. It costs a receiver a
    quarter of what SHA-256 does; the digest is taken when the arrival is read back and may be
    missing until then.
    """
    provenance = {
        **({"crc32": crc32} if crc32 else {}),
        **({"sha256": arrival.sha256} if arrival.sha256 else {}),
        "peer": arrival.peer,
        "address": arrival.address,
        "received_at": arrival.received_at,
    }
    meta = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", arrival.sop_class_uid.encode()),
            _element(0x0003, b"UI", arrival.sop_instance_uid.encode()),
            _element(0x0010, b"UI", arrival.transfer_syntax_uid.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode()),
            _element(0x0017, b"AE", arrival.calling_ae.encode("ascii", "replace")),
            _element(0x0018, b"AE", arrival.called_ae.encode("ascii", "replace")),
            _element(0x0100, b"UI", PRIVATE_CREATOR_UID.encode()),
            _element(0x0102, b"OB", json.dumps(provenance).encode()),
        )
    )
    return _PREAMBLE + _element(0x0000, b"UL", struct.pack("<I", len(meta))) + meta


def sealed(unsealed: bytes, crc32: int) -> bytes:
    """An envelope with UNKNOWN_CRC, once the checksum is known. Its length stays."""
    # With its key, for eight zeros may also stand in a UID.
    return unsealed.replace(_CRC % UNKNOWN_CRC.encode(), _CRC % (b"%08x" % crc32), 1)


def read_arrival(path: Path) -> Arrival:
    """What ``envelope`` wrote, read back, with the digest of the data set.

    Raises HeaderError when the file is not one of ours, or its bytes are not those that came.
    """
    with path.open("rb", buffering=0) as stream:
        elements = _read_meta(stream, path)
        digest, checksum = _digests(stream)
    try:
        provenance = json.loads(elements[0x0102].rstrip(b"\0"))
        if (
            provenance.get("crc32", checksum) != checksum
            or provenance.get("sha256", digest) != digest
        ):
            raise _Damaged
        return Arrival(
            sop_instance_uid=_text(elements[0x0003]),
            sop_class_uid=_text(elements[0x0002]),
            transfer_syntax_uid=_text(elements[0x0010]),
            sha256=digest,
            peer=provenance["peer"],
            calling_ae=_text(elements[0x0017]),
            called_ae=_text(elements[0x0018]),
            address=provenance["address"],
            received_at=float(provenance["received_at"]),
            path=path,
        )
    except _Damaged as error:
        raise HeaderError(
            f"{path.name} in the spool is damaged: its bytes are not those that were received; "
            "have the object sent again"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise HeaderError(
            f"{path.name} in the spool has no provenance of ours ({type(error).__name__}); "
            "move it away or send it over DICOM"
        ) from error


class _Damaged(Exception):
    """The data set's bytes are not those of its checksum."""


def _digests(stream: BinaryIO) -> tuple[str, str]:
    """SHA-256 and CRC-32 of what is left of a stream."""
    digest, checksum = hashlib.sha256(), 0
    block = memoryview(bytearray(1 << 18))
    while count := stream.readinto(block):  # type: ignore[attr-defined]
        digest.update(block[:count])
        checksum = crc32(block[:count], checksum)
    return digest.hexdigest(), f"{checksum:08x}"


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """One group 2 element in Explicit VR Little Endian, padded to an even length."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    head = struct.pack("<HH2s", 2, number, vr)
    if vr in _LONG_VRS:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def _read_meta(stream: BinaryIO, path: Path) -> dict[int, bytes]:
    """Group 2 as element number -> raw value; reads no byte of the data set."""
    head = stream.read(len(_PREAMBLE) + 12)
    if len(head) < len(_PREAMBLE) + 12 or head[128:132] != b"DICM":
        raise HeaderError(f"{path.name} in the spool is not a DICOM file (no DICM prefix)")
    (length,) = struct.unpack_from("<I", head, len(_PREAMBLE) + 8)
    if length > _META_LIMIT:
        raise HeaderError(f"{path.name} in the spool has {length} bytes of file meta information")
    meta = stream.read(length)
    elements: dict[int, bytes] = {}
    at = 0
    while at + 8 <= len(meta):
        _, number, vr = struct.unpack_from("<HH2s", meta, at)
        if vr in _LONG_VRS:
            (size,), at = struct.unpack_from("<I", meta, at + 8), at + 12
        else:
            (size,), at = struct.unpack_from("<H", meta, at + 6), at + 8
        elements[number] = meta[at : at + size]
        at += size
    return elements


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")
