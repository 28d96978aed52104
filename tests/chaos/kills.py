"""Kills a node at its named stages, as often as wanted, and goes on where it was stopped.

``python -m tests.chaos.kills --seed 1 --count 1000 --state DIR`` runs trials until so many kills
have happened and prints the figures. What a trial does follows from the seed and its number, so
that one that failed can be run again: ``--only N``. ``DIR/progress.jsonl`` has one line per trial.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from tests.acceptance.hospital import tiny_engine
from tests.chaos.course import Outcome, configured
from tests.chaos.load import Modality, pool
from tests.chaos.trial import STAGES, Draft, Place, run
from tests.chaos.vault import Vault
from tests.chaos.zygote import PATIENCE_S, Order, running


@contextmanager
def prepared(directory: Path) -> Iterator[Place]:
    """Prepare trials in a folder: the studies, the engine, the zygote, an undisturbed run."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = pool(directory / "studies")
    with running() as zygote:
        place = Place(zygote, tiny_engine(directory), directory, samples)
        yield replace(place, expected=_undisturbed(place))


def _undisturbed(place: Place) -> Mapping[str, set[str]]:
    """SOP Instance UIDs of the results of each study when nothing goes wrong."""
    with Vault() as vault:
        directory = place.directory / "undisturbed"
        shutil.rmtree(directory, ignore_errors=True)
        config = configured(place.engine, vault.port, directory, quiet_s=1.0)
        body = place.zygote.start(Order(str(config), str(directory / "log")))
        Modality([entry for sample in place.pool for entry in sample.files.items()]).send(body.port)
        assert vault.wait_for(lambda v: len(v.stored) == 2 * len(place.pool), PATIENCE_S)
        body.kill()
        made: dict[str, set[str]] = {sample.uid: set() for sample in place.pool}
        for held in vault.instances:
            made[str(held.dataset.StudyInstanceUID)].add(str(held.dataset.SOPInstanceUID))
    return made


class Progress:
    """The trials that were run with a seed, on disk, one JSON line each."""

    def __init__(self, path: Path, seed: int) -> None:
        """Take up what is there; a line that a kill has cut off is no line."""
        self._path = path
        self.seed = seed
        self.outcomes: dict[int, Outcome] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if entry.pop("seed") == seed:
                    self.outcomes[entry["number"]] = Outcome(**entry)

    def add(self, outcome: Outcome) -> None:
        """Remember a trial."""
        self.outcomes[outcome.number] = outcome
        with self._path.open("a") as stream:
            stream.write(json.dumps({"seed": self.seed, **asdict(outcome)}) + "\n")

    @property
    def kills(self) -> Counter[str]:
        """How often the node was killed at which stage."""
        return Counter(stage for outcome in self.outcomes.values() for stage in outcome.kills)

    def short_of(self, kills: int) -> bool:
        """Whether more trials are needed: every stage has had its turn, and so many kills."""
        return self.kills.total() < kills or len(self.outcomes) <= len(STAGES)

    @property
    def faults(self) -> list[str]:
        """What must not be, with the trial that showed it."""
        return [
            f"trial {outcome.number}: {fault}"
            for outcome in self.outcomes.values()
            for fault in outcome.faults
        ]

    def figures(self) -> dict[str, float]:
        """The numbers for the table."""
        outcomes = self.outcomes.values()
        return {
            "trials": len(outcomes),
            "kills": self.kills.total(),
            "stages": len(self.kills),
            "objects acknowledged": sum(o.acknowledged for o in outcomes),
            "acknowledged objects lost": sum(o.lost_objects for o in outcomes),
            "results": sum(o.results for o in outcomes),
            "results lost": sum(o.lost_results for o in outcomes),
            "UIDs with two contents": sum(o.ambiguous for o in outcomes),
            "sent again, acceptance unrecorded": sum(o.resent for o in outcomes),
            "seconds of trials": round(sum(o.seconds for o in outcomes), 1),
        }


def endure(place: Place, progress: Progress, kills: int, lanes: int = 3) -> None:
    """Run trials, several at a time, until so many kills have happened at every stage's turn.

    Most of a trial is waiting for quiet periods, so that more lanes than cores are of use.
    """

    def trial(number: int) -> Outcome:
        return run(Draft.of(progress.seed, number, len(place.pool)), place)

    numbers = (number for number in itertools.count() if number not in progress.outcomes)
    with ThreadPoolExecutor(lanes) as workers:
        under_way = {workers.submit(trial, number) for number in itertools.islice(numbers, lanes)}
        while under_way:
            ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                progress.add(future.result())
            for number in itertools.islice(numbers, len(ended) if progress.short_of(kills) else 0):
                under_way.add(workers.submit(trial, number))


def main() -> int:
    """The command line; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="kills")
    parser.add_argument("--state", type=Path, required=True, help="folder; what failed stays there")
    parser.add_argument("--only", type=int, help="run this one trial")
    options = parser.parse_args()
    with prepared(options.state) as place:
        if options.only is not None:
            outcome = run(Draft.of(options.seed, options.only, len(place.pool)), place)
            sys.stdout.write(f"{json.dumps(asdict(outcome), indent=1)}\n")
            return bool(outcome.faults)
        progress = Progress(options.state / "progress.jsonl", options.seed)
        endure(place, progress, options.count)
    report = {"seed": options.seed, **progress.figures(), "kills by stage": progress.kills}
    sys.stdout.write(f"{json.dumps(report, indent=1)}\n")
    sys.stdout.writelines(f"{fault}\n" for fault in progress.faults)
    return bool(progress.faults)


if __name__ == "__main__":
    sys.exit(main())
