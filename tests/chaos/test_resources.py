"""What a node needs runs out or goes wrong: it refuses in words, recovers, and loses nothing."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.dicom import scu
from node.domain.peer import Network, Peer
from node.testing.series import SeriesSpec, make, save
from tests.acceptance.hospital import AE_TITLE, MODALITY
from tests.chaos.course import Course
from tests.chaos.load import Modality, Sample, dataset_bytes
from tests.chaos.trial import Place
from tests.chaos.vault import Vault
from tests.chaos.zygote import set_clock

HOUR_S, YEAR_S = 3600.0, 365.25 * 86_400.0
_PATIENCE_S = 60.0


@contextmanager
def course_of(place: Place, name: str, samples: int = 1) -> Iterator[Course]:
    """A node that is killed at the end."""
    with Vault() as vault:
        course = place.course(place.pool[:samples], vault, name)
        try:
            yield course
        finally:
            course.ward.kill()


def finish(course: Course, resends: int = 0) -> None:
    """Everything must come to its end, nothing be lost, and no process end by itself."""
    course.settle()
    course.ward.kill()
    course.judge(resends)
    assert not course.outcome.faults
    assert not course.outcome.ended


def answers(course: Course) -> bool:
    """Whether the node answers a C-ECHO."""
    own = Peer("node", AE_TITLE, "127.0.0.1", course.ward.port)
    return scu.echo(Network(MODALITY), own).latency_ms > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def large_study(directory: Path) -> Sample:
    """64 MB in 32 slices."""
    voxels = np.full((32, 1024, 1024), 100, np.uint16)
    voxels[14:18, 300:340, 300:340] = 900
    datasets = make(SeriesSpec(study="large", spacing=(5.0, 0.25, 0.25)), voxels)
    paths = {
        str(dataset.SOPInstanceUID): path
        for dataset, path in zip(datasets, save(datasets, directory), strict=True)
    }
    contents = {uid: dataset_bytes(path) for uid, path in paths.items()}
    return Sample(str(datasets[0].StudyInstanceUID), paths, contents)


@pytest.mark.parametrize("watermark_mb", [4, 0])
def test_a_full_disk_refuses_and_room_on_it_is_enough_to_go_on(
    place: Place, small_disk: Path, tmp_path_factory: pytest.TempPathFactory, watermark_mb: int
) -> None:
    sample = large_study(tmp_path_factory.mktemp("large"))
    with Vault() as vault:
        there = replace(place, directory=small_disk, expected={sample.uid: set()})
        course = there.course([sample], vault, "full")
        config = course.ward.config
        config.write_text(
            config.read_text().replace("[scp]\n", f"[scp]\nwatermark_mb = {watermark_mb}\n")
        )
        try:
            course.ward.start()
            course.modality.send(course.ward.port)
            assert 0 < len(course.modality.acknowledged) < len(sample.files)
            assert set(course.modality.statuses) == {0x0000, 0xA700}
            assert answers(course)
            subprocess.run(["mount", "-o", "remount,size=512m", str(small_disk)], check=True)
            course.settle()
            assert vault.wait_for(lambda v: len(v.stored) >= 2, _PATIENCE_S)
        finally:
            course.ward.kill()
        course.judge(resends=0)
    assert not course.outcome.faults
    assert not course.outcome.ended


def test_a_node_without_file_descriptors_recovers_when_it_has_some(place: Place) -> None:
    with course_of(place, "descriptors") as course:
        course.ward.start()
        process = course.ward.bodies[""].process
        before = resource.prlimit(process, resource.RLIMIT_NOFILE)
        least = max(int(name) for name in os.listdir(f"/proc/{process}/fd")) + 2
        course.modality.network = Network(MODALITY, {}, 1.0, 1.0)
        for few in range(least, least + 12, 3):
            resource.prlimit(process, resource.RLIMIT_NOFILE, (few, before[1]))
            course.modality.send(course.ward.port)
        course.ward.until(lambda: course.arrived, 2.0)
        resource.prlimit(process, resource.RLIMIT_NOFILE, before)
        finish(course)


@pytest.mark.parametrize(
    "jump_s", [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S], ids=["+1h", "-1h", "+1y", "-1y"]
)
def test_a_clock_that_jumps_loses_nothing(place: Place, jump_s: float) -> None:
    with course_of(place, f"clock{jump_s:.0f}", samples=2) as course:
        clock = course.ward.config.with_name("clock")
        set_clock(clock, "0 1")
        course.ward.clock = str(clock)
        course.ward.start()
        half = Modality(course.modality.queue[:7], course.modality.acknowledged)
        half.send(course.ward.port)
        set_clock(clock, f"{jump_s} 1")
        finish(course)


@contextmanager
def locked(course: Course) -> Iterator[None]:
    """Another program has the ledger's write lock."""
    path = course.state / "ledger.sqlite"
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize("seconds", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_locked_ledger_holds_up_no_reception(place: Place, seconds: float) -> None:
    with course_of(place, f"locked-{seconds}") as course:
        course.ward.start()
        with locked(course):
            course.modality.send(course.ward.port)
            assert course.modality.done
            course.ward.until(lambda: False, seconds)
            assert answers(course)
        finish(course)


def _garbage(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(100)
        stream.write(os.urandom(path.stat().st_size - 100))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _gone(path: Path) -> None:
    for file in path.parent.glob("ledger.sqlite*"):
        file.unlink()


@pytest.mark.parametrize("alive", [False, True], ids=["at rest", "in use"])
@pytest.mark.parametrize("harm", [_garbage, _cut, _gone])
def test_a_ledger_that_is_lost_is_made_anew_from_the_spool(
    place: Place, harm: Callable[[Path], None], alive: bool, tmp_path: Path
) -> None:
    with course_of(place, tmp_path.name, samples=2) as course:
        course.ward.start()
        first, second = course.modality.queue[:5], course.modality.queue[5:]
        Modality(first, course.modality.acknowledged).send(course.ward.port)
        assert course.vault.wait_for(lambda v: len(v.stored) == 2, _PATIENCE_S)
        Modality(second[:3], course.modality.acknowledged).send(course.ward.port)
        if not alive:
            course.ward.kill()
        harm(course.state / "ledger.sqlite")
        course.settle()
        course.ward.kill()
        # Whether the first results were delivered only the ledger knew.
        course.judge(resends=4)
        assert not course.outcome.faults
