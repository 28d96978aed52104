"""The node as a sender: C-STORE, its receipts, and what travels in which syntax."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless
from pynetdicom import evt

from node.dicom import scu
from node.dicom.wire import connection_of
from node.domain.errors import PeerRejected, PeerUnreachable
from node.domain.peer import Network, Peer, Receipt
from node.testing.archive import Archive, Faults
from node.testing.series import SeriesSpec, save
from tests.dicom.callers import (
    EXPLICIT,
    IMPLICIT,
    MR,
    Shelf,
    archive_at,
    images,
    listening,
    misbehaving,
)

NETWORK = Network("NODE", connect_timeout_s=2.0, answer_timeout_s=5.0)
HASTY = Network("NODE", connect_timeout_s=1.0, answer_timeout_s=0.5)


def delivered(archive: Archive, files: list[Path]) -> list[Receipt]:
    return list(scu.store(NETWORK, archive_at(archive), files))


def test_store_gives_one_receipt_each_in_order(archive: Archive, tmp_path: Path) -> None:
    sent = images(4)
    receipts = delivered(archive, save(sent, tmp_path))
    assert [receipt.sop_instance_uid for receipt in receipts] == archive.stored
    assert archive.stored == [image.SOPInstanceUID for image in sent]
    assert all(receipt.accepted and receipt.status == 0 for receipt in receipts)


def test_a_file_travels_as_the_bytes_it_has(tmp_path: Path) -> None:
    shelf, (path,) = Shelf(), save(images(1), tmp_path)
    with listening(shelf, [], accept_unknown=True) as scp:
        list(scu.store(NETWORK, Peer("node", "NODE", "127.0.0.1", scp.port), [path]))
    assert path.read_bytes().endswith(bytes(shelf.received[0].dataset))


def test_all_files_share_one_association(tmp_path: Path) -> None:
    shelf = Shelf()
    with listening(shelf, [], accept_unknown=True) as scp:
        peer = Peer("node", "NODE", "127.0.0.1", scp.port)
        assert len(list(scu.store(NETWORK, peer, save(images(5), tmp_path)))) == 5
    assert len(shelf.outcomes) == 1


@pytest.mark.parametrize(
    ("status", "accepted", "retryable"),
    [
        (0x0000, True, False),
        (0x0111, True, False),
        (0xB000, True, False),
        (0xB006, True, False),
        (0xB007, True, False),
        (0xA700, False, True),
        (0xA900, False, False),
        (0xC000, False, False),
        (0x0122, False, False),
        (0x0124, False, False),
        (0x0110, False, False),
    ],
)
def test_the_peers_status_becomes_a_receipt(
    archive: Archive, tmp_path: Path, status: int, accepted: bool, retryable: bool
) -> None:
    archive.faults = Faults(statuses={1: status})
    first, second = delivered(archive, save(images(2), tmp_path))
    assert (first.accepted, first.retryable) == (accepted, retryable)
    assert first.status == status
    assert bool(first.reason) is (status != 0)
    # One refusal does not stop the others.
    assert second.accepted


def test_a_broken_association_is_unreachable_and_earlier_receipts_stand(
    archive: Archive, tmp_path: Path
) -> None:
    archive.faults = Faults(abort_at=3)
    receipts = []
    with pytest.raises(PeerUnreachable, match="did not answer C-STORE"):
        for receipt in scu.store(NETWORK, archive_at(archive), save(images(4), tmp_path)):
            receipts.append(receipt)
    assert [receipt.accepted for receipt in receipts] == [True, True]
    assert len(archive.stored) == 2


def test_a_peer_that_leaves_between_two_objects_is_unreachable(tmp_path: Path) -> None:
    with Archive() as archive:
        receipts = scu.store(NETWORK, archive_at(archive), save(images(3), tmp_path))
        assert next(receipts).accepted
        archive.stop()
        with pytest.raises(PeerUnreachable, match="ended the association"):
            list(receipts)


def test_a_rejected_association_raises(archive: Archive, tmp_path: Path) -> None:
    archive.faults = Faults(refuse=True)
    with pytest.raises(PeerRejected):
        delivered(archive, save(images(1), tmp_path))


def test_a_peer_that_falls_silent_is_unreachable_when_the_time_is_up(tmp_path: Path) -> None:
    done = threading.Event()

    def wait(event: evt.Event) -> int:
        done.wait(20.0)
        return 0x0000

    with misbehaving((evt.EVT_C_STORE, wait)) as peer:
        with pytest.raises(PeerUnreachable, match="took too long"):
            list(scu.store(HASTY, peer, save(images(1), tmp_path)))
        done.set()


def test_a_peer_that_stops_inside_a_pdu_is_unreachable_when_the_time_is_up(
    tmp_path: Path,
) -> None:
    done = threading.Event()

    def half(event: evt.Event) -> int:
        connection_of(event.assoc).sendall(b"\x04\x00\x00\x00")
        done.wait(20.0)
        return 0x0000

    with misbehaving((evt.EVT_C_STORE, half)) as peer:
        with pytest.raises(PeerUnreachable):
            list(scu.store(HASTY, peer, save(images(1), tmp_path)))
        done.set()


def test_closing_the_receipts_early_releases_the_association(
    archive: Archive, tmp_path: Path
) -> None:
    receipts = scu.store(NETWORK, archive_at(archive), save(images(3), tmp_path))
    assert next(receipts).accepted
    receipts.close()  # type: ignore[attr-defined]
    assert len(archive.stored) == 1


def test_files_that_are_no_dicom_get_a_receipt_in_their_place(
    archive: Archive, tmp_path: Path
) -> None:
    files = save(images(2), tmp_path)
    text = tmp_path / "readme.txt"
    text.write_text("hello")
    receipts = delivered(archive, [files[0], text, tmp_path / "absent", files[1]])
    assert [receipt.accepted for receipt in receipts] == [True, False, False, True]
    assert "readme.txt cannot be sent" in receipts[1].reason


def test_nothing_sendable_opens_no_association(tmp_path: Path) -> None:
    nobody = Peer("nobody", "X", "127.0.0.1", 1)
    assert list(scu.store(NETWORK, nobody, [])) == []
    (receipt,) = scu.store(NETWORK, nobody, [tmp_path / "absent"])
    assert not receipt.accepted


# Transfer syntaxes


def accepting(*syntaxes: str) -> object:
    """A storage server that takes MR images in these syntaxes only, and what it got."""

    def narrow(event: evt.Event) -> None:
        for context in event.assoc.acceptor.supported_contexts:
            if context.abstract_syntax == MR:
                context.transfer_syntax = list(syntaxes)

    return narrow


def taken(tmp_path: Path, image: Dataset, *syntaxes: str) -> tuple[Receipt, list[Dataset]]:
    """The receipt for an image at a peer that accepts these syntaxes, and what the peer got."""
    got: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        got.append(dataset)
        return 0x0000

    path = tmp_path / "image.dcm"
    image.save_as(path, enforce_file_format=True)
    handlers = [(evt.EVT_REQUESTED, accepting(*syntaxes)), (evt.EVT_C_STORE, keep)]
    with misbehaving(*handlers) as peer:
        (receipt,) = scu.store(NETWORK, peer, [path])
    return receipt, got


def compressed(syntax: str) -> Dataset:
    (image,) = images(1)
    image.compress(syntax, generate_instance_uid=False)
    return image


def test_explicit_becomes_implicit_for_a_peer_that_wants_it(tmp_path: Path) -> None:
    (image,) = images(1)
    receipt, (got,) = taken(tmp_path, image, IMPLICIT)
    assert receipt.accepted
    assert got.file_meta.TransferSyntaxUID == IMPLICIT
    # An implicit data set no longer says which type of word an ambiguous element has.
    values = [[str(element.value or "") for element in dataset] for dataset in (got, image)]
    assert values[0] == values[1]


def test_implicit_becomes_explicit_for_a_peer_that_wants_it(tmp_path: Path) -> None:
    (image,) = images(1, SeriesSpec(transfer_syntax_uid=IMPLICIT))
    receipt, (got,) = taken(tmp_path, image, EXPLICIT)
    assert receipt.accepted
    assert got.file_meta.TransferSyntaxUID == EXPLICIT
    assert got.PixelData == image.PixelData


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("wanted", [EXPLICIT, IMPLICIT])
def test_a_compressed_image_is_decompressed_as_the_same_instance(
    tmp_path: Path, syntax: str, wanted: str
) -> None:
    (image,) = images(1)
    receipt, (got,) = taken(tmp_path, compressed(syntax), wanted)
    assert receipt == Receipt(image.SOPInstanceUID, accepted=True)
    assert got.SOPInstanceUID == image.SOPInstanceUID
    assert got.file_meta.TransferSyntaxUID == wanted
    assert np.array_equal(got.pixel_array, image.pixel_array)


def test_a_compressed_image_stays_compressed_where_that_is_accepted(tmp_path: Path) -> None:
    image = compressed(RLELossless)
    receipt, (got,) = taken(tmp_path, image, EXPLICIT, RLELossless)
    assert receipt.accepted
    assert got.file_meta.TransferSyntaxUID == RLELossless
    assert got.PixelData == image.PixelData


def test_what_cannot_be_decoded_is_refused_in_words(tmp_path: Path) -> None:
    image = compressed(RLELossless)
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.107"  # HEVC: no decoder
    receipt, got = taken(tmp_path, image, EXPLICIT)
    assert got == []
    assert not receipt.accepted
    assert not receipt.retryable
    assert "accepts no MR Image Storage in HEVC" in receipt.reason
    assert "could not be changed" in receipt.reason


def test_a_syntax_that_is_not_accepted_and_cannot_change_is_refused_in_words(
    tmp_path: Path,
) -> None:
    (image,) = images(1, SeriesSpec(transfer_syntax_uid="1.2.840.10008.1.2.2"))
    receipt, got = taken(tmp_path, image, EXPLICIT)
    assert got == []
    assert "ask its administrator to enable it" in receipt.reason


def test_a_class_that_the_peer_does_not_store_is_refused_in_words(
    archive: Archive, tmp_path: Path
) -> None:
    private = "1.3.6.1.4.1.5962.1.1"
    (odd, good) = images(2)
    odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = private
    refused, accepted = delivered(archive, save([odd, good], tmp_path))
    assert accepted.accepted
    assert not refused.accepted
    assert private in refused.reason
    (alone,) = delivered(archive, save([odd], tmp_path / "alone"))
    assert not alone.accepted
    assert "accepts nothing of what was proposed" in alone.reason


def test_what_is_stored_reads_back_equal(archive: Archive, tmp_path: Path) -> None:
    (path,) = save(images(1), tmp_path)
    delivered(archive, [path])
    assert archive.instances[0].read() == dcmread(path)
