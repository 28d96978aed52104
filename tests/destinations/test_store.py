"""Results to a PACS."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.destinations.store import Store
from node.dicom.contexts import VERIFICATION
from node.domain.errors import PeerError
from node.domain.peer import Network
from node.domain.proof import ProofPlan
from node.testing.archive import Archive, Faults
from node.testing.series import save
from tests.dicom.callers import archive_at, images


def test_results_reach_the_named_peer(tmp_path: Path) -> None:
    files = save(images(2), tmp_path)
    with Archive() as archive:
        network = Network("NODE", {"pacs": archive_at(archive)})
        receipts = list(Store("pacs").deliver(files, network))
    assert [receipt.sop_instance_uid for receipt in receipts] == archive.stored
    assert all(receipt.accepted for receipt in receipts)


def test_a_peer_of_no_such_name_is_a_clear_error(tmp_path: Path) -> None:
    network = Network("NODE", {})
    with pytest.raises(PeerError, match=r"no peer is named 'pacs' \(known: none\)"):
        list(Store("pacs").deliver(save(images(1), tmp_path), network))


def test_the_proof_is_what_the_configuration_wants() -> None:
    assert Store("pacs").plan == ProofPlan("auto", 10.0, 600.0, 2)
    assert Store("pacs", proof="commitment", proof_resends=0).plan.kind == "commitment"
    assert Store("pacs", proof="none").prover() is None
    with pytest.raises(ValueError, match="no proof is wanted"):
        _ = Store("pacs", proof="none").plan


def test_any_answer_to_a_probe_is_an_answer() -> None:
    with Archive(faults=Faults(unsupported=frozenset({VERIFICATION}))) as archive:
        Store("pacs").probe(Network("NODE", {"pacs": archive_at(archive)}))
