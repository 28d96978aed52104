"""Real series that the brain engine must refuse: the reason in words, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node import bundle
from node.config import load
from node.daemon import Node
from node.dicom.scu import echo
from node.domain.job import JobState
from node.domain.peer import Network, Peer
from node.site import Watcher
from node.story import tell
from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, Lookout, Plan, ended
from tests.places import unpacked


@dataclass(frozen=True)
class Site:
    """A running node with the brain engine, and its archive."""

    node: Node
    archive: Archive
    lookout: Lookout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    lookout = Lookout()
    with Archive() as archive:
        engine = bundle.find("mr-brain-lesion")
        config = load(Plan(engine, archive.port).write(tmp_path / "node"))
        with Node(config, Watcher(reached=lookout.reached)) as node:
            yield Site(node, archive, lookout)


@pytest.mark.parametrize(
    ("name", "studies", "reason"),
    [
        ("ct_head_gantry_tilt", 1, "not an MR series"),
        ("ct_abdomen_misnamed", 1, "not an MR series"),
        ("cxr_secondary_capture", 3, "not an MR series"),
        ("mr_liver_coronal", 1, "axial slices only"),
    ],
)
def test_the_brain_engine_refuses_with_its_reason_and_nothing_breaks(
    site: Site, tmp_path: Path, name: str, studies: int, reason: str
) -> None:
    folder = unpacked(name, tmp_path / "series")
    files = [path for path in folder.rglob("*") if _is_dicom(path)]
    send(sorted(files), Called("127.0.0.1", site.node.port, AE_TITLE, MODALITY))

    assert site.lookout.wait_for(lambda: ended(site.node, studies))
    with site.node.ledger.read() as books:
        rows = books.jobs.recent(10)
    assert len(rows) == studies
    for row in rows:
        assert row.job.state is JobState.REFUSED
        assert reason in row.reason
        (story,) = tell(site.node.ledger, row.job.study_uid)
        assert all(not verdict["accepted"] for job in story.jobs for verdict in job.verdicts)
    assert site.archive.stored == []
    own = Peer("node", AE_TITLE, "127.0.0.1", site.node.port)
    assert echo(Network(MODALITY), own).latency_ms < 5000


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[128:132] == b"DICM"
