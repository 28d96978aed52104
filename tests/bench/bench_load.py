"""A study of 500 slices to a volume: ``python -m tests.bench.bench_load [slices]``.

Uncompressed beside SimpleITK, which is given the sorted names so that it need not look for them;
compressed beside pydicom's default (``dcmread(path).pixel_array`` into an array made before).
Ours rescales, pydicom's does not. The runs alternate, the files are in the page cache; printed are
medians of wall and processor time in seconds, and the ratio to ours, above 1 where ours is faster,
of the medians and of the best runs: on a machine that others use, the best say more of cores.
Without SimpleITK its line says that it is absent; without imagecodecs ours decodes one at a time.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.dicom.codestream import codecs
from node.dicom.geometry import Geometry, arrange
from node.dicom.pixels import load
from node.testing.series import SeriesSpec, make, received, save

SLICES, SIDE, DISTINCT = 500, 512, 8
RUNS = 5
SYNTAXES = {
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "HTJ2K": HTJ2KLossless,
    "RLE": RLELossless,
}
SLOW = ("JPEG 2000",)
"""These take minutes in full, and each slice costs the same: a tenth of the slices is enough."""

Run = Callable[[], NDArray[Any]]


def phantom() -> NDArray[np.int16]:
    """A few slices like a CT of the body: a noisy disc in air, 12 bits, from a fixed seed."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    body = 1000 + 300 * np.exp(-(x**2 + y**2) / 20_000)
    noise = np.random.default_rng(0).normal(0, 12, (DISTINCT, SIDE, SIDE))
    return np.where(x**2 + y**2 < (0.47 * SIDE) ** 2, body + noise, 0).astype(np.int16)


def series(directory: Path, slices: int, syntax: str | None = None) -> Geometry:
    """That many CT slices on disk; the same few images again and again, each compressed once."""
    images = phantom()
    spec = SeriesSpec(modality="CT", intercept=-1024.0, bits_stored=16)
    datasets = make(spec, images[np.arange(slices) % DISTINCT])
    if syntax is not None:
        for number, dataset in enumerate(datasets):
            first = datasets[number % DISTINCT]
            if number < DISTINCT:
                compress(dataset, syntax)
                continue
            dataset.PixelData = first.PixelData
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            dataset.file_meta.TransferSyntaxUID = first.file_meta.TransferSyntaxUID
    return arrange(received(save(datasets, directory)))


def compress(dataset: Any, syntax: str) -> None:
    """pydicom's encoder where it has one; HTJ2K by imagecodecs."""
    if syntax != HTJ2KLossless:
        dataset.compress(syntax, generate_instance_uid=False)
        return
    encode = importlib.import_module("imagecodecs").htj2k_encode
    dataset.PixelData = encapsulate([encode(dataset.pixel_array)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax


def by_us(geometry: Geometry) -> NDArray[Any]:
    """Rescaled to Hounsfield units."""
    return load(geometry).voxels


def by_pydicom(geometry: Geometry) -> NDArray[Any]:
    """Stored values, without a rescale."""
    voxels = np.empty(geometry.grid.shape, np.int16)
    for k, instance in enumerate(geometry.instances):
        voxels[k] = dcmread(instance.path).pixel_array
    return voxels


def by_simpleitk(sitk: Any, geometry: Geometry) -> NDArray[Any]:
    """Rescaled, like ours."""
    names = [str(instance.path) for instance in geometry.instances]
    return np.asarray(sitk.GetArrayViewFromImage(sitk.ReadImage(names)))


def compare(ours: Run, other: Run, runs: int) -> str:
    """Medians of both, alternating, after one run of each that warms up."""
    seconds: dict[Run, list[tuple[float, float]]] = {ours: [], other: []}
    for number in range(runs + 1):
        for run, measured in seconds.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if number:
                measured.append((time.perf_counter() - wall, time.process_time() - processor))
    mine, theirs = (
        [statistics.median(column) for column in zip(*measured, strict=True)]
        for measured in seconds.values()
    )
    best = [min(wall for wall, _ in measured) for measured in seconds.values()]
    return (
        f"ours {mine[0]:7.3f} s ({mine[1]:.3f} processor)  other {theirs[0]:7.3f} s "
        f"({theirs[1]:.3f})  ratio {theirs[0] / mine[0]:.2f}, of the best {best[1] / best[0]:.2f}"
    )


def report(slices: int, directory: Path) -> Iterator[str]:
    """One line a method."""
    quick = "with" if codecs() else "without"
    yield f"{slices} slices of {SIDE} x {SIDE}, {os.cpu_count()} cores, {quick} imagecodecs"
    native = series(directory / "native", slices)
    pair = (partial(by_us, native), partial(by_pydicom, native))
    yield f"uncompressed, pydicom    {compare(*pair, RUNS)}"
    try:
        sitk = importlib.import_module("SimpleITK")
    except ImportError:
        yield "uncompressed, SimpleITK  absent"
    else:
        pair = (partial(by_us, native), partial(by_simpleitk, sitk, native))
        yield f"uncompressed, SimpleITK  {compare(*pair, RUNS)}"
    for name, syntax in SYNTAXES.items():
        fewer = max(2 * DISTINCT, slices // 10) if name in SLOW else slices
        try:
            geometry = series(directory / name, fewer, syntax)
        except ImportError:
            yield f"{name}: left out, imagecodecs encodes it and is absent"
            continue
        line = compare(partial(by_us, geometry), partial(by_pydicom, geometry), RUNS)
        yield f"{f'{name}, {fewer}':24} {line}"


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        for line in report(int(sys.argv[1]) if len(sys.argv) > 1 else SLICES, Path(directory)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
