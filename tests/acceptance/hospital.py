"""A small study, a tiny engine, and a configuration: what the acceptance tests have in common."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from node.daemon import Node
from node.domain.job import DeliveryState, JobState
from node.domain.stage import Stage
from node.testing.series import SeriesSpec, make
from tests import canary
from tests.engines.package import PARTS, brighter_than, package

DONE, REFUSED, FAILED = JobState.DONE, JobState.REFUSED, JobState.FAILED
AE_TITLE = "AINODE"
MODALITY = "MODALITY"
ARCHIVE = "ARCHIVE"
SPEC = SeriesSpec(
    spacing=(5.0, 1.0, 1.0),
    patient_id=canary.PATIENT_ID,
    patient_name=canary.PATIENT_NAME,
    birth_date=canary.BIRTH_DATE,
    accession_number=canary.ACCESSION,
)


def small_study(spec: SeriesSpec = SPEC, slices: int = 6) -> list[Dataset]:
    """Axial MR slices of 32 x 24 pixels with one bright box on the middle slices."""
    voxels = np.full((slices, 32, 24), 100, np.uint16)
    voxels[2:4, 8:20, 6:14] = 900
    return make(spec, voxels)


def tiny_engine(directory: Path) -> Path:
    """An engine package that finds what is brighter than 500."""
    folder = directory / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    brighter_than(folder / "model.onnx", 500.0)
    package(folder, *PARTS)
    (folder / "CARD.md").write_text("# Tiny\n\nFinds what is brighter than 500. For tests.\n")
    return folder


@dataclass(frozen=True, slots=True)
class Plan:
    """What a node's configuration says in these tests."""

    engine: Path
    archive_port: int
    port: int = 0
    quiet_period_s: float = 1.5
    extra: str = ""
    mode: str = "live"

    def write(self, directory: Path) -> Path:
        """Write ``node.toml``; the state goes beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "node.toml"
        path.write_text(
            f"""
[node]
ae_title = "{AE_TITLE}"
state = "state"
[scp]
bind = "127.0.0.1"
port = {self.port}
[jobs]
first_retry_s = 0.1
[delivery]
first_retry_s = 0.2
longest_retry_s = 1.0
[[peer]]
name = "modality"
ae_title = "{MODALITY}"
hosts = ["127.0.0.1"]
[[peer]]
name = "archive"
ae_title = "{ARCHIVE}"
host = "127.0.0.1"
port = {self.archive_port}
[[output]]
name = "seg"
kind = "seg"
[[output]]
name = "sr"
kind = "sr"
[[destination]]
name = "archive"
kind = "store"
peer = "archive"
[[engine]]
package = {json.dumps(str(self.engine))}
outputs = ["seg", "sr"]
destinations = ["archive"]
mode = "{self.mode}"
[[trigger]]
kind = "push"
quiet_period_s = {self.quiet_period_s}
{self.extra}
"""
        )
        return path


@dataclass(slots=True)
class Lookout:
    """Sees every stage that a node reaches, and waits for what a test waits for."""

    seen: list[Stage] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def reached(self, stage: Stage, subject: str) -> None:
        """The node's observer."""
        with self._changed:
            self.seen.append(stage)
            self._changed.notify_all()

    def wait_for(self, done: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Look after every stage; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(done, timeout_s)


def ended(node: Node, jobs: int = 1) -> bool:
    """Whether so many jobs have ended and no delivery waits."""
    with node.ledger.read() as books:
        rows = books.jobs.recent(100)
        over = [row for row in rows if row.job.state in (DONE, REFUSED, FAILED)]
        waiting = [
            delivery
            for row in over
            for delivery in books.deliveries.of_job(row.job.id)
            if delivery.state is DeliveryState.WAITING
        ]
    return len(over) >= jobs and not waiting
