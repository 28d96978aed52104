"""A hospital in one process: a modality, this node and an archive, on free loopback ports.

The study takes the way that a patient's takes, over real associations. ``node.inspection`` then
looks at what came back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.config import Config, frame, parse
from node.daemon import Node
from node.domain.errors import NodeError
from node.domain.job import DeliveryState, JobState
from node.domain.stage import Stage
from node.inspection import Check, Returned, draw, inspect
from node.site import Watcher
from node.testing.archive import Archive
from node.testing.modality import Called, send
from node.testing.phantom import study as phantom_study

DEFAULT_ENGINE = "mr-brain-lesion"

_QUIET_S = 1.0
"""Shorter than in a hospital: the demo's modality does not pause between series."""
_PATIENCE_S = 600.0
_AE_TITLE = "AINODE"
_MODALITY = "MODALITY"

Say = Callable[[str], None]


class NoStudy(NodeError):
    """A folder holds no DICOM image to send."""


@dataclass(frozen=True, slots=True)
class Options:
    """``study`` None: a generated phantom. ``directory`` gets the state and the overlay."""

    directory: Path
    study: Path | None = None
    engine: str = DEFAULT_ENGINE
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """An object that the archive received; ``path`` is where the archive keeps it."""

    sop_class: str
    sop_instance_uid: str
    path: Path
    engine: str


@dataclass(frozen=True, slots=True)
class Report:
    """What happened. ``stages`` are seconds; ``dice`` is for the phantom only."""

    received: int
    stages: dict[str, float]
    results: tuple[Result, ...]
    checks: tuple[Check, ...]
    overlay: Path | None
    dice: float | None = None

    @property
    def held(self) -> bool:
        """Whether everything that was checked held."""
        return all(check.ok for check in self.checks)


@dataclass(slots=True)
class _Clockwork:
    """When each stage was reached last, and a way to wait for the next one."""

    reached_at: dict[Stage, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def reached(self, stage: Stage, subject: str) -> None:
        with self.changed:
            self.reached_at[stage] = time.perf_counter()
            self.changed.notify_all()

    def between(self, first: Stage, last: Stage) -> float:
        """Seconds from one stage to another; 0 when either was not reached."""
        if first not in self.reached_at or last not in self.reached_at:
            return 0.0
        return self.reached_at[last] - self.reached_at[first]

    def wait_for(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Look after every stage. False when time ran out."""
        with self.changed:
            return self.changed.wait_for(done, timeout_s)


def run(
    options: Options,
    say: Say = lambda words: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Send a study, wait for the results, inspect them. Raises NodeError when nothing can run."""
    datasets, truth = _study(options)
    clockwork = _Clockwork()
    (options.directory / "archive").mkdir(parents=True, exist_ok=True)
    with Archive("ARCHIVE", options.directory / "archive") as archive:
        say(f"archive ARCHIVE listens on port {archive.port}")
        config = configuration(options, archive.port)
        watcher = Watcher(reached=clockwork.reached, progress=progress)
        with Node(config, watcher) as node:
            say(f"node {_AE_TITLE} listens on port {node.port}; sending {len(datasets)} instances")
            started = time.perf_counter()
            sent = send(datasets, Called("127.0.0.1", node.port, _AE_TITLE, _MODALITY))
            in_time = clockwork.wait_for(lambda: _over(node), _PATIENCE_S)
            ended = time.perf_counter()
            returned = _returned(node, archive, datasets, truth, in_time)
            checks, dice = inspect(returned)
            overlay = draw(returned, options.directory / "overlay.png")
    return Report(
        received=sent.accepted,
        stages=_stages(clockwork, returned, (started, ended, time.perf_counter())),
        results=tuple(
            Result(
                str(held.dataset.file_meta.MediaStorageSOPClassUID.name),
                str(held.dataset.SOPInstanceUID),
                held.path,
                returned.engine,
            )
            for held in archive.instances
            if held.path is not None
        ),
        checks=(Check("every instance acknowledged", sent.accepted == len(datasets)), *checks),
        overlay=overlay,
        dice=dice,
    )


def configuration(options: Options, archive_port: int) -> Config:
    """The demo's configuration: written as a file that a user could have written, and read back."""
    text = f"""
[node]
ae_title = "{_AE_TITLE}"
state = "state"
[scp]
bind = "127.0.0.1"
port = 0
[[peer]]
name = "modality"
ae_title = "{_MODALITY}"
hosts = ["127.0.0.1"]
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive_port}
[[trigger]]
kind = "push"
quiet_period_s = {_QUIET_S}
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
package = {json.dumps(options.engine)}
outputs = ["seg", "sr"]
destinations = ["archive"]
"""
    path = options.directory / "node.toml"
    path.write_text(text.lstrip(), encoding="utf-8")
    return frame(parse(text, str(path)))


def _study(options: Options) -> tuple[list[Dataset], NDArray[np.bool_] | None]:
    if options.study is None:
        made = phantom_study(options.seed)
        return list(made.datasets), made.lesion
    datasets = [
        dataset
        for path in sorted(options.study.rglob("*"))
        if path.is_file() and (dataset := _read(path)) is not None
    ]
    if not datasets:
        raise NoStudy(f"{options.study} holds no DICOM image; give a folder of Part 10 files")
    return datasets, None


def _read(path: Path) -> Dataset | None:
    try:
        dataset = dcmread(path)
    except InvalidDicomError:
        return None
    return dataset if "SOPInstanceUID" in dataset else None


def _over(node: Node) -> bool:
    """Whether every job has ended and every delivery has an answer."""
    with node.ledger.read() as books:
        jobs = books.jobs.recent(limit=100)
        if not jobs or any(row.job.state in (JobState.QUEUED, JobState.RUNNING) for row in jobs):
            return False
        rows = [row for job in jobs for row in books.deliveries.of_job(job.job.id)]
    return all(row.state is not DeliveryState.WAITING or row.attempts for row in rows)


def _returned(
    node: Node,
    archive: Archive,
    datasets: Sequence[Dataset],
    truth: NDArray[np.bool_] | None,
    in_time: bool,
) -> Returned:
    with node.ledger.read() as books:
        jobs = books.jobs.recent(limit=1)
        job = jobs[0] if jobs else None
        study = books.arrivals.study(job.job.study_uid) if job else None
    return Returned(
        sent=tuple(datasets),
        objects=tuple(held.read() for held in archive.instances),
        job=job,
        study=study,
        bundle=node.setups[job.job.engine].bundle if job else None,
        truth=truth,
        in_time=in_time,
    )


def _stages(
    clockwork: _Clockwork, returned: Returned, times: tuple[float, float, float]
) -> dict[str, float]:
    """Seconds per stage; the quiet period is silence that we chose to wait for."""
    started, ended, inspected = times
    received = clockwork.reached_at.get(Stage.BYTES_DURABLE, started) - started
    seconds = {
        "received": received,
        "complete (quiet period)": clockwork.between(Stage.BYTES_DURABLE, Stage.STUDY_COMPLETE),
        **(returned.job.trace.get("stages", {}) if returned.job else {}),
        "delivered": clockwork.between(Stage.JOB_FINISHED, Stage.DELIVERY_RECORDED),
        "inspected": inspected - ended,
        "total": inspected - started,
    }
    return {name: round(value, 3) for name, value in seconds.items()}
