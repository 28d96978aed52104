"""Header facts: read from any file without breaking, and no odd value ever becomes a number."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from node.dicom.headers import (
    FACTS,
    VALUE_LIMIT,
    facts_from_json,
    facts_to_json,
    number,
    numbers,
    optional,
    read_instance,
    read_source,
)
from node.domain.errors import HeaderError, SpoolError
from node.domain.study import Arrival, Fact, Instance
from node.testing.series import SeriesSpec, make, received, save
from tests.dicom.raw import set_raw


def one(spec: SeriesSpec) -> Dataset:
    return make(spec, np.zeros((1, 2, 2), np.int16))[0]


def written(directory: Path, spec: SeriesSpec | None = None) -> Path:
    return save([one(spec or SeriesSpec())], directory)[0]


def facts_with(directory: Path, keyword: str, raw: bytes, vr: str = "") -> Mapping[str, Fact]:
    """The facts of a file in which one element holds these very bytes."""
    path = written(directory)
    set_raw(path, keyword, raw, vr)
    return received([path])[0].facts


def arrival_of(path: Path, **changes: Any) -> Arrival:
    arrival = Arrival(
        sop_instance_uid="1.2.3",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        sha256="00",
        peer="modality",
        calling_ae="MODALITY",
        called_ae="NODE",
        address="127.0.0.1",
        received_at=0.0,
        path=path,
    )
    return dataclasses.replace(arrival, **changes)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_identity_and_facts_are_those_of_the_file(syntax: str, tmp_path: Path) -> None:
    spec = SeriesSpec(transfer_syntax_uid=syntax, series_number=7)
    dataset = one(spec)
    instance = received(save([dataset], tmp_path))[0]
    assert instance.sop_instance_uid == dataset.SOPInstanceUID
    assert instance.sop_class_uid == dataset.SOPClassUID
    assert (instance.study_uid, instance.series_uid) == (spec.study_uid, spec.series_uid)
    assert instance.transfer_syntax_uid == syntax
    expected: dict[str, Fact] = {
        "Modality": "MR",
        "SeriesDescription": "T2 FLAIR AXIAL",
        "ScanningSequence": ("SE", "IR"),
        "SequenceVariant": "SK",
        "ScanOptions": "",
        "SeriesNumber": 7.0,
        "Rows": 2.0,
        "PixelSpacing": (1.0, 1.0),
        "ImageOrientationPatient": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "EchoTime": 120.0,
        "PatientID": "DEMO-1",
        "SpecificCharacterSet": "ISO_IR 192",
    }
    assert {keyword: instance.facts[keyword] for keyword in expected} == expected
    assert "KVP" not in instance.facts
    assert set(instance.facts) <= set(FACTS)


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e400", "-1e999", "abc", "1,5", "0x10", "1_000", "1 2"]
)
def test_what_is_no_finite_number_stays_text(text: str, tmp_path: Path) -> None:
    assert facts_with(tmp_path, "SliceThickness", text.encode())["SliceThickness"] == text


def test_one_bad_number_among_several_keeps_them_all_text(tmp_path: Path) -> None:
    assert facts_with(tmp_path, "ImagePositionPatient", b"1.5\\nan\\-2 ")[
        "ImagePositionPatient"
    ] == ("1.5", "nan", "-2")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"-97.169817923123", -97.169817923123),
        (b" +1.5e-3 ", 0.0015),
        (b"5.", 5.0),
        (b".5\0", 0.5),
        (b"", ""),
        (b"   ", ""),
        (b"\\", ("", "")),
        (b"-0", 0.0),
    ],
)
def test_decimal_strings_as_devices_write_them(raw: bytes, value: Fact, tmp_path: Path) -> None:
    assert facts_with(tmp_path, "SliceThickness", raw)["SliceThickness"] == value


@pytest.mark.parametrize(
    ("vr", "raw", "value"),
    [
        ("UL", struct.pack("<I", 70_000), 70_000.0),
        ("SS", struct.pack("<h", -2), -2.0),
        ("IS", b"12", 12.0),
        ("DS", b"nan ", "nan"),
        ("FD", struct.pack("<d", float("nan")), "nan"),
        ("FL", struct.pack("<f", float("inf")), "inf"),
        ("US", struct.pack("<HH", 1, 2), (1.0, 2.0)),
        ("FD", b"1234", "(4 bytes)"),
    ],
)
def test_rows_written_with_another_representation(
    vr: str, raw: bytes, value: Fact, tmp_path: Path
) -> None:
    assert facts_with(tmp_path, "Rows", raw, vr)["Rows"] == value


def test_an_oversized_value_tells_its_size(tmp_path: Path) -> None:
    assert (
        facts_with(tmp_path, "SeriesDescription", b"\\" * (VALUE_LIMIT + 2))["SeriesDescription"]
        == f"({VALUE_LIMIT + 2} bytes)"
    )


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "ReferringPhysicianName"])
def test_an_identity_without_an_end_is_refused(keyword: str, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=f"{keyword} holds {VALUE_LIMIT + 2} bytes"):
        facts_with(tmp_path, keyword, b"^" * (VALUE_LIMIT + 2))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_the_pixel_offset_is_where_native_pixels_begin(syntax: str, tmp_path: Path) -> None:
    dataset = one(SeriesSpec(transfer_syntax_uid=syntax))
    (path,) = save([dataset], tmp_path)
    (instance,) = received([path])
    assert instance.pixel_offset is not None
    assert path.read_bytes()[instance.pixel_offset :] == dataset.PixelData


def test_the_pixel_offset_of_compressed_pixels_is_where_their_first_item_begins(
    tmp_path: Path,
) -> None:
    dataset = one(SeriesSpec())
    dataset.compress(RLELossless)
    (path,) = save([dataset], tmp_path)
    (instance,) = received([path])
    assert instance.pixel_offset is not None
    assert path.read_bytes()[instance.pixel_offset :].startswith(dataset.PixelData)


def test_without_pixels_there_is_no_offset(tmp_path: Path) -> None:
    path = written(tmp_path)
    set_raw(path, "PixelData", None)
    assert received([path])[0].pixel_offset is None


def test_where_a_modality_lut_gives_the_values_their_meaning_there_is_no_offset(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    set_raw(path, "ModalityLUTSequence", b"")
    assert received([path])[0].pixel_offset is None


def test_a_description_with_a_backslash_is_one_text(tmp_path: Path) -> None:
    assert (
        facts_with(tmp_path, "SeriesDescription", b"T2\\FLAIR")["SeriesDescription"] == "T2\\FLAIR"
    )


# The names of PS3.5 annexes H, I, J and K and of the other repertoires of PS3.3 C.12.1.1.2,
# as bytes, so that no encoder of ours or of pydicom's stands in between.
NAMES = [
    ("", b"Adams^John Robert Quincy^^Rev.", "Adams^John Robert Quincy^^Rev."),
    ("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    ("ISO_IR 101", b"W\xb3adys\xb3aw^\xa3ukasz", "Władysław^Łukasz"),
    ("ISO_IR 109", b"\xa6erba^\xf8u", "Ĥerba^ĝu"),
    ("ISO_IR 110", b"\xe0boli\xf2\xf0^Ilze", "āboliōđ^Ilze"),
    ("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    ("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
    ("ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה"),
    ("ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
    ("ISO_IR 148", b"\xc7avu\xfeo\xf0lu^\xddsmet", "Çavuşoğlu^İsmet"),
    ("ISO_IR 166", b"\xb9\xd2\xc1\xca\xa1\xd8\xc5", "นามสกุล"),
    ("ISO_IR 203", b"\xbdst^\xa4va", "œst^€va"),
    (
        "ISO_IR 13",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\xd4\xcf\xc0\xde^\xc0\xdb\xb3",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=ﾔﾏﾀﾞ^ﾀﾛｳ",
    ),
    (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^"
        b"\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        "\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^"
        b"\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (
        "\\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东",
    ),
    (
        "ISO_IR 192",
        b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1=",
        "Wang^XiaoDong=王^小東",
    ),
    ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
    # The second byte of these first characters is a backslash (0x5C).
    ("GB18030", b"\x81\x5c^\x95\x32\x82\x36", "\u4e57^\U00020000"),
    ("GBK", b"\x98\x5c^\xd0\xa1", "\u698e^\u5c0f"),
]


@pytest.mark.parametrize(("character_set", "raw", "name"), NAMES)
def test_names_in_every_character_set(
    character_set: str, raw: bytes, name: str, tmp_path: Path
) -> None:
    path = written(tmp_path)
    set_raw(path, "SpecificCharacterSet", character_set.encode())
    set_raw(path, "PatientName", raw)
    assert received([path])[0].facts["PatientName"] == name
    if not re.search("203|58", character_set):  # pydicom 3.0 does not read these two
        assert str(read_source([path])[0].PatientName) == name


def test_an_unknown_character_set_does_not_stop_the_reading(tmp_path: Path) -> None:
    facts = facts_with(tmp_path, "SpecificCharacterSet", b"KLINGON")
    assert facts["PatientName"] == "Phantom^Demo"


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
@pytest.mark.parametrize(
    "raw", [None, b"", b"../../etc/x", b"1.2\x003", b"1.2\n3", b"1..2", b"1" * 66, b"1.2\\1.3"]
)
def test_a_missing_or_false_uid_is_refused_by_name(
    keyword: str, raw: bytes | None, tmp_path: Path
) -> None:
    path = written(tmp_path)
    announced = arrival_of(path, sop_instance_uid=received([path])[0].sop_instance_uid)
    set_raw(path, keyword, raw)
    with pytest.raises(HeaderError, match=keyword):
        read_instance(announced)


@pytest.mark.parametrize(
    ("announced", "keyword"),
    [
        ({"sop_instance_uid": "1.2.3.4"}, "SOPInstanceUID"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"}, "SOPClassUID"),
    ],
)
def test_a_data_set_that_is_not_what_was_announced_is_refused(
    announced: dict[str, str], keyword: str, tmp_path: Path
) -> None:
    path = written(tmp_path)
    arrival = arrival_of(path, sop_instance_uid=received([path])[0].sop_instance_uid)
    assert read_instance(arrival).path == path
    with pytest.raises(HeaderError, match=keyword):
        read_instance(dataclasses.replace(arrival, **announced))


@pytest.mark.parametrize("content", [b"", b"\0" * 132, b"no DICOM at all", bytes(range(256)) * 20])
def test_a_file_that_is_no_data_set_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match="no readable data set"):
        read_instance(arrival_of(path))
    with pytest.raises(HeaderError):
        read_source([path])


@given(st.binary(max_size=400))
def test_garbage_behind_a_true_envelope_is_refused(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name))
        content = path.read_bytes()
        begin = 144 + struct.unpack_from("<I", content, 140)[0]
        path.write_bytes(content[:begin] + garbage)
        with pytest.raises(HeaderError):
            read_instance(arrival_of(path))


def test_a_cut_file_is_refused_or_read_never_broken(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    arrival = arrival_of(path, sop_instance_uid=received([path])[0].sop_instance_uid)
    outcomes = set()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            outcomes.add(type(read_instance(arrival)).__name__)
        except HeaderError:
            outcomes.add("refused")
    assert outcomes == {"refused", "Instance"}


def test_deep_nesting_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    begin = 144 + struct.unpack_from("<I", content, 140)[0]
    deeper = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path.write_bytes(content[:begin] + deeper * 5000)
    with pytest.raises(HeaderError, match="no readable data set"):
        read_instance(arrival_of(path))


def test_a_deflated_data_set_is_not_inflated(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(HeaderError, match="deflated"):
        read_instance(arrival_of(path, transfer_syntax_uid=DeflatedExplicitVRLittleEndian))


def test_an_absent_file_is_the_spools_fault_and_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(SpoolError) as caught:
        read_instance(arrival_of(tmp_path / "gone"))
    assert caught.value.retryable
    with pytest.raises(SpoolError):
        read_source([tmp_path / "gone"])


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_expb.dcm", "693_J2KI.dcm"]
)
def test_facts_agree_with_pydicom_on_files_of_others(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    instance, (source,) = received([path])[0], read_source([path])
    for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        assert instance.facts[keyword] == tuple(map(float, source[keyword].value))
    for keyword in ("Rows", "BitsStored", "SliceThickness"):
        assert instance.facts[keyword] == float(source[keyword].value)
    assert instance.facts["PatientName"] == str(source.PatientName)


def test_sources_have_whole_headers_in_order_without_pixels(tmp_path: Path) -> None:
    paths = save(make(SeriesSpec(), np.zeros((3, 2, 2), np.int16)), tmp_path)
    sources = read_source(paths[::-1])
    assert [int(source.InstanceNumber) for source in sources] == [3, 2, 1]
    assert not any("PixelData" in source for source in sources)
    assert sources[0].EchoTrainLength == 16


@given(
    st.dictionaries(
        st.sampled_from(FACTS),
        st.one_of(
            st.text(max_size=10),
            st.floats(allow_nan=False, allow_infinity=False),
            st.lists(st.text(max_size=5), min_size=2, max_size=3).map(tuple),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
        ),
    )
)
def test_facts_survive_json(facts: dict[str, Fact]) -> None:
    assert facts_from_json(facts_to_json(facts)) == facts
    assert "\n" not in facts_to_json(facts)


def with_facts(**facts: Fact) -> Instance:
    return Instance("1.2", "1.2", "1.2", "1.2", "00", "p", 0.0, Path("x"), "1.2", facts)


def test_the_gate_lets_finite_numbers_in_range_through() -> None:
    instance = with_facts(KVP=120.0, PixelSpacing=(0.5, 0.25))
    assert number(instance, "KVP", 120, 120) == 120.0
    assert numbers(instance, "PixelSpacing", 2, 0, 1) == (0.5, 0.25)
    assert optional(instance, "KVP", 0, 200) == 120.0
    assert optional(instance, "EchoTime", 0, 200) is None


@pytest.mark.parametrize(
    "value", ["", "nan", "abc", 121.0, -1.0, float("nan"), float("inf"), (1.0, 2.0), ("1", "x"), ()]
)
def test_the_gate_names_keyword_value_and_range_but_no_patient(value: Fact) -> None:
    instance = with_facts(KVP=value, PatientName="Doe^Jane", PatientID="4711", InstanceNumber=3.0)
    with pytest.raises(
        HeaderError, match=r"KVP is .* in instance number 3; wanted a number from 0 to 120"
    ) as caught:
        number(instance, "KVP", 0, 120)
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_the_gate_refuses_a_wrong_count() -> None:
    with pytest.raises(HeaderError, match="wanted 2 numbers"):
        numbers(with_facts(PixelSpacing=1.0), "PixelSpacing", 2, 0, 10)


def test_facts_are_json_as_they_are(tmp_path: Path) -> None:
    facts = dict(received([written(tmp_path)])[0].facts)
    again = {
        k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(json.dumps(facts)).items()
    }
    assert again == facts


def test_a_uid_written_as_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="StudyInstanceUID is .*written as FD"):
        facts_with(tmp_path, "StudyInstanceUID", b"1.2.3.45", "FD")


def test_a_data_set_that_ends_too_early_for_pydicom_is_the_objects_fault(tmp_path: Path) -> None:
    """pydicom says it with an OSError; a node that took it for the disk's would try for ever."""
    path = written(tmp_path)
    set_raw(path, "ReferencedImageSequence", b"\xfe\xff\x00\xe0\x08\x00\x00\x00" + b"\x08\x00" * 3)
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x40\x11SQ") + 8
    path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 : at + 18])
    with pytest.raises(HeaderError, match="no readable data set"):
        received([path])


@pytest.mark.parametrize("keyword", ["RescaleSlope", "PixelSpacing"])
def test_a_name_in_the_place_of_a_number_is_not_quoted(keyword: str) -> None:
    with pytest.raises(HeaderError, match=f"{keyword} is text of 8 characters") as raised:
        number(with_facts(**{keyword: "Doe^John"}), keyword, 0.0, 1.0)
    assert "Doe" not in str(raised.value)
