"""The node dies by SIGKILL at named stages; nothing acknowledged is lost, results come once."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.dicom import scu
from node.domain.errors import PeerError
from node.domain.peer import Network, Peer
from node.domain.stage import Stage
from node.ledger import Ledger
from node.testing.archive import Archive
from node.testing.series import save
from tests.acceptance.hospital import AE_TITLE, MODALITY, SPEC, Plan, small_study, tiny_engine
from tests.places import ROOT

STAGES = [
    (Stage.BYTES_WRITTEN, 3),
    (Stage.BYTES_DURABLE, 3),
    (Stage.INDEXED, 4),
    (Stage.STUDY_COMPLETE, 1),
    (Stage.JOB_CREATED, 1),
    (Stage.JOB_CLAIMED, 1),
    (Stage.LOADED, 1),
    (Stage.INFERRED, 1),
    (Stage.CHECKED, 1),
    (Stage.RESULT_FROZEN, 1),
    (Stage.JOB_FINISHED, 1),
    (Stage.DELIVERY_STARTED, 1),
    (Stage.RESULT_ACCEPTED, 1),
    (Stage.DELIVERY_RECORDED, 1),
]
PATIENCE_S = 60.0


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@contextmanager
def running(config: Path, *doom: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A node process and its port; its log goes beside its configuration."""
    command = [sys.executable, "-m", "tests.acceptance.doomed", str(config), *doom]
    with (
        config.with_name("log").open("a") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            yield process, _port(process)
        finally:
            process.kill()


def _port(process: subprocess.Popen[str]) -> int:
    """The port, once the node has said that it listens."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    line = process.stdout.readline() if ready else ""
    assert line, "the node ended or fell silent before it listened; see its log"
    return int(line)


def send_rest(files: dict[str, Path], port: int, acknowledged: set[str]) -> None:
    """What a modality does: send what has no acknowledgement yet; a broken association ends it."""
    node = Peer("node", AE_TITLE, "127.0.0.1", port)
    waiting = [path for uid, path in files.items() if uid not in acknowledged]
    try:
        for receipt in scu.store(Network(MODALITY), node, waiting):
            if receipt.accepted:
                acknowledged.add(receipt.sop_instance_uid)
    except PeerError:
        return


def saved_study(directory: Path) -> dict[str, Path]:
    """The files of the study by SOP Instance UID."""
    datasets = small_study()
    paths = save(datasets, directory / "study")
    return {str(d.SOPInstanceUID): path for d, path in zip(datasets, paths, strict=True)}


def expected_results(directory: Path, archive: Archive) -> set[str]:
    """SOP Instance UIDs of the results when nothing goes wrong."""
    config = Plan(tiny_engine(directory), archive.port).write(directory / "undisturbed")
    with running(config) as (_, port):
        send_rest(saved_study(directory), port, set())
        assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)
    return set(archive.stored)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    with Archive() as archive:
        return expected_results(tmp_path_factory.mktemp("undisturbed"), archive)


@pytest.mark.parametrize(("stage", "count"), STAGES, ids=lambda value: str(value))
def test_nothing_acknowledged_is_lost_and_results_arrive_once(
    tmp_path: Path, archive: Archive, undisturbed: set[str], stage: Stage, count: int
) -> None:
    config = Plan(tiny_engine(tmp_path), archive.port).write(tmp_path / "node")
    files, acknowledged = saved_study(tmp_path), set[str]()

    with running(config, stage.value, str(count)) as (process, port):
        send_rest(files, port, acknowledged)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL

    with running(config) as (_, port):
        send_rest(files, port, acknowledged)
        assert archive.wait_for(lambda a: set(a.stored) >= undisturbed, PATIENCE_S)

    assert acknowledged == set(files)
    ledger = Ledger.open(tmp_path / "node" / "state" / "ledger.sqlite")
    with ledger.read() as books:
        study = books.arrivals.study(SPEC.study_uid)
    ledger.close()
    assert {instance.sop_instance_uid for instance in study.instances} == acknowledged
    assert all(instance.path.is_file() for instance in study.instances)
    # The same objects as without the kill, each once; the one whose acceptance was never recorded
    # is sent again with the same UID and the same bytes.
    assert set(archive.stored) == undisturbed
    assert len(archive.instances) == len(undisturbed)
