"""The receiver and DCMTK: a sender and a checker that nobody here wrote."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from node.domain.peer import Peer
from node.testing.series import SeriesSpec, save
from tests.dicom.callers import Shelf, images, listening
from tests.peers import echoscu, storescu
from tests.places import unpacked

pytestmark = pytest.mark.peer

DCMTK = Peer("dcmtk", "STORESCU", "127.0.0.1")


def data_set_of(path: Path) -> bytes:
    """The bytes of a Part 10 file after its file meta information."""
    meta = read_file_meta_info(path)
    # Preamble, prefix, the group length element itself, and what that counts.
    return path.read_bytes()[132 + 12 + meta.FileMetaInformationGroupLength :]


def sent(files: list[Path], *options: str) -> Shelf:
    shelf = Shelf()
    with listening(shelf, [DCMTK]) as scp:
        result = storescu(files, scp.port, "NODE", *options)
        assert result.returncode == 0, result.stderr
    return shelf


def test_echo_is_answered_to_peers_only() -> None:
    with listening(Shelf(), [DCMTK]) as scp:
        assert echoscu(scp.port, "NODE", "STORESCU")
        assert not echoscu(scp.port, "NODE", "SOMEBODY")
        assert not echoscu(scp.port, "OTHER", "STORESCU")


def test_what_dcmtk_sends_arrives_byte_for_byte(tmp_path: Path) -> None:
    files = save(images(5), tmp_path)
    shelf = sent([tmp_path])
    # storescu sends a folder in the order in which the file system lists it.
    assert {bytes(r.dataset) for r in shelf.received} == {data_set_of(file) for file in files}


def test_implicit_is_taken_as_implicit(tmp_path: Path) -> None:
    save(images(1, SeriesSpec(transfer_syntax_uid=ImplicitVRLittleEndian)), tmp_path)
    (received,) = sent([tmp_path], "-xi").received
    assert received.transfer_syntax_uid == ImplicitVRLittleEndian


def test_compressed_is_taken_as_it_is(tmp_path: Path) -> None:
    (image,) = images(1)
    image.compress(RLELossless, generate_instance_uid=False)
    (file,) = save([image], tmp_path)
    (received,) = sent([tmp_path], "-xr").received
    assert received.transfer_syntax_uid == RLELossless
    assert bytes(received.dataset) == data_set_of(file)


def test_a_sender_that_aborts_is_no_obstacle_for_the_next(tmp_path: Path) -> None:
    save(images(3), tmp_path)
    shelf = Shelf()
    with listening(shelf, [DCMTK]) as scp:
        storescu([tmp_path], scp.port, "NODE", "--abort")
        assert storescu([tmp_path], scp.port, "NODE").returncode == 0
    assert len(shelf.received) == 6


def test_a_real_series_arrives_with_every_value(tmp_path: Path) -> None:
    folder = unpacked("mr_brain_gbm", tmp_path)
    images_ = [dcmread(file) for file in folder.rglob("*") if file.is_file()]
    expected = {str(image.SOPInstanceUID): image for image in images_}
    shelf = sent([folder], "-R")
    assert {received.sop_instance_uid for received in shelf.received} == set(expected)
    for received in shelf.received:
        # storescu writes sequence lengths anew, so the bytes are not the file's.
        assert received.transfer_syntax_uid == ExplicitVRLittleEndian
        arrived = read_dataset(BytesIO(received.dataset), False, True)
        assert arrived == Dataset(expected[received.sop_instance_uid])
