"""One trial: random studies, and a node that dies several times on the way."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.domain.stage import Stage
from tests.chaos.course import Course, Outcome, Ward, configured
from tests.chaos.load import Modality, Sample
from tests.chaos.vault import Vault
from tests.chaos.zygote import Zygote

ANY_MOMENT = "any moment"
"""Not a stage: the kill comes from outside, whatever the node is at."""
_STEP_S = 0.05
_QUIET_S = 0.2
_AFTERGLOW_S = 0.3
"""How long the last stages may come after the last result has arrived."""
STAGES = tuple(stage.value for stage in Stage if stage is not Stage.QUARANTINED)
_OFTEN: Mapping[str, int] = {
    Stage.ASSOCIATED: 1,
    Stage.STARTED: 1,
    Stage.RECEIVED: 10,
    Stage.BYTES_WRITTEN: 10,
    Stage.BYTES_SYNCED: 10,
    Stage.BYTES_NAMED: 10,
    Stage.BYTES_DURABLE: 10,
    Stage.ENTERED: 3,
    Stage.INDEXED: 10,
    Stage.RESULT_WRITTEN: 4,
    Stage.RESULT_ACCEPTED: 4,
    Stage.DELIVERY_RECORDED: 4,
}
"""How often a trial surely reaches a stage; the others once or twice."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where trials run: the zygote, the engine, the folder, the studies and their results."""

    zygote: Zygote
    engine: Path
    directory: Path
    pool: Sequence[Sample] = ()
    expected: Mapping[str, set[str]] | None = None

    def course(
        self, samples: Sequence[Sample], vault: Vault, name: str, modality: Modality | None = None
    ) -> Course:
        """A new node with nothing in its state folder; it is not started."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        config = configured(self.engine, vault.port, directory, _QUIET_S)
        files = [entry for sample in samples for entry in sample.files.items()]
        expected = self.expected or {}
        wanted = set[str]().union(*(expected[sample.uid] for sample in samples))
        ward = Ward(self.zygote, config)
        return Course(ward, vault, modality or Modality(files), samples, wanted)


@dataclass(frozen=True, slots=True)
class Doom:
    """Where the node dies: at the n-th time of a stage, or n steps of time after its start."""

    stage: str
    occurrence: int


@dataclass(frozen=True, slots=True)
class Draft:
    """What a trial will do: decided by the seed and its number alone."""

    seed: int
    number: int
    samples: tuple[int, ...]
    dooms: tuple[Doom, ...]
    parted: bool
    """Whether each part is a process of its own, and only the one that reaches the stage dies."""
    sandboxed: bool
    """Whether headers are read in a process of their own."""

    @classmethod
    def of(cls, seed: int, number: int, pool: int) -> Draft:
        """Every stage has its turn as the first to die at; the rest is chance."""
        dice = random.Random(f"{seed}/{number}")  # noqa: S311 - chance that can be repeated
        stages = (*STAGES, ANY_MOMENT)
        more = (dice.choice(stages) for _ in range(dice.choice((0, 0, 1, 2))))
        dooms = [
            Doom(stage, dice.randint(1, _OFTEN.get(stage, 2)))
            for stage in (stages[number % len(stages)], *more)
        ]
        samples = dice.sample(range(pool), dice.choice((2, 2, 3)))
        return cls(
            seed, number, tuple(samples), tuple(dooms), dice.random() < 0.4, dice.random() < 0.1
        )

    def modality(self, samples: Sequence[Sample]) -> Modality:
        """The modality of this trial."""
        return Modality.of(samples, random.Random(f"{self.seed}/{self.number}/load"))  # noqa: S311


def run(draft: Draft, place: Place) -> Outcome:
    """Run a trial in a folder of its own, which stays only when something was wrong."""
    began = time.monotonic()
    samples = [place.pool[number] for number in draft.samples]
    name = f"trial-{draft.number:06d}"
    with Vault() as vault:
        course = place.course(samples, vault, name, draft.modality(samples))
        course.ward.parted, course.ward.sandboxed = draft.parted, draft.sandboxed
        outcome = course.outcome
        outcome.number = draft.number
        try:
            for doom in draft.dooms:
                _suffer(course, doom, last=doom is draft.dooms[-1])
            course.settle()
        finally:
            course.ward.kill()
        course.judge(resends=len(outcome.kills))
    if outcome.ended:
        outcome.faults.append(f"the node ended {outcome.ended} times by itself")
    outcome.seconds = round(time.monotonic() - began, 2)
    if not outcome.faults:
        shutil.rmtree(place.directory / name)
    return outcome


def _suffer(course: Course, doom: Doom, *, last: bool) -> None:
    """Start the node and send to it until it dies, or until all is done and it has not."""
    ward, kills = course.ward, course.outcome.kills
    ward.start(doom.stage, doom.occurrence)
    since = time.monotonic()
    course.modality.send(ward.port)
    if doom.stage == ANY_MOMENT:
        ward.until(lambda: time.monotonic() - since > doom.occurrence * _STEP_S)
        ward.kill()
        kills.append(ANY_MOMENT)
        return
    ward.until(lambda: course.arrived)
    ward.until(lambda: False, _AFTERGLOW_S)
    killed = [doom.stage for body in ward.bodies.values() if body.killed_itself]
    kills += killed
    # Only the last death may leave the other parts alive: they would not hear of a new doom.
    if not (killed and last and ward.parted):
        ward.kill()
