"""Reads the header facts of an instance from its file, without its pixels.

Everything downstream decides on these facts, so what is odd in a header must not break the
reading, and must not become a number: text is decoded by its character set, and a value that is
not a finite decimal number stays the text that it was, for ``number`` to refuse by name.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from node.domain.condition import FACTS as FACTS
from node.domain.condition import IDENTITY
from node.domain.errors import HeaderError, SpoolError
from node.domain.study import Arrival, Fact, Instance

VALUE_LIMIT = 16 * 1024
"""Bytes of one header value that are read; a fact that is larger tells its size instead."""

_TAGS = {keyword: int(tag_for_keyword(keyword) or 0) for keyword in FACTS}
_REFERRER = int(tag_for_keyword("ReferringPhysicianName") or 0)
"""Carried into results like the identity, though nothing is decided on it."""
_MODALITY_LUT = int(tag_for_keyword("ModalityLUTSequence") or 0)
"""Where it is, the stored values mean something else, so their place alone is not enough."""
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_NUMERIC = frozenset(_BINARY) | {"DS", "IS"}
_DECODED = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Value representations that the Specific Character Set governs (PS3.5 6.1.2.2)."""
_LINE_ENDS = {0x0D, 0x0A, 0x09, 0x0C}
_ESCAPE_58 = "\x1b$)A"
"""Python's decoder of ISO-IR 58 leaves its escape sequence in the text."""
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_SHOWN = 32

# What pydicom raises on data sets that are not what they claim to be.
_UNREADABLE = (
    BytesLengthException,
    InvalidDicomError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def read_instance(arrival: Arrival) -> Instance:
    """The instance behind an arrival, with its header facts.

    Raises HeaderError when nothing can be parsed, when one of the four UIDs that name the
    instance is missing or no UID (PS3.5 9.1), or when the data set names another SOP instance or
    class than its arrival did; SpoolError when the file cannot be read.
    """
    if arrival.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        raise HeaderError("deflated data sets are not read: have the peer propose another syntax")
    with reading(arrival.path), arrival.path.open("rb") as stream:
        dataset = dcmread(
            stream,
            stop_before_pixels=True,
            specific_tags=[*_TAGS.values(), _REFERRER, _MODALITY_LUT],
            defer_size=VALUE_LIMIT,
        )
        _refuse_endless_identity(dataset)
        facts = _facts(dataset)
        pixel_offset = None
        if _MODALITY_LUT not in dataset:
            pixel_offset = _pixel_offset(stream, arrival.transfer_syntax_uid)
    uids = {keyword: _uid(facts, keyword) for keyword in _UIDS}
    for keyword, announced in (
        ("SOPInstanceUID", arrival.sop_instance_uid),
        ("SOPClassUID", arrival.sop_class_uid),
    ):
        if uids[keyword] != announced:
            raise HeaderError(
                f"{keyword} in the data set is {uids[keyword]}, but the peer announced "
                f"{announced!r}: the object is not what it was sent as"
            )
    return Instance(
        sop_instance_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        series_uid=uids["SeriesInstanceUID"],
        study_uid=uids["StudyInstanceUID"],
        sha256=arrival.sha256,
        peer=arrival.peer,
        received_at=arrival.received_at,
        path=arrival.path,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        facts=facts,
        pixel_offset=pixel_offset,
    )


def read_source(paths: Sequence[Path]) -> tuple[Dataset, ...]:
    """Whole headers without pixels, in the order of ``paths``, for results that refer to them.

    Raises HeaderError when a file cannot be parsed, SpoolError when it cannot be read.
    """
    sources = []
    for path in paths:
        with reading(path):
            sources.append(dcmread(path, stop_before_pixels=True))
    return tuple(sources)


def read_facts(content: bytes) -> dict[str, Fact]:
    """The header facts of a Part 10 object that we made ourselves."""
    return _facts(
        dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(_TAGS.values()))
    )


def facts_to_json(facts: Mapping[str, Fact]) -> str:
    """Facts as one line of JSON with sorted keys; tuples become lists."""
    return json.dumps(dict(facts), sort_keys=True, allow_nan=False, separators=(",", ":"))


def facts_from_json(text: str) -> dict[str, Fact]:
    """The facts that ``facts_to_json`` wrote."""
    return {
        keyword: tuple(value) if isinstance(value, list) else value
        for keyword, value in json.loads(text).items()
    }


def number(instance: Instance, keyword: str, low: float, high: float) -> float:
    """One finite number of the header between low and high inclusive; else HeaderError."""
    return numbers(instance, keyword, 1, low, high)[0]


def whole(instance: Instance, keyword: str, low: int, high: int) -> int:
    """One whole number of the header between low and high inclusive; else HeaderError."""
    value = number(instance, keyword, low, high)
    if value.is_integer():
        return int(value)
    raise HeaderError(f"{keyword} is {value:g} in {where(instance)}; wanted a whole number")


def numbers(
    instance: Instance, keyword: str, count: int, low: float, high: float
) -> tuple[float, ...]:
    """``count`` finite numbers of the header, each between low and high inclusive.

    Raises HeaderError that names the keyword, the value and what was wanted; never the patient.
    """
    value = instance.facts.get(keyword, "")
    values = value if isinstance(value, tuple) else (value,)
    finite = [one for one in values if isinstance(one, int | float) and math.isfinite(one)]
    if len(finite) == len(values) == count and all(low <= one <= high for one in finite):
        return tuple(float(one) for one in finite)
    amount = "a number" if count == 1 else f"{count} numbers"
    raise HeaderError(
        f"{keyword} is {_shown(value)} in {where(instance)}; "
        f"wanted {amount} from {low:g} to {high:g}"
    )


def optional(instance: Instance, keyword: str, low: float, high: float) -> float | None:
    """Like ``number``, but None when the header has no value."""
    if instance.facts.get(keyword, "") in ("", ()):
        return None
    return number(instance, keyword, low, high)


_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def _uid(facts: dict[str, Fact], keyword: str) -> str:
    value = facts.get(keyword, "")
    if isinstance(value, str) and len(value) <= 64 and _UID.fullmatch(value):
        return value
    raise HeaderError(f"{keyword} is {_shown(value)}; wanted a UID of at most 64 characters")


def where(instance: Instance) -> str:
    """How a message names an instance: its number, or its UID; never the patient."""
    instance_number = instance.facts.get("InstanceNumber", "")
    if isinstance(instance_number, int | float):
        return f"instance number {instance_number:g}"
    return f"instance {instance.sop_instance_uid}"


_FIGURES = re.compile(
    r"([-+.,\d\\\s]|e|nan|inf)*"
    # What the reader itself puts in the place of a value that it does not keep.
    r"|\(\d+ bytes\)|\(written as [A-Z]{2}\)",
    re.IGNORECASE,
)


def _shown(value: Fact) -> str:
    if value in ("", ()):
        return "missing"
    values = value if isinstance(value, tuple) else (value,)
    text = "\\".join(one if isinstance(one, str) else f"{one:.10g}" for one in values)
    if not _FIGURES.fullmatch(text):
        # Where a number or a UID belongs, a shifted header may well hold a name.
        return f"text of {len(text)} characters"
    # The repr keeps what a header may hold (control characters) out of logs and terminals.
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the file system and pydicom raise into SpoolError and HeaderError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # pydicom's own, of a data set that ends too early
            raise _unreadable(path, error) from error
        raise SpoolError(f"{path.name} cannot be read: {error.strerror}") from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> HeaderError:
    return HeaderError(
        f"{path.name} holds no readable data set ({type(error).__name__}): "
        "look at it with dcmdump, or have it sent again"
    )


def _refuse_endless_identity(dataset: Dataset) -> None:
    """Identity goes into every result as it is, and megabytes of it would break who reads them."""
    for tag in (*(_TAGS[keyword] for keyword in IDENTITY), _REFERRER):
        element = dataset.get_item(tag, keep_deferred=True) if tag in dataset else None
        if isinstance(element, RawDataElement) and element.length > VALUE_LIMIT:
            raise HeaderError(
                f"{keyword_for_tag(tag)} holds {element.length} bytes; wanted at most "
                f"{VALUE_LIMIT}: have the peer correct it"
            )


def _pixel_offset(stream: BinaryIO, transfer_syntax_uid: str) -> int | None:
    """Where Pixel Data begins; the stream stands before its tag when there is any."""
    order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
    head = stream.read(12)
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != (0x7FE0, 0x10):
        return None
    # As a length these letters would be odd, so a length does not look like them.
    explicit = head[4:6] in (b"OB", b"OW", b"UN")
    at = 8 if explicit else 4
    if len(head) < at + 4:
        return None
    encapsulated = struct.unpack_from(f"{order}I", head, at)[0] == 0xFFFFFFFF
    if encapsulated == (transfer_syntax_uid in _NATIVE):
        return None
    return stream.tell() - len(head) + at + 4


def _facts(dataset: Dataset) -> dict[str, Fact]:
    character_sets = _character_sets(dataset)
    encodings = _encodings(character_sets)
    facts: dict[str, Fact] = {"SpecificCharacterSet": _collapse([*character_sets])}
    for keyword, tag in _TAGS.items():
        if tag in dataset:
            element = dataset.get_item(tag, keep_deferred=True)
            if isinstance(element, RawDataElement):
                facts[keyword] = _fact(keyword, element, encodings)
    return facts


def _character_sets(dataset: Dataset) -> list[str]:
    # The one element that pydicom has decoded while reading, because it needs it itself.
    value = dataset.get("SpecificCharacterSet") or ""
    return [value] if isinstance(value, str) else [str(one) for one in value] or [""]


def _encodings(character_sets: list[str]) -> list[str]:
    """Python's names of the character sets; the first is the one without escape sequence."""
    encodings = convert_encodings(character_sets)
    # pydicom 3.0 does not know Latin-9, which is younger than its table.
    return ["iso8859_15", *encodings[1:]] if character_sets[0].endswith("IR 203") else encodings


def _fact(keyword: str, element: RawDataElement, encodings: list[str]) -> Fact:
    if element.length > VALUE_LIMIT:
        return f"({element.length} bytes)"
    raw = element.value or b""
    declared = dictionary_VR(keyword)
    if declared == "UI" and element.VR not in ("UI", "UN", None):
        return f"(written as {element.VR})"  # which pydicom could not read as a UID either
    if declared not in _NUMERIC:
        return _text(keyword, raw, encodings if declared in _DECODED else ["iso8859"])
    # Rows as UL, say: believe the VR that was written, for the bytes are of that type.
    written = element.VR if element.VR in _NUMERIC else declared
    if written in _BINARY:
        return _collapse(_unpacked(raw, _BINARY[written], element.is_little_endian))
    return _collapse([_decimal(one) for one in _split(raw.decode("iso8859"))])


def _text(keyword: str, raw: bytes, encodings: list[str]) -> Fact:
    decoded = decode_bytes(raw.rstrip(b"\0 "), encodings, _LINE_ENDS).replace(_ESCAPE_58, "")
    if dictionary_VR(keyword) == "PN":
        # Trailing empty component groups say nothing (PS3.5 6.2.1).
        return decoded.rstrip("=").strip()
    if dictionary_VM(keyword) == "1":
        return decoded.strip("\0 ")
    return _collapse(_split(decoded))


def _split(text: str) -> list[str | float]:
    return [one.strip("\0 \t\r\n") for one in text.split("\\")]


def _unpacked(raw: bytes, code: str, little: bool) -> list[str | float]:
    size = struct.calcsize(code)
    if len(raw) % size:
        return [f"({len(raw)} bytes)"]
    values = struct.unpack(f"{'<' if little else '>'}{len(raw) // size}{code}", raw)
    return [float(one) if math.isfinite(one) else str(one) for one in values]


def _decimal(text: str | float) -> str | float:
    if isinstance(text, str) and _DECIMAL.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text


def _collapse(values: list[str | float]) -> Fact:
    """One value alone; several as a tuple of numbers, or of text when one of them is none."""
    if len(values) <= 1:
        return values[0] if values else ""
    if all(isinstance(one, float) for one in values):
        return tuple(float(one) for one in values)
    return tuple(one if isinstance(one, str) else f"{one:.17g}" for one in values)
