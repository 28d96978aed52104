"""Resampling beside scipy's and SimpleITK's: ``python -m tests.bench.bench_resample``.

Prints the median of five runs in milliseconds and the ratio to ours, above 1 where ours is faster.
Each runs on one thread. SimpleITK is left out, with a line that says so, where it is absent.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.sampling import Order
from node.domain.volume import Volume
from node.steps.spatial import Resample

SHAPE = (200, 256, 256)
SPACING = (1.5, 0.8, 0.8)
WANTED = (1.0, 1.0, 1.0)
RUNS = 5

Run = Callable[[], object]


def volume() -> Volume:
    """Noise from a fixed seed: the time does not depend on what is in the voxels."""
    voxels = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*SPACING, 1)
    return Volume(voxels, affine)


def median_ms(run: Run) -> float:
    """Median wall time of a few runs after one that warms up, milliseconds."""
    run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def scipy_zoom(voxels: NDArray[np.float32], shape: tuple[int, ...], order: Order) -> Run:
    """scipy's own way to as many voxels."""
    growth = np.array(shape) / voxels.shape
    return lambda: ndimage.zoom(voxels, growth, order=order, mode="nearest", grid_mode=True)


def simple_itk(voxels: NDArray[np.float32], shape: tuple[int, ...], order: Order) -> Run:
    """SimpleITK's way to the same grid, on one thread. Raises ImportError."""
    sitk = importlib.import_module("SimpleITK")
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING[::-1])
    wanted = sitk.ResampleImageFilter()
    wanted.SetNumberOfThreads(1)
    wanted.SetSize([int(n) for n in shape[::-1]])
    wanted.SetOutputSpacing(WANTED[::-1])
    middles = zip(SHAPE, SPACING, shape, WANTED, strict=True)
    origin = [((n - 1) * old - (m - 1) * new) / 2 for n, old, m, new in middles]
    wanted.SetOutputOrigin(origin[::-1])
    wanted.SetInterpolator(sitk.sitkLinear if order == 1 else sitk.sitkBSpline)
    return lambda: sitk.GetArrayFromImage(wanted.Execute(image))


def lines() -> Iterator[str]:
    """One line for each interpolation and opponent."""
    source = volume()
    kinds: tuple[tuple[Order, str], ...] = ((1, "linear"), (3, "cubic"))
    for order, name in kinds:
        step = Resample(WANTED, order=order)
        shape = step.forward(source).grid.shape
        ours = median_ms(lambda step=step: step.forward(source))  # type: ignore[misc]
        yield f"{name}: {SHAPE} -> {shape}: ours {ours:.0f} ms"
        for other in (scipy_zoom, simple_itk):
            try:
                theirs = median_ms(other(source.voxels, shape, order))
            except ImportError:
                yield f"  {other.__name__}: not installed"
                continue
            yield f"  {other.__name__}: {theirs:.0f} ms, ratio {theirs / ours:.2f}"


if __name__ == "__main__":
    for line in lines():
        sys.stdout.write(f"{line}\n")
