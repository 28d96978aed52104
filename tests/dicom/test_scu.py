"""The node as a caller."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt

from node.dicom import scu
from node.dicom.scu import FindQuery
from node.domain.errors import ContextRejected, StatusError
from node.domain.peer import Network, Peer
from node.testing.archive import Archive, Faults
from node.testing.series import SeriesSpec
from tests.dicom.callers import (
    Shelf,
    archive_at,
    images,
    listening,
    misbehaving,
)

NETWORK = Network("NODE", connect_timeout_s=2.0, answer_timeout_s=5.0)


# C-ECHO


def test_echo_measures_and_says_what_would_be_accepted(archive: Archive) -> None:
    answer = scu.echo(NETWORK, archive_at(archive))
    assert 0 < answer.latency_ms < 5000
    assert {offer.name: offer.accepted for offer in answer.offers} == {
        "Verification SOP Class": True,
        "Segmentation Storage": True,
        "Comprehensive 3D SR Storage": True,
        "Study Root Query/Retrieve Information Model - FIND": True,
        "Study Root Query/Retrieve Information Model - MOVE": True,
    }


def test_echo_names_what_a_peer_does_not_accept() -> None:
    with listening(Shelf(), [], accept_unknown=True) as scp:
        answer = scu.echo(NETWORK, Peer("node", "NODE", "127.0.0.1", scp.port))
    refused = {offer.name: offer.answer for offer in answer.offers if not offer.accepted}
    assert set(refused.values()) == {"Abstract Syntax Not Supported"}
    assert len(refused) == 2


def test_echo_of_a_peer_that_answers_a_failure_is_a_status_error() -> None:
    with (
        misbehaving((evt.EVT_C_ECHO, lambda event: 0x0210)) as peer,
        pytest.raises(StatusError, match="0x0210") as caught,
    ):
        scu.echo(NETWORK, peer)
    assert caught.value.status == 0x0210


# C-FIND


@pytest.fixture
def stocked(archive: Archive) -> Archive:
    for study, day, modality, description in (
        ("one", "20260501", "MR", "Brain FLAIR"),
        ("two", "20260502", "MR", "Knee"),
        ("three", "20260503", "CT", "Brain"),
    ):
        spec = SeriesSpec(
            study=study,
            study_date=day,
            study_description=description,
            accession_number=f"ACC-{study}",
            extra={"Modality": modality},
        )
        for image in images(2, spec):
            archive.hold(image)
    return archive


def found(archive: Archive, **keys: object) -> list[str]:
    query = FindQuery(**keys)  # type: ignore[arg-type]
    return [match.accession for match in scu.find(NETWORK, archive_at(archive), query)]


MAY_2 = datetime.date(2026, 5, 2)


@pytest.mark.parametrize(
    ("keys", "studies"),
    [
        ({}, ["one", "two", "three"]),
        ({"modality": "MR"}, ["one", "two"]),
        ({"date_from": MAY_2}, ["two", "three"]),
        ({"date_to": MAY_2}, ["one", "two"]),
        ({"date_from": MAY_2, "date_to": MAY_2}, ["two"]),
        ({"accession": "ACC-three"}, ["three"]),
        ({"description": "Brain*"}, ["one", "three"]),
        ({"description": "Brain*", "modality": "CT"}, ["three"]),
        ({"accession": "ACC-four"}, []),
    ],
)
def test_find_gives_the_studies_that_fit(
    stocked: Archive, keys: dict[str, object], studies: list[str]
) -> None:
    expected = [f"ACC-{study}" for study in studies]
    assert found(stocked, **keys) == expected
    # The same from a peer that does not look at the optional keys.
    stocked.faults = Faults(ignored=frozenset({"ModalitiesInStudy", "StudyDescription"}))
    assert found(stocked, **keys) == expected


def test_a_match_has_what_the_peer_told(stocked: Archive) -> None:
    (match,) = scu.find(NETWORK, archive_at(stocked), FindQuery(accession="ACC-one"))
    assert (match.date, match.time) == ("20260501", "101500")
    assert (match.modalities, match.description, match.instances) == (("MR",), "Brain FLAIR", 2)


def test_a_study_is_found_by_its_uid(stocked: Archive) -> None:
    uid = stocked.instances[0].dataset.StudyInstanceUID
    (match,) = scu.find(NETWORK, archive_at(stocked), FindQuery(study_uid=uid))
    assert match.study_uid == uid


@pytest.mark.parametrize(
    ("character_set", "description"),
    [
        ("ISO_IR 192", "头部 MRI"),
        ("ISO_IR 100", "Schädel"),
        ("ISO_IR 144", "Голова"),
        ("GB18030", "头部"),
    ],
)
def test_words_of_any_script_are_asked_and_understood(
    archive: Archive, character_set: str, description: str
) -> None:
    spec = SeriesSpec(
        character_set=character_set,
        patient_name="X",
        study_description=description,
        accession_number="A",
    )
    archive.hold(images(1, spec)[0])
    (match,) = scu.find(NETWORK, archive_at(archive), FindQuery(description=description))
    assert match.description == description


def answering(*answers: tuple[int, Dataset | None]) -> object:
    def handle(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from answers

    return handle


def test_a_failed_find_is_a_status_error() -> None:
    with Archive() as archive:
        peer = archive_at(archive)
        assert archive._server is not None
        archive._server.bind(evt.EVT_C_FIND, answering((0xA700, None)))
        with pytest.raises(StatusError, match="C-FIND with 0xa700") as caught:
            scu.find(NETWORK, peer, FindQuery())
    assert caught.value.transient


def test_a_peer_without_query_service_is_named_as_such() -> None:
    with listening(Shelf(), [], accept_unknown=True) as scp:
        peer = Peer("node", "NODE", "127.0.0.1", scp.port)
        with pytest.raises(ContextRejected, match="FIND"):
            scu.find(NETWORK, peer, FindQuery())


# C-MOVE


def test_move_brings_a_study_to_the_ae_title(stocked: Archive) -> None:
    shelf = Shelf()
    uid = stocked.instances[0].dataset.StudyInstanceUID
    with listening(shelf, [Peer("pacs", "ARCHIVE", "127.0.0.1")]) as scp:
        stocked.destinations["NODE"] = ("127.0.0.1", scp.port)
        result = scu.move(NETWORK, archive_at(stocked), uid, "NODE")
        assert (result.completed, result.failed, result.warning) == (2, 0, 0)
        # A C-MOVE is done when its C-STOREs are.
        assert len(shelf.received) == 2
    assert {received.calling_ae for received in shelf.received} == {"ARCHIVE"}


def test_what_could_not_be_moved_is_counted(stocked: Archive) -> None:
    uid = stocked.instances[0].dataset.StudyInstanceUID
    with Archive("NODE", faults=Faults(statuses={2: 0xA700})) as node:
        stocked.destinations["NODE"] = ("127.0.0.1", node.port)
        result = scu.move(NETWORK, archive_at(stocked), uid, "NODE")
    assert (result.completed, result.failed) == (1, 1)


def test_an_unknown_destination_is_explained(stocked: Archive) -> None:
    uid = stocked.instances[0].dataset.StudyInstanceUID
    with pytest.raises(StatusError, match="does not know the move destination NOBODY") as caught:
        scu.move(NETWORK, archive_at(stocked), uid, "NOBODY")
    assert caught.value.status == 0xA801
