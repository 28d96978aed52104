"""Results to a PACS."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.destinations.store import Store
from node.domain.errors import PeerError
from node.domain.peer import Network
from node.testing.archive import Archive
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
