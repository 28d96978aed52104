"""One engine on one study from a folder, without a network, a ledger or a running node.

The study goes through ``pipeline.run`` as a hospital's does: what is seen here is what a node would
send. Only where the files come from and where the results go is different.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.filereader import read_file_meta_info

from node import overlay
from node.bundle import Bundle
from node.dicom.headers import read_instance, reading
from node.domain.computation import Computation
from node.domain.errors import HeaderError, NodeError, SpoolError
from node.domain.job import Job, JobState, job_id
from node.domain.stage import Stage
from node.domain.study import Arrival, Instance, Study
from node.domain.volume import Volume
from node.engine import Engine
from node.engine import Progress as Progress
from node.findings import Found
from node.ladder import candidate_of
from node.outputs import OUTPUTS
from node.pipeline import Outcome, Setup, Tools, run
from node.runtimes import Runtime
from node.spool import Spool

PICTURE = "overlay.png"
_PREAMBLE = 128
_MARK = b"DICM"
_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies in a folder: studies by Study Instance UID, and in words what could not be read.

    ``strangers`` counts the files that are no DICOM at all.
    """

    studies: tuple[Study, ...]
    unread: tuple[str, ...] = ()
    strangers: int = 0

    def study(self, uid: str = "") -> Study:
        """The study with a UID, or the only one. Raises HeaderError that lists those there are."""
        found = [study for study in self.studies if uid in ("", study.uid)]
        if len(found) == 1:
            return found[0]
        if not self.studies:
            why = f" ({self.unread[0]})" if self.unread else ""
            raise HeaderError(
                f"no DICOM image was found there{why}; give a folder of Part 10 files"
            )
        listed = ", ".join(study.uid for study in self.studies)
        raise HeaderError(
            f"there are {len(self.studies)} studies, and one is wanted: name it with --study UID "
            f"({listed})"
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it. ``stages`` are seconds; ``files`` the results by output; ``peaks`` the
    highest resident memory during each stage, in bytes."""

    outcome: Outcome
    stages: Mapping[str, float]
    files: Mapping[str, Path]
    overlay: Path | None
    peaks: Mapping[str, int]


def gather(folder: Path) -> Folder:
    """Every DICOM file below a folder. Raises nothing for single files: they are told of."""
    instances: dict[str, Instance] = {}
    unread: list[str] = []
    strangers = 0
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        if not _is_part_10(path):
            strangers += 1
            continue
        try:
            instance = read_instance(_arrival(path))
        except NodeError as error:
            unread.append(f"{path.name}: {error}")
        else:
            instances.setdefault(instance.sop_instance_uid, instance)
    by_study: dict[str, list[Instance]] = {}
    for instance in instances.values():
        by_study.setdefault(instance.study_uid, []).append(instance)
    studies = tuple(Study.of(uid, by_study[uid]) for uid in sorted(by_study))
    return Folder(studies, tuple(unread), strangers)


def attempt(
    bundle: Bundle, runtime: tuple[str, Runtime], study: Study, out: Path, progress: Progress
) -> Trial:
    """Load an engine, assess a study and write ``seg.dcm``, ``sr.dcm`` and ``overlay.png``.

    Files of these names that another trial left there are removed first. ``runtime`` is its kind
    and itself. Raises NodeError; then ``out`` has nothing new.
    """
    _clear(out)
    memory = _Memory()
    begun = time.perf_counter()
    with Engine.load(bundle, runtime[1]) as engine:
        memory.reached("engine loaded")
        loading = round(time.perf_counter() - begun, 4)
        watched = _Watched(engine)
        setup = Setup(
            bundle=bundle,
            engine=watched,
            outputs={kind: member() for kind, member in OUTPUTS.items()},
            destinations=(),
            config_digest="",
            runtime=runtime[0],
            computed=partial(Computation, candidate_of(engine).words),
        )
        with TemporaryDirectory(prefix=".trial-", dir=out) as place:
            spool = Spool(Path(place), time.time, fsync=False)
            tools = Tools(
                spool, time.perf_counter, lambda stage, _: memory.reached(stage), progress
            )
            outcome = run(_job(bundle, study), study, setup, tools)
            files = {one.kind: one.path.replace(out / one.path.name) for one in outcome.results}
        picture = _draw(bundle, watched, out / PICTURE)
    stages = {"engine loaded": loading, **outcome.trace["stages"]}
    return Trial(outcome, stages, files, picture, memory.peaks)


def _clear(out: Path) -> None:
    """Make the folder, without what another trial has left: it would look like this one's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (*(f"{kind}.dcm" for kind in OUTPUTS), PICTURE):
            (out / name).unlink(missing_ok=True)
        (out / f".{PICTURE}").touch()
        (out / f".{PICTURE}").unlink()
    except OSError as error:
        raise SpoolError(f"{out} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    """An engine that keeps what it saw and found, for the picture."""

    engine: Engine
    seen: list[tuple[Mapping[str, Volume], Found]] = field(default_factory=list)

    def examine(
        self, volumes: Mapping[str, Volume], job_id: str, progress: Progress | None = None
    ) -> Found:
        found = self.engine.examine(volumes, job_id, progress)
        self.seen.append((volumes, found))
        return found

    def close(self) -> None:
        self.engine.close()


def _draw(bundle: Bundle, engine: _Watched, path: Path) -> Path | None:
    if not engine.seen:
        return None
    volumes, found = engine.seen[0]
    volume = volumes[bundle.manifest.roles[0]]
    return overlay.draw(volume, found.findings, path, algorithm=bundle.algorithm())


def _job(bundle: Bundle, study: Study) -> Job:
    name = bundle.manifest.engine.name
    number = job_id(study.uid, name, bundle.digest, "trial")
    return Job(
        id=number,
        study_uid=study.uid,
        revision="",
        engine=name,
        engine_digest=bundle.digest,
        config_digest="",
        state=JobState.RUNNING,
        attempts=1,
        created_at=time.time(),
    )


def _is_part_10(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK
    return False


def _arrival(path: Path) -> Arrival:
    """A file as if a peer had just sent it. Raises HeaderError and SpoolError."""
    with reading(path):
        meta = read_file_meta_info(path)
        uids = (
            str(meta.MediaStorageSOPInstanceUID),
            str(meta.MediaStorageSOPClassUID),
            str(meta.TransferSyntaxUID),
        )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Arrival(*uids, digest, "folder", "", "", "", 0.0, path)


class _Memory:
    """The highest resident memory between two stages, from what Linux keeps for the process."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        _forget()

    def reached(self, stage: Stage | str) -> None:
        """A stage has ended."""
        if str(stage) != Stage.RESULT_WRITTEN:
            self.peaks[str(stage)] = _peak()
            _forget()


def _peak() -> int:
    """Bytes; 0 where the system does not say."""
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return 0


def _forget() -> None:
    """Have the system count the peak from now on; where it does not, peaks only grow."""
    with suppress(OSError):
        _FORGET.write_text("5", encoding="ascii")


def refusals(outcome: Outcome) -> Iterator[str]:
    """Why each series was taken or not, line by line."""
    for verdict in outcome.trace["series"]:
        took = "taken" if verdict["accepted"] else "not taken"
        yield f"{verdict['label']} as {verdict['role']}: {took}"
        yield from (f"    {words}" for words in verdict["words"])
