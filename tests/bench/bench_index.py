"""What reading headers in a child costs, beside reading them in this process, in the same run.

    python -m tests.bench.bench_index [instances]

Prints seconds for each and the ratio; the child is killable and limited, and should cost little.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from node.indexer import Reader
from node.sandbox import InProcess, Sandbox
from node.spool import Spool
from node.testing.series import SeriesSpec, make
from tests.ward import received

BATCH = 64


def seconds(reader: Reader, files: Sequence[Path]) -> float:
    """Time for reading every header, in the indexer's batches, once warm."""
    reader.read(files[:1])
    started, done = perf_counter(), 0
    while done < len(files):
        done += len(reader.read(files[done : done + BATCH]))
    return perf_counter() - started


def main(instances: int = 500) -> None:
    """Spool so many CT headers and read them both ways."""
    with TemporaryDirectory() as directory:
        spool = Spool(Path(directory), lambda: 0.0)
        for dataset in make(SeriesSpec(modality="CT"), np.zeros((instances, 8, 8), np.int16)):
            spool.keep(received(dataset))
        files = list(spool.arrivals())
        sandbox = Sandbox()
        here, child = seconds(InProcess(), files), seconds(sandbox, files)
        sandbox.close()
    sys.stdout.write(f"here {here:.2f} s, child {child:.2f} s, ratio {child / here:.2f}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
