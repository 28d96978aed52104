"""A day of hospital load on a clock that runs sixty times as fast: does anything grow?

``python -m tests.chaos.soak --minutes 24 --state DIR`` prints the figures. Each part of the node is
a process of its own, headers are read in the sandbox, and the slopes are of the second half, when
every cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from node.testing.series import SeriesSpec
from tests.acceptance.hospital import small_study
from tests.chaos.course import Course, Ward
from tests.chaos.kills import prepared
from tests.chaos.load import Modality, saved
from tests.chaos.trial import Place
from tests.chaos.vault import Vault
from tests.chaos.zygote import set_clock

SPEED = 60.0
_MORNING_S, _EVENING_S, _DAY_S = 7 * 3600.0, 19 * 3600.0, 86_400.0
_DAY_GAP_S, _NIGHT_GAP_S = 120.0, 720.0
"""Injected seconds from one study to the next."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the node's processes hold: bytes, descriptors and threads, all together."""

    at_s: float
    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, processes: list[int], at_s: float) -> Sample:
        """Measure processes and their children."""
        family = [one for process in processes for one in (process, *_children(process))]
        memory = sum(int(_proc(one, "statm").split()[1]) * _PAGE for one in family)
        descriptors = sum(len(os.listdir(f"/proc/{one}/fd")) for one in family)
        threads = sum(len(os.listdir(f"/proc/{one}/task")) for one in family)
        return cls(at_s, memory, descriptors, threads)


def _proc(process: int, name: str) -> str:
    return Path(f"/proc/{process}/{name}").read_text()


def _children(process: int) -> list[int]:
    tasks = os.listdir(f"/proc/{process}/task")
    return [int(c) for task in tasks for c in _proc(process, f"task/{task}/children").split()]


@dataclass(slots=True)
class Soak:
    """A run, and what it has measured. Times in real seconds."""

    studies: int = 0
    results: int = 0
    unanswered: int = 0
    """Studies without both of their results."""
    ended: int = 0
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def slope(self, name: str) -> float:
        """How fast something grows in the second half, per injected hour."""
        half = self.samples[len(self.samples) // 2 :]
        hours = [sample.at_s * SPEED / 3600.0 for sample in half]
        return float(np.polyfit(hours, [getattr(sample, name) for sample in half], 1)[0])

    def figures(self) -> Mapping[str, float]:
        """The numbers for the table."""
        return {
            "injected hours": round(self.seconds * SPEED / 3600.0, 2),
            "studies": self.studies,
            "results": self.results,
            "studies without results": self.unanswered,
            "ended by itself": self.ended,
            "memory, MB": round(self.samples[-1].memory / 1e6, 1),
            "memory slope, MB/h": round(self.slope("memory") / 1e6, 3),
            "descriptors": self.samples[-1].descriptors,
            "descriptors slope, 1/h": round(self.slope("descriptors"), 3),
            "threads": self.samples[-1].threads,
            "threads slope, 1/h": round(self.slope("threads"), 3),
        }


def soak(place: Place, seconds: float, begins_s: float = 0.0) -> Soak:
    """So many real seconds of hospital load; ``begins_s`` is the time of day at the start."""
    run = Soak()
    with Vault() as vault, closing(_ward(place.course((), vault, "soak"))) as ward:
        ward.start()
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            _study(ward, run.studies)
            run.studies += 1
            ward.until(lambda: False, _gap(begins_s + now * SPEED))
            run.ended += ward.dead()
            ward.start()
            processes = [body.process for body in ward.bodies.values()]
            run.samples.append(Sample.of(processes, time.monotonic() - began))
        vault.wait_for(lambda _: _answered(vault) == run.studies, 60.0)
        run.unanswered = run.studies - _answered(vault)
        run.results, run.seconds = len(vault.uids), time.monotonic() - began
    return run


def _answered(vault: Vault) -> int:
    """How many studies have results; one that a slow machine splits in two has four."""
    made = Counter(str(held.dataset.StudyInstanceUID) for held in vault.instances)
    return sum(count >= 2 for count in made.values())


def _ward(course: Course) -> Ward:
    """A node as in service, on a fast clock."""
    ward = course.ward
    ward.parted = ward.sandboxed = True
    clock = ward.config.with_name("clock")
    set_clock(clock, f"0 {SPEED}")
    ward.clock = str(clock)
    # In injected seconds, a second of ours: less would split studies on a machine that is busy.
    text = ward.config.read_text().replace("quiet_period_s = 0.2", "quiet_period_s = 60.0")
    ward.config.write_text(text)
    return ward


def _gap(at_s: float) -> float:
    """Real seconds until the next study at a time of day."""
    by_day = _MORNING_S <= at_s % _DAY_S < _EVENING_S
    return (_DAY_GAP_S if by_day else _NIGHT_GAP_S) / SPEED


def _study(ward: Ward, number: int) -> None:
    """A study that nobody has sent before."""
    spec = SeriesSpec(study=f"soak {number}", patient_id=f"SOAK-{number}", spacing=(5.0, 1.0, 1.0))
    sample = saved(small_study(spec), ward.config.with_name("study"))
    Modality(list(sample.files.items())).send(ward.port)


def main() -> int:
    """The command line; 1 when something grows or is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=24.0, help="real minutes")
    parser.add_argument("--state", type=Path, required=True, help="folder")
    options = parser.parse_args()
    with prepared(options.state) as place:
        run = soak(place, options.minutes * 60.0)
    with (options.state / "samples.jsonl").open("w") as stream:
        stream.writelines(f"{json.dumps(asdict(sample))}\n" for sample in run.samples)
    sys.stdout.write(f"{json.dumps(run.figures(), indent=1)}\n")
    return run.unanswered > 0 or run.ended > 0


if __name__ == "__main__":
    sys.exit(main())
