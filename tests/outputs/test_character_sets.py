"""A patient's name leaves in the bytes in which it came, whatever its character set."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from node.conformance import gate
from node.dicom.source import Source
from node.outputs import OUTPUTS
from node.testing.series import SeriesSpec
from tests.results import assessment, of_algorithm, reread, source, written

NAMES: list[tuple[str | list[str], str, str]] = [
    ("ISO_IR 6", "Smith^John", "Chest"),
    ("ISO_IR 100", "Müller^Jürgen", "Schädel"),
    ("ISO_IR 101", "Wałęsa^Łucja", "Głowa"),
    ("ISO_IR 109", "Ċensu^Ġorġ", "Moħħ"),
    ("ISO_IR 110", "Bērziņš^Jānis", "Smadzeņu"),
    ("ISO_IR 144", "Люкceмбург^Пётр", "Голова"),
    ("ISO_IR 127", "قباني^لنزار", "دماغ"),
    ("ISO_IR 126", "Διονυσίου^Ελένη", "Εγκέφαλος"),
    ("ISO_IR 138", "שרון^דבורה", "מוח"),
    ("ISO_IR 148", "Çavuşoğlu^İbrahim", "Baş"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "ﾉｳ"),
    ("ISO_IR 166", "สมชาย^ใจดี", "สมอง"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小东=ㄨㄤˊ", "頭部 Kopf голова"),
    ("GB18030", "Wang^XiaoDong=王^小东", "头部"),
    ("GBK", "Wang^XiaoDong=王^小东", "头部"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "頭部"),
    (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", "頭部"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "두부"),
    (["ISO 2022 IR 100", "ISO 2022 IR 144"], "Müller^Иван", "Schädel Голова"),
]
TEXTS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "StudyDescription",
    "ReferringPhysicianName",
    "AccessionNumber",
)


def as_sent(dataset: Dataset, keyword: str) -> bytes:
    """The bytes of a value as they stand in the object."""
    element = dataset.get_item(keyword)
    assert isinstance(element, RawDataElement)
    return element.value or b""


def sent(character_set: str | list[str], name: str, words: str) -> Source:
    extra = {"ReferringPhysicianName": name, "IssuerOfPatientID": words}
    return source(
        SeriesSpec(
            character_set=character_set, patient_name=name, study_description=words, extra=extra
        )
    )


def results(images: Source, finished: bool = True) -> list[Dataset]:
    """Every kind of object, through the gate, as its reader sees it."""
    outcome, made = assessment(), list[Dataset]()
    for output in OUTPUTS.values():
        dataset = output().encode(outcome, images, made)
        assert dataset is not None
        content = gate(dataset, images.headers, made) if finished else written(dataset)
        made.append(dcmread(BytesIO(content)))
    return made


@pytest.mark.parametrize(("character_set", "name", "words"), NAMES, ids=lambda part: str(part))
def test_names_leave_in_the_bytes_in_which_they_came(
    character_set: str | list[str], name: str, words: str
) -> None:
    images = sent(character_set, name, words)
    wanted = {keyword: as_sent(images.headers[0], keyword) for keyword in TEXTS}
    for result in results(images):
        assert result.SpecificCharacterSet == images.headers[0].SpecificCharacterSet
        assert {keyword: as_sent(result, keyword) for keyword in TEXTS} == wanted
        assert str(result.PatientName) == name
        assert result.StudyDescription == words


LETTERS = {
    "ISO_IR 101": "ĄĘŁŚŹąęłśźčď",
    "ISO_IR 144": "АБВГДЕЖабвгдеж",
    "ISO_IR 126": "ΑΒΓΔαβγδςώ",
    "ISO_IR 138": "אבגדהוז",
    "ISO_IR 192": "äЖωאあ王홍สŁ",
    "GB18030": "王张李小东赵䶮",
}


@settings(max_examples=25)
@given(st.data())
def test_any_name_of_a_character_set_survives(data: st.DataObject) -> None:
    character_set = data.draw(st.sampled_from(sorted(LETTERS)))
    part = st.text(st.sampled_from(LETTERS[character_set] + "ab -'"), min_size=1, max_size=12).map(
        lambda text: f"x{text}x"
    )
    name = "^".join(data.draw(st.lists(part, min_size=1, max_size=5)))
    images = sent(character_set, name, "words")
    wanted = as_sent(images.headers[0], "PatientName")
    for result in results(images):
        assert as_sent(result, "PatientName") == wanted
        assert str(result.PatientName) == name


CHINESE = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
"""The example of PS3.5 K.2, which pydicom neither writes nor reads so."""
DAMAGED = b"M\xfcll\xe9r^\xff\xfever"


def named(name: bytes, character_set: str | list[str] | None) -> Source:
    """Images with a name in bytes that no library has touched."""
    placeholder = "N" * len(name)
    headers = []
    for header in source(SeriesSpec(patient_name=placeholder)).headers:
        header.SpecificCharacterSet = character_set
        content = written(header).replace(placeholder.encode(), name)
        headers.append(dcmread(BytesIO(content)))
    return Source(tuple(headers), source().grid)


@pytest.mark.parametrize(
    ("name", "character_set"),
    [
        (CHINESE, ["", "ISO 2022 IR 58"]),
        (DAMAGED, "ISO_IR 192"),
        (DAMAGED, "ISO_IR 100"),
        (DAMAGED, "ISO 8859-1 or so"),
        (DAMAGED, None),
    ],
)
def test_bytes_that_no_library_would_write_are_carried_as_they_are(
    name: bytes, character_set: str | list[str] | None
) -> None:
    for result in results(named(name, character_set)):
        assert as_sent(result, "PatientName").rstrip() == name


def test_a_source_in_implicit_vr_is_carried_alike() -> None:
    spec = SeriesSpec(
        patient_name="Иванов^Пётр",
        character_set="ISO_IR 144",
        transfer_syntax_uid=ImplicitVRLittleEndian,
    )
    for result in results(source(spec)):
        assert as_sent(result, "PatientName") == "Иванов^Пётр ".encode("iso8859_5")


def test_a_header_that_was_read_before_is_carried_alike() -> None:
    images = sent("ISO_IR 144", "Иванов^Пётр", "Голова")
    for header in images.headers:
        str(header)
    for result in results(images):
        assert str(result.PatientName) == "Иванов^Пётр"
        assert result.StudyDescription == "Голова"


def test_text_in_sequences_survives_too() -> None:
    item = Dataset()
    item.PatientID, item.IssuerOfPatientID = "7", "Клиника"
    item.TypeOfPatientID = "TEXT"
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        images = source(
            SeriesSpec(
                character_set="ISO_IR 144",
                transfer_syntax_uid=syntax,
                extra={"OtherPatientIDsSequence": [item]},
            )
        )
        for result in results(images):
            assert result.OtherPatientIDsSequence[0].IssuerOfPatientID == "Клиника"


@pytest.mark.parametrize(
    ("character_set", "maker"),
    [
        ("ISO_IR 192", "Klinik Süd 王"),
        ("GB18030", "Klinik Süd 王"),
        ("ISO_IR 100", "Klinik Sud ?"),
        ("ISO_IR 144", "Klinik Sud ?"),
        (["", "ISO 2022 IR 87"], "Klinik Sud ?"),
        ("ISO_IR 13", "Klinik Sud ?"),
    ],
)
def test_an_engine_s_own_words_bend_to_the_patient_s_character_set(
    character_set: str | list[str], maker: str
) -> None:
    outcome = of_algorithm(assessment(), manufacturer="Klinik Süd 王")
    images = source(SeriesSpec(character_set=character_set))
    made: list[Dataset] = []
    for output in OUTPUTS.values():
        dataset = output().encode(outcome, images, made)
        assert dataset is not None
        gate(dataset, images.headers, made)
        made.append(reread(dataset))
        assert made[-1].Manufacturer == maker
        assert made[-1].ContributingEquipmentSequence[0].Manufacturer == maker
