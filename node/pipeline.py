"""One job, from the study in the ledger to results frozen on disk. The tour starts here.

::

    Study -> Selection -> {role: Volume} -> [Finding] -> Assessment -> [Dataset] -> [Frozen]
             selection    dicom.pixels      engine                     outputs,     spool
                                                                       conformance

``run`` is the only orchestration. It sends nothing and writes nothing to the ledger: the worker
records the outcome, the courier delivers what was frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydicom.dataset import Dataset

from node.bundle import Bundle
from node.conformance import gate
from node.dicom import pixels
from node.dicom.attribution import refuse_stranger
from node.dicom.headers import read_source
from node.domain.computation import Computation
from node.domain.errors import NotAssessable
from node.domain.finding import Assessment, Predecessor
from node.domain.job import Job
from node.domain.stage import Reached, Stage
from node.domain.study import Study
from node.domain.volume import Volume
from node.findings import Found
from node.outputs import Output, Source
from node.selection import Choice, Selection, select
from node.spool import Frozen, Spool


class Examiner(Protocol):
    """What finds something in volumes: a loaded engine, or the ladder that it stands on."""

    def examine(
        self,
        volumes: Mapping[str, Volume],
        job_id: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> Found:
        """The findings, and in words what was left out. Raises InferenceError."""

    def close(self) -> None:
        """Give back what the networks hold."""


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine as configured: the loaded network, and what is made of its findings.

    A ``shadow`` engine's results are made and kept as a live one's are, and none is ever sent: no
    delivery of them is entered, and turning the engine live later enters none either. Which of the
    two it is does not change a result's content, so it is no part of a job's identity: what was
    assessed in shadow is not computed again. A study that comes after the change is another
    content and so another job, whose results are delivered. What counts is the mode in which the
    results were made, also where a crash parts their making from their entry in the ledger.
    """

    bundle: Bundle
    engine: Examiner
    outputs: Mapping[str, Output]
    destinations: tuple[str, ...]
    config_digest: str
    report_refusals: bool = False
    priority: int = 0
    runtime: str = ""
    """The kind of runtime that computes the network."""
    shadow: bool = False
    computed: Callable[[], Computation] | None = None
    """Says what has computed the last study; without it, nobody knows more than ``runtime``."""

    @property
    def computation(self) -> Computation:
        """What has computed the last study."""
        return self.computed() if self.computed is not None else Computation(self.runtime)

    @property
    def recipients(self) -> tuple[str, ...]:
        """The destinations that get what is made now."""
        return () if self.shadow else self.destinations


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run may touch. ``stopwatch`` gives seconds from any fixed point."""

    spool: Spool
    stopwatch: Callable[[], float]
    reached: Reached
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job. ``refusal`` is empty when the study was assessed.

    ``trace`` is what ``why`` prints: verdicts per series, stage times in seconds, findings.
    """

    results: tuple[Frozen, ...]
    refusal: str
    trace: Mapping[str, Any]


def run(
    job: Job, study: Study, setup: Setup, tools: Tools, predecessors: tuple[Predecessor, ...] = ()
) -> Outcome:
    """Assess a study. Raises NodeError; then nothing was frozen that counts."""
    laps = _Laps(tools, job.id)
    blank = Assessment(job.id, setup.bundle.algorithm(), job.created_at, predecessors=predecessors)
    selection = select(study, setup.bundle.wanted)
    laps.end(Stage.SELECTED)
    if selection.refusal:
        return _refuse(blank, study, selection, setup, tools, laps)

    volumes = {role: pixels.load(choice.geometry) for role, choice in selection.chosen.items()}
    laps.end(Stage.LOADED)

    try:
        found = setup.engine.examine(volumes, job.id, tools.progress)
    except NotAssessable as error:
        return _refuse(blank, study, replace(selection, refusal=str(error)), setup, tools, laps)
    computation = setup.computation
    laps.end(Stage.INFERRED)

    source = _source(_reference(selection, setup))
    assessment = replace(_computed(blank, computation), findings=found.findings)
    objects = _encode(assessment, source, setup)
    laps.end(Stage.ENCODED)

    contents = _check(objects, source, study)
    laps.end(Stage.CHECKED)

    results = _freeze(job.id, objects, contents, tools)
    laps.end(Stage.RESULT_FROZEN)
    return Outcome(results, "", _trace(selection, found, laps) | _ran(setup, computation))


def _computed(blank: Assessment, computation: Computation) -> Assessment:
    """What ran is named among the algorithm's parameters, in every object (PS3.16 TID 4019)."""
    stated = (blank.algorithm.parameters, str(computation))
    parameters = "; ".join(words for words in stated if words)
    return replace(blank, algorithm=replace(blank.algorithm, parameters=parameters))


def _ran(setup: Setup, computation: Computation) -> dict[str, Any]:
    return {"computation": str(computation), "shadow": setup.shadow}


def _refuse(
    blank: Assessment, study: Study, selection: Selection, setup: Setup, tools: Tools, laps: _Laps
) -> Outcome:
    """No series fits. Where the configuration wants it, a report says so to the reader."""
    trace = _trace(selection, Found(()), laps) | {"shadow": setup.shadow}
    if not setup.report_refusals:
        return Outcome((), selection.refusal, trace)
    headers = read_source([instance.path for instance in study.instances])
    source = Source(headers, None)
    objects = _encode(replace(blank, refusal=selection.refusal), source, setup)
    results = _freeze(blank.job_id, objects, _check(objects, source, study), tools)
    return Outcome(results, selection.refusal, trace)


def _reference(selection: Selection, setup: Setup) -> Choice:
    """The series on whose grid the findings lie: that of the manifest's first role."""
    return selection.chosen[setup.bundle.wanted[0].role]


def _source(choice: Choice) -> Source:
    paths = [instance.path for instance in choice.geometry.instances]
    return Source(read_source(paths), choice.geometry.grid)


def _encode(assessment: Assessment, source: Source, setup: Setup) -> dict[str, Dataset]:
    """Every output in the configured order; a later one may refer to an earlier one's object."""
    made: dict[str, Dataset] = {}
    for name, output in setup.outputs.items():
        encoded = output.encode(assessment, source, tuple(made.values()))
        if encoded is not None:
            made[name] = encoded
    return made


def _check(objects: Mapping[str, Dataset], source: Source, study: Study) -> dict[str, bytes]:
    """The finished bytes of every object that passes the conformance gate; all must pass.

    Their identity is compared twice: with the images on the disk, and with the ledger.
    """
    contents: dict[str, bytes] = {}
    earlier: list[Dataset] = []
    for name, encoded in objects.items():
        contents[name] = gate(encoded, source.headers, earlier)
        refuse_stranger(contents[name], study)
        earlier.append(encoded)
    return contents


def _freeze(
    job: str, objects: Mapping[str, Dataset], contents: Mapping[str, bytes], tools: Tools
) -> tuple[Frozen, ...]:
    results: list[Frozen] = []
    for name, made in objects.items():
        uids = (str(made.SOPInstanceUID), str(made.SOPClassUID))
        results.append(tools.spool.freeze(job, name, contents[name], uids))
        tools.reached(Stage.RESULT_WRITTEN, made.SOPInstanceUID)
    return tuple(results)


def _trace(selection: Selection, found: Found, laps: _Laps) -> dict[str, Any]:
    return {
        "series": [
            {
                "role": verdict.role,
                "label": verdict.label,
                "series_uid": verdict.series_uid,
                "accepted": verdict.accepted,
                "words": list(verdict.words),
            }
            for verdict in selection.trace
        ],
        "chosen": {role: choice.series.uid for role, choice in selection.chosen.items()},
        "findings": [
            {
                "tracking_id": finding.tracking_id,
                "measurements": {m.name.meaning: m.value for m in finding.measurements},
            }
            for finding in found.findings
        ],
        "notes": list(found.notes),
        "stages": laps.seconds,
    }


class _Laps:
    """Times each stage and tells the observer when it ends."""

    def __init__(self, tools: Tools, job: str) -> None:
        self.seconds: dict[str, float] = {}
        self._tools = tools
        self._job = job
        self._since = tools.stopwatch()

    def end(self, stage: Stage) -> None:
        now = self._tools.stopwatch()
        self.seconds[stage.value] = round(now - self._since, 4)
        self._since = now
        self._tools.reached(stage, self._job)
