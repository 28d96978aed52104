"""How fast we receive, beside DCMTK, Orthanc and a bare socket, in the same run.

    python -m tests.bench.bench_receive [--runs 5] [--images 500] [--only WORD]

Every program runs with ``TCP_NODELAY=1``. Senders are storescu and a replay of recorded PDUs, on
one and on four associations; without fsync in memory, with fsync on the disk of the folder for
temporary files. Receivers take turns within each run, so that a busy machine slows all of them.
Prints the median rates, our ratios to the others, and the rows for ``tests/README.md``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from node.testing.series import SeriesSpec, make, save
from tests.bench import opponents
from tests.bench.opponents import AE_TITLE, Opponent
from tests.peers import HOST, environment
from tests.places import ROOT, tool

Entrant = Callable[[Path], AbstractContextManager[Opponent]]

MEMORY: dict[str, Entrant] = {
    "node": partial(opponents.node, fsync=False),
    "node, index off": partial(opponents.node, fsync=False, index=False),
    "storescp --fork": opponents.storescp,
    "storescp --fork +B -pdu 131072": opponents.storescp_best,
    "sink": partial(opponents.sink, fsync=False),
}
DISK: dict[str, Entrant] = {
    "node": partial(opponents.node, fsync=True),
    "node, index off": partial(opponents.node, fsync=True, index=False),
    "sink": partial(opponents.sink, fsync=True),
    "orthanc": opponents.orthanc,
}
WANTED = {
    "storescp --fork": 1.0,
    "storescp --fork +B -pdu 131072": 0.9,
    "sink": 0.9,
    "orthanc": 3.0,
}


@dataclass(slots=True)
class Figures:
    """What a receiver did: objects a second of each run, its highest memory in MB."""

    rates: list[float] = field(default_factory=list)
    memory: float = 0.0

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def series(folder: Path, number: int, images: int) -> Path:
    """Files of 512 x 512 CT images, with UIDs of their own for each number."""
    values = np.random.default_rng(number).integers(-1000, 1000, (images, 512, 512), np.int16)
    spec = SeriesSpec(modality="CT", study=f"study {number}", series=f"series {number}")
    place = folder / f"series-{number}"
    save(make(spec, values), place)
    return place


def by_storescu(folders: Sequence[Path], port: int) -> float:
    """Seconds that storescu takes, one process per folder, all at once."""
    command = [tool("storescu"), "+sd", "-aec", AE_TITLE, HOST, str(port)]
    begun = time.monotonic()
    processes = [
        subprocess.Popen([*command, str(folder)], env=environment(), stderr=subprocess.PIPE)
        for folder in folders
    ]
    for process in processes:
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-1000:]
    return time.monotonic() - begun


def by_replay(folders: Sequence[Path], port: int, bare: bool = False) -> float:
    """Seconds that a replay takes, from the first connection to the last release."""
    command = [sys.executable, "-m", "tests.bench.replay"]
    processes = [
        subprocess.Popen(
            [*command, str(folder), str(port), *(["--bare"] if bare else [])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    times = [process.communicate(timeout=600)[0].split() for process in processes]
    assert all(len(pair) == 2 for pair in times), "a sender failed"
    return max(float(end) for _, end in times) - min(float(begun) for begun, _ in times)


def peak_memory(process: int) -> float:
    """The most that a process ever had in memory, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return 0.0


def measure(
    entrants: dict[str, Entrant], sender: str, folders: Sequence[Path], disk: bool, runs: int
) -> dict[str, Figures]:
    """Every receiver in turn, as often as there are runs."""
    figures: dict[str, Figures] = {}
    # The sink speaks no DICOM.
    entering = {n: e for n, e in entrants.items() if sender == "replay" or n != "sink"}
    for name, entrant in [pair for _ in range(runs) for pair in entering.items()]:
        with opponents.place(disk) as folder, entrant(folder) as opponent:
            if sender == "replay":
                seconds = by_replay(folders, opponent.port, bare=name == "sink")
            else:
                seconds = by_storescu(folders, opponent.port)
            found = figures.setdefault(name, Figures())
            found.rates.append(sum(len(list(f.iterdir())) for f in folders) / seconds)
            found.memory = max(found.memory, *map(peak_memory, opponent.processes))
    return figures


def report(title: str, figures: dict[str, Figures], associations: int) -> None:
    """Print what was measured, and the rows for the table of figures."""
    say = sys.stdout.write
    say(f"\n{title}\n")
    for name, found in figures.items():
        spread = f"{min(found.rates):.0f}-{max(found.rates):.0f}"
        say(f"  {name:32} {found.rate:7.0f} objects/s [{spread}]  {found.memory:6.0f} MB\n")
    ours = figures.get("node")
    if ours is None:
        return
    for name, least in WANTED.items():
        if name in figures:
            ratio = ours.rate / figures[name].rate
            say(f"| receive: {title}, against {name} | >= {least:g}x | {ratio:.2f}x |\n")
    most = 120 + 10 * associations
    say(f"| receive: {title}, peak memory | <= {most} MB | {ours.memory:.0f} MB |\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--only", default="", help="how the titles to measure begin")
    parser.add_argument("--entrants", default="", help="receivers to measure, with | between")
    options = parser.parse_args()
    chosen = options.entrants.split("|") if options.entrants else [*MEMORY, *DISK]
    with opponents.place(disk=False) as folder:
        folders = [series(folder, number, options.images) for number in range(4)]
        for disk, sender, count in product((False, True), ("storescu", "replay"), (1, 4)):
            title = f"{'fsync' if disk else 'no fsync'}, {sender} x{count}"
            entrants = {n: e for n, e in (DISK if disk else MEMORY).items() if n in chosen}
            if title.startswith(options.only) and entrants:
                figures = measure(entrants, sender, folders[:count], disk, options.runs)
                report(title, figures, count)


if __name__ == "__main__":
    main()
