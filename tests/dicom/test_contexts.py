"""Presentation contexts: what we take, and what we propose."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pynetdicom import AllStoragePresentationContexts, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from node.dicom.contexts import (
    MOST_CONTEXTS,
    STORAGE_CLASSES,
    STUDY_ROOT_FIND,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    Label,
    Way,
    acceptable,
    proposals,
    read_label,
    way,
)
from node.domain.errors import HeaderError
from tests.dicom.callers import CT, EXPLICIT, IMPLICIT, MR, images

DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
BIG_ENDIAN = "1.2.840.10008.1.2.2"


def test_every_storage_class_that_pynetdicom_knows_is_taken() -> None:
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    assert known <= set(STORAGE_CLASSES)


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image, retired
        "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image, retired
        "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image, retired
    ],
)
def test_storage_classes_beyond_the_library_are_taken_and_served_as_storage(uid: str) -> None:
    assert uid in STORAGE_CLASSES
    assert uid_to_service_class(uid) is StorageServiceClass


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.1.20.1",  # Storage Commitment
        "1.2.840.10008.1.3.10",  # Media Storage Directory
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol: of no patient
    ],
)
def test_what_only_sounds_like_storage_is_not_taken(uid: str) -> None:
    assert uid not in STORAGE_CLASSES


def test_no_storage_class_is_listed_twice() -> None:
    assert len(set(STORAGE_CLASSES)) == len(STORAGE_CLASSES)


def test_every_standard_transfer_syntax_but_the_deflated_ones_is_taken() -> None:
    standard = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    deflated = {DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
    assert set(TRANSFER_SYNTAXES) == standard - deflated
    for expected in (
        "1.2.840.10008.1.2.4.107",  # HEVC video
        "1.2.840.10008.1.2.4.112",  # JPEG XL
        "1.2.840.10008.1.2.4.94",  # JPIP Referenced
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed
        "1.2.840.10008.1.2.4.203",  # HTJ2K
    ):
        assert expected in TRANSFER_SYNTAXES


@given(st.sampled_from(STORAGE_CLASSES), st.sampled_from(TRANSFER_SYNTAXES))
def test_any_storage_class_in_any_syntax_is_acceptable(abstract: str, syntax: str) -> None:
    (context,) = acceptable([build_context(abstract, [syntax])])
    assert (context.abstract_syntax, context.transfer_syntax) == (abstract, [syntax])


def test_a_deflated_proposal_is_not_acceptable() -> None:
    assert acceptable([build_context(CT, [DEFLATED])]) == []


def test_the_order_of_preference_is_the_proposers() -> None:
    (context,) = acceptable([build_context(CT, [JPEG_2000, DEFLATED, EXPLICIT])])
    assert context.transfer_syntax == [JPEG_2000, EXPLICIT]


def test_one_class_proposed_in_several_contexts_is_supported_in_all_their_syntaxes() -> None:
    (context,) = acceptable([build_context(CT, [JPEG_2000]), build_context(CT, [IMPLICIT])])
    assert context.transfer_syntax == [JPEG_2000, IMPLICIT]


def test_other_services_are_acceptable_only_when_named() -> None:
    proposed = [build_context(VERIFICATION, [IMPLICIT]), build_context(STUDY_ROOT_FIND, [IMPLICIT])]
    assert [str(c.abstract_syntax) for c in acceptable(proposed)] == [VERIFICATION]
    both = acceptable(proposed, (VERIFICATION, STUDY_ROOT_FIND))
    assert [str(c.abstract_syntax) for c in both] == [VERIFICATION, STUDY_ROOT_FIND]


def pairs(labels: list[Label]) -> list[tuple[str, str]]:
    return [(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in proposals(labels)]


def test_proposals_have_one_syntax_each_and_the_files_own_come_first() -> None:
    labels = [Label(CT, "1.1", JPEG_2000), Label(MR, "1.2", IMPLICIT), Label(CT, "1.3", JPEG_2000)]
    assert all(len(context.transfer_syntax) == 1 for context in proposals(labels))
    assert pairs(labels) == [
        (CT, JPEG_2000),
        (MR, IMPLICIT),
        (CT, EXPLICIT),
        (CT, IMPLICIT),
        (MR, EXPLICIT),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(STORAGE_CLASSES), st.sampled_from(TRANSFER_SYNTAXES)),
        min_size=1,
        max_size=200,
    )
)
def test_proposals_never_exceed_128_and_never_repeat(kinds: list[tuple[str, str]]) -> None:
    proposed = pairs([Label(abstract, "1.2", syntax) for abstract, syntax in kinds])
    assert len(proposed) <= MOST_CONTEXTS
    assert len(set(proposed)) == len(proposed)
    own = list(dict.fromkeys(kinds))[:MOST_CONTEXTS]
    assert proposed[: len(own)] == own


def test_the_own_syntaxes_come_before_any_fallback_when_there_are_too_many() -> None:
    labels = [Label(uid, "1.2", JPEG_2000) for uid in STORAGE_CLASSES[:100]]
    proposed = pairs(labels)
    assert len(proposed) == MOST_CONTEXTS
    assert proposed[:100] == [(uid, JPEG_2000) for uid in STORAGE_CLASSES[:100]]


@pytest.mark.parametrize(
    ("own", "accepted", "expected"),
    [
        (EXPLICIT, [EXPLICIT, IMPLICIT], Way.AS_IT_IS),
        (EXPLICIT, [IMPLICIT], Way.RECODED),
        (IMPLICIT, [EXPLICIT], Way.RECODED),
        (DEFLATED, [EXPLICIT], Way.RECODED),
        (JPEG_2000, [JPEG_2000, EXPLICIT], Way.AS_IT_IS),
        (JPEG_2000, [IMPLICIT], Way.DECOMPRESSED),
        (JPEG_2000, [], None),
        (BIG_ENDIAN, [EXPLICIT, IMPLICIT], None),
        (BIG_ENDIAN, [BIG_ENDIAN], Way.AS_IT_IS),
        ("1.3.6.1.4.1.5962.300.1", [EXPLICIT], None),  # private
    ],
)
def test_the_way_of_a_file(own: str, accepted: list[str], expected: Way | None) -> None:
    agreed = {(CT, syntax) for syntax in accepted} | {(MR, own)}
    assert way(Label(CT, "1.2", own), agreed) is expected


def test_a_label_is_read_without_the_data_set(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    (image,) = images(1)
    image.save_as(path, enforce_file_format=True)
    head = path.read_bytes()[:500]
    path.write_bytes(head[: head.index(b"\x08\x00\x05\x00")])
    assert read_label(path) == Label(MR, image.SOPInstanceUID, EXPLICIT)


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM", b"\0" * 4000])
def test_a_file_without_a_label_is_a_header_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=r"odd\.dcm cannot be sent"):
        read_label(path)
    with pytest.raises(HeaderError):
        read_label(tmp_path / "absent.dcm")


def test_a_file_that_cannot_be_read_for_now_is_not_called_unreadable() -> None:
    # Linux answers EIO to who reads at the beginning of this one, as a failing disk would.
    with pytest.raises(OSError, match="Input/output error"):
        read_label(Path("/proc/self/mem"))
