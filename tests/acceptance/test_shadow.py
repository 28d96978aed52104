"""Shadow mode: an engine works as it would, and nobody is sent anything of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.cli.study import page
from node.config import load
from node.daemon import Node
from node.domain.job import JobState
from node.ledger import Ledger
from node.ledger.jobs import JobRow
from node.site import Watcher
from node.story import tell
from node.testing.archive import Archive
from node.testing.modality import Called, send
from node.testing.series import SeriesSpec
from tests.acceptance.hospital import (
    AE_TITLE,
    MODALITY,
    SPEC,
    Lookout,
    Plan,
    ended,
    small_study,
    tiny_engine,
)

OTHER = replace(SPEC, study="another")


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive("ARCHIVE") as archive:
        yield archive


def run(config: Path, studies: list[list[Dataset]], jobs: int) -> None:
    """A node runs until so many jobs have ended and nothing waits to be delivered."""
    lookout = Lookout()
    with Node(load(config), Watcher(reached=lookout.reached)) as node:
        for datasets in studies:
            send(datasets, Called("127.0.0.1", node.port, AE_TITLE, MODALITY))
        assert lookout.wait_for(lambda: ended(node, jobs))


@contextmanager
def ledger_of(config: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(config.parent / "state/ledger.sqlite")
    try:
        yield ledger
    finally:
        ledger.close()


def jobs_of(config: Path, spec: SeriesSpec) -> tuple[JobRow, ...]:
    with ledger_of(config) as ledger, ledger.read() as books:
        return books.jobs.of_study(spec.study_uid)


def why(config: Path, spec: SeriesSpec) -> str:
    """The page that ``ai-node why`` prints."""
    with ledger_of(config) as ledger:
        (story,) = tell(ledger, spec.study_uid)
    return "\n".join(page(story))


def test_what_is_made_in_shadow_is_kept_and_visible_and_never_sent(
    tmp_path: Path, archive: Archive
) -> None:
    plan = Plan(tiny_engine(tmp_path), archive.port, quiet_period_s=0.5, mode="shadow")
    shadow = plan.write(tmp_path / "node")
    run(shadow, [small_study()], jobs=1)
    (row,) = jobs_of(shadow, SPEC)
    assert row.job.state is JobState.DONE
    assert archive.stored == []
    kept = sorted((tmp_path / "node/state/spool/results" / row.job.id).glob("*.dcm"))
    assert [dcmread(path).Modality for path in kept] == ["SEG", "SR"]

    said = why(shadow, SPEC)
    assert "in shadow: what was made is kept in the state folder, and none of it is sent" in said
    assert "shadow: tester: in shadow: 2 objects are kept, and none is sent" in said
    assert "computed by ONNX Runtime" in said
    assert "found tester Lesion 1" in said

    # Live later: neither by itself nor when the study is sent again, but the next study's are sent.
    live = replace(plan, mode="live").write(tmp_path / "node")
    run(live, [small_study(), small_study(OTHER)], jobs=2)
    assert len(jobs_of(live, SPEC)) == 1
    delivered = [one.read() for one in archive.instances]
    assert [one.StudyInstanceUID for one in delivered] == [OTHER.study_uid] * 2
    assert len(archive.stored) == 2


def test_a_report_that_replaces_one_of_shadow_names_no_predecessor_that_nobody_has(
    tmp_path: Path, archive: Archive
) -> None:
    plan = Plan(tiny_engine(tmp_path), archive.port, quiet_period_s=0.5, mode="shadow")
    run(plan.write(tmp_path / "node"), [small_study(slices=5)], jobs=1)
    live = replace(plan, mode="live").write(tmp_path / "node")
    run(live, [small_study(slices=6)], jobs=2)
    first, second = jobs_of(live, SPEC)
    assert second.job.supersedes == first.job.id
    (report,) = [one.read() for one in archive.instances if one.read().Modality == "SR"]
    assert "PredecessorDocumentsSequence" not in report


def test_results_of_shadow_are_not_sent_by_a_ledger_that_is_made_anew(
    tmp_path: Path, archive: Archive
) -> None:
    plan = Plan(tiny_engine(tmp_path), archive.port, quiet_period_s=0.5, mode="shadow")
    run(plan.write(tmp_path / "node"), [small_study()], jobs=1)
    for path in (tmp_path / "node/state").glob("ledger.sqlite*"):
        path.unlink()
    run(replace(plan, mode="live").write(tmp_path / "node"), [], jobs=1)
    assert archive.stored == []
