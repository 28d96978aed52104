"""The look at the first elements: valid objects pass, what can be nothing is refused at once."""

from __future__ import annotations

import struct
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from node.dicom.scan import Refusal, scan
from node.testing.series import SeriesSpec, make

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def image() -> Dataset:
    return make(SeriesSpec(), np.zeros((1, 4, 4), np.int16))[0]


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian = syntax != ExplicitVRBigEndian
    stream.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(stream, dataset)
    return stream.getvalue()


def look(
    content: bytes, instance_uid: str = "", syntax: str = ExplicitVRLittleEndian
) -> Refusal | None:
    return scan(memoryview(content), syntax, MRImageStorage, instance_uid or UID)


UID = str(image().SOPInstanceUID)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_valid_object_passes(syntax: str) -> None:
    assert look(encoded(image(), syntax), syntax=syntax) is None


def test_nothing_is_refused() -> None:
    refusal = look(b"")
    assert refusal is not None
    assert refusal.status == 0xC000


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_an_object_without_one_of_its_uids_is_refused(syntax: str, keyword: str) -> None:
    for change in (None, ""):
        dataset = image()
        if change is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, change)
        refusal = look(encoded(dataset, syntax), syntax=syntax)
        assert refusal is not None
        assert refusal.status == 0xA900
        assert keyword[:3] in refusal.reason


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("bad", ["../../x", "1..2", "1.2.", "a", "1.2\\1.3", "1." * 40 + "1"])
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_what_is_no_uid_is_refused(keyword: str, bad: str) -> None:
    dataset = image()
    setattr(dataset, keyword, bad)
    refusal = look(encoded(dataset))
    assert refusal is not None
    assert refusal.status == 0xA900


def test_a_component_with_a_leading_zero_passes_for_real_devices_send_it() -> None:
    dataset = image()
    dataset.StudyInstanceUID = "1.2.01.3"
    assert look(encoded(dataset)) is None


def test_another_class_or_instance_than_the_command_said_is_refused() -> None:
    dataset = image()
    assert look(encoded(dataset), "1.2.3") == Refusal(
        0xA900, "SOP Instance UID in data set and command differ"
    )
    dataset.SOPClassUID = CTImageStorage
    assert look(encoded(dataset)) == Refusal(0xA900, "SOP Class UID in data set and command differ")


@pytest.mark.parametrize("sent", SYNTAXES)
@pytest.mark.parametrize("claimed", SYNTAXES)
def test_a_data_set_in_another_syntax_than_its_context_is_refused(sent: str, claimed: str) -> None:
    refusal = look(encoded(image(), sent), syntax=claimed)
    assert (refusal is None) == (sent == claimed)


@pytest.mark.parametrize(
    "content",
    [
        b"not a data set at all",
        bytes(128) + b"DICM" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
        b"\x02\x00\x10\x00UI\x04\x001.2\0",
        b"\xfe\xff\x00\xe0\x00\x00\x00\x00",
        b"\x08\x00",
    ],
)
def test_what_is_no_data_set_is_refused(content: bytes) -> None:
    refusal = look(content)
    assert refusal is not None
    assert refusal.status == 0xC000


def test_a_length_beyond_the_end_is_refused() -> None:
    refusal = look(b"\x08\x00\x05\x00UT\0\0\xf0\xff\xff\x7fabc")
    assert refusal is not None
    assert refusal.status == 0xC000


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_on_the_way_are_stepped_over(syntax: str, undefined: bool) -> None:
    dataset = image()
    inner = Dataset()
    inner.SOPInstanceUID = "9.9.9"
    inner.SOPClassUID = "9.9"
    inner.StudyInstanceUID = "9"
    item = Dataset()
    item.ReferencedImageSequence = [inner, inner]
    for keyword in ("LanguageCodeSequence", "ReferencedStudySequence"):
        setattr(dataset, keyword, [item, item])
        _set_undefined(dataset, keyword, undefined)
    _set_undefined(item, "ReferencedImageSequence", undefined)
    assert look(encoded(dataset, syntax), syntax=syntax) is None
    dataset.SOPInstanceUID = "1.2.3"
    assert look(encoded(dataset, syntax), syntax=syntax) is not None


def _set_undefined(dataset: Dataset, keyword: str, undefined: bool) -> None:
    dataset[keyword].is_undefined_length = undefined
    for item in dataset[keyword].value:
        item.is_undefined_length_sequence_item = undefined


def test_what_is_deeper_than_the_look_passes_and_costs_nothing() -> None:
    begin = encoded(image())
    deep = b"\x08\x00\x06\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 10**6
    started = perf_counter()
    assert look(deep + begin) is None
    assert perf_counter() - started < 0.1


def test_a_look_takes_microseconds() -> None:
    content, started = encoded(image()), perf_counter()
    for _ in range(100):
        look(content)
    assert (perf_counter() - started) / 100 < 0.002


def test_deflated_data_sets_are_refused() -> None:
    refusal = look(b"x\x9c\x03", syntax="1.2.840.10008.1.2.1.99")
    assert refusal is not None
    assert refusal.status == 0xC000


@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_no_bytes_make_it_raise(content: bytes, syntax: str) -> None:
    refusal = look(content, syntax=syntax)
    assert refusal is not None or content


VALID = {syntax: encoded(image(), syntax) for syntax in SYNTAXES}


@given(st.data())
def test_no_change_of_a_valid_object_makes_it_raise(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from(SYNTAXES))
    content = bytearray(VALID[syntax])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    look(bytes(content[: data.draw(st.integers(0, len(content)))]), syntax=syntax)


def bundled() -> list[Path]:
    """pydicom's own files that are plain Part 10 files with what names an instance."""
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    return [path for path in sorted(folder.rglob("*.dcm")) if _sendable(path)]


def _sendable(path: Path) -> bool:
    content = path.read_bytes()
    if content[128:132] != b"DICM" or content[132:136] != b"\x02\x00\x00\x00":
        return False
    meta = read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    dataset = dcmread(path, stop_before_pixels=True, force=True)
    named = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    return bool(syntax) and syntax[-3:] != ".99" and all(dataset.get(name) for name in named)


@pytest.mark.filterwarnings("ignore")
def test_the_readable_files_of_pydicom_pass() -> None:
    refused = {}
    for path in bundled():
        content, meta = path.read_bytes(), read_file_meta_info(path)
        begin = 144 + struct.unpack_from("<I", content, 140)[0]
        dataset = dcmread(path, stop_before_pixels=True)
        refusal = scan(
            memoryview(content)[begin:],
            str(meta.TransferSyntaxUID),
            str(dataset.SOPClassUID),
            str(dataset.SOPInstanceUID),
        )
        if refusal is not None:
            refused[path.name] = refusal.reason
    # It says explicit and is implicit: no other receiver could use it either.
    assert refused == {"SC_rgb_jpeg.dcm": "an element has no value representation"}


def test_a_uid_written_as_something_else_is_refused() -> None:
    content = encoded(image())
    at = content.index(b"\x08\x00\x18\x00UI") + 4
    refusal = look(content[:at] + b"FD" + content[at + 2 :])
    assert refusal == Refusal(0xC000, "SOP Instance UID is not written as a UID")
