"""Bringing voxels from one grid to another.

Every spatial step goes there and back through this one function, so a voxel cannot come back to
another place than it left: the two affines alone decide. Where the grids share their lattice the
voxels are copied, bit for bit; where only the spacing differs each axis is interpolated by itself
(several times faster than interpolating in 3-D); oblique grids are interpolated in 3-D.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.errors import InferenceError
from node.domain.volume import Affine, Grid, Volume
from node.domain.voxels import Voxels

Positions = NDArray[np.float64]
"""For each voxel of the new grid along one axis: where it lies on the old, in voxels."""

Order = Literal[0, 1, 3]
"""Interpolation: nearest, linear, cubic B-spline."""

_ALIGNED = 0.01
"""Voxels: how far a grid may drift over its whole length and still share another's axes."""

_ON_LATTICE = 1e-4
"""Voxels: how far a position may lie beside a voxel's centre and still be that voxel."""


def index_matrix(source: Affine, wanted: Affine) -> Affine:
    """4 x 4: voxel index on the wanted lattice -> voxel index on the source lattice.

    Raises InferenceError when the source affine is singular.
    """
    try:
        return np.asarray(np.linalg.solve(source, wanted), np.float64)
    except np.linalg.LinAlgError:
        raise InferenceError("the volume's affine is singular: two of its axes coincide") from None


def nearest_axes(matrix: Affine) -> tuple[int, int, int]:
    """For each column the row that it follows best, every row used once.

    The best of the six permutations, so that an axis at 45 degrees has one answer, too.
    """
    strength = np.abs(matrix[:3, :3]) / np.linalg.norm(matrix[:3, :3], axis=0)
    # Rounded, so that equal choices stay equal whatever the last bits are: the first one wins.
    score = {p: round(float(sum(strength[p[a], a] for a in range(3))), 9) for p in _ORDERS}
    return max(_ORDERS, key=lambda order: score[order])


_ORDERS: tuple[tuple[int, int, int], ...] = tuple(permutations((0, 1, 2)))  # type: ignore[arg-type]


def resampled(
    volume: Volume,
    grid: Grid,
    order: Order = 1,
    value: float | None = 0.0,
    *,
    smooth: bool = False,
) -> Volume:
    """The volume on another grid, as float32.

    ``order`` is 0 (nearest), 1 (linear) or 3 (cubic B-spline). Up to half a voxel beyond the
    outermost centres the outermost voxel goes on; farther out is ``value``, or still that voxel
    where it is None. ``smooth`` averages along every axis that becomes coarser, against aliasing
    (not between oblique grids).
    The sources are kept when the slices are. Raises InferenceError.
    """
    matrix = index_matrix(volume.affine, grid.affine)
    voxels = volume.voxels.astype(np.float32, copy=False)
    axes = _shared_axes(matrix, grid.shape)
    if axes is None:
        moved = _oblique(voxels, matrix, grid.shape, order, value)
    else:
        turned = np.moveaxis(voxels, [axis - 3 for axis in axes], [-3, -2, -1])
        lines = _positions(matrix, axes, grid.shape)
        moved = _separable(turned, lines, order, value, smooth=smooth)
    sources = volume.sources if _same_slices(matrix, volume.grid, grid) else ()
    return replace(volume, voxels=moved, affine=grid.affine, sources=sources)


def _same_slices(matrix: Affine, source: Grid, wanted: Grid) -> bool:
    kept = np.allclose(matrix[0], (1, 0, 0, 0), rtol=0, atol=_ON_LATTICE)
    return kept and source.shape[0] == wanted.shape[0]


def _shared_axes(matrix: Affine, shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """For each axis of the new grid the old axis that it runs along; None between oblique grids."""
    axes = nearest_axes(matrix)
    drift = np.abs(matrix[:3, :3]) * (np.asarray(shape) - 1)
    drift[list(axes), [0, 1, 2]] = 0
    return axes if drift.max() < _ALIGNED else None


def _positions(
    matrix: Affine, axes: tuple[int, int, int], shape: tuple[int, int, int]
) -> list[Positions]:
    lines = []
    for axis, (row, length) in enumerate(zip(axes, shape, strict=True)):
        line = matrix[row, axis] * np.arange(length) + matrix[row, 3]
        snapped = np.rint(line)
        lines.append(snapped if np.abs(line - snapped).max() < _ON_LATTICE else line)
    return lines


def _separable(
    voxels: Voxels, lines: list[Positions], order: Order, value: float | None, *, smooth: bool
) -> Voxels:
    """One axis after the other; those that shrink most go first, so that the rest costs less."""
    if value is None:
        ends = [n - 1 for n in voxels.shape[-3:]]
        lines = [np.clip(line, 0, end) for line, end in zip(lines, ends, strict=True)]
    inside = [_inside(line, n) for line, n in zip(lines, voxels.shape[-3:], strict=True)]
    kept = [line[part] for line, part in zip(lines, inside, strict=True)]
    shape = voxels.shape[:-3] + tuple(len(line) for line in lines)
    if value is not None and any(line.size == 0 for line in kept):
        return np.full(shape, value, np.float32)
    growth = [len(line) / n for line, n in zip(kept, voxels.shape[-3:], strict=True)]
    for axis in sorted(range(3), key=lambda a: (not _is_slice(kept[a]), growth[a])):
        voxels = _along(voxels, axis - 3, kept[axis], order, smooth=smooth)
    if value is None or voxels.shape == shape:
        return np.ascontiguousarray(voxels)
    whole = np.full(shape, value, np.float32)
    whole[..., inside[0], inside[1], inside[2]] = voxels
    return whole


def _inside(line: Positions, length: int) -> slice:
    """The voxels of a line that lie on the old grid, half a voxel around its centres included."""
    slack = 0.5 + _ALIGNED
    within = np.flatnonzero((line >= -slack) & (line <= length - 1 + slack))
    return slice(int(within[0]), int(within[-1]) + 1) if within.size else slice(0, 0)


def _is_slice(line: Positions) -> bool:
    """Whether the positions are whole and neighbours, so that copying is exact."""
    steps = np.diff(line)
    whole = bool((line == np.rint(line)).all())
    return whole and (bool((steps == 1).all()) or bool((steps == -1).all()))


def _along(voxels: Voxels, axis: int, line: Positions, order: Order, *, smooth: bool) -> Voxels:
    if _is_slice(line):
        first, last = int(line[0]), int(line[-1])
        turned = np.flip(voxels, axis) if last < first else voxels
        start = voxels.shape[axis] - 1 - first if last < first else first
        return turned[(..., slice(start, start + len(line))) + (slice(None),) * (-1 - axis)]
    length = voxels.shape[axis]
    line = np.clip(line, 0, length - 1)
    if order == 3 and length > 1:
        voxels = ndimage.spline_filter1d(voxels, 3, axis, np.float32, "mirror")
    step = float(np.abs(np.diff(line)).max()) if len(line) > 1 else 1.0
    if smooth and step > 1:
        return _blended(voxels, axis, *_triangle(line, length, step))
    return _blended(voxels, axis, *_taps(line, length, order))


Taps = tuple[NDArray[np.intp], NDArray[np.float32]]
"""For each new voxel the old voxels that make it, and their weights; both (new, taps)."""


def _taps(line: Positions, length: int, order: Order) -> Taps:
    if order == 0 or length == 1:
        return np.floor(line + 0.5).astype(np.intp)[:, None], np.ones((len(line), 1), np.float32)
    low = np.minimum(np.floor(line), length - 2).astype(np.intp)
    t = (line - low)[:, None]
    if order == 1:
        return low[:, None] + (0, 1), np.hstack([1 - t, t]).astype(np.float32)
    index = np.abs(low[:, None] + (-1, 0, 1, 2))
    mirrored = np.where(index >= length, 2 * (length - 1) - index, index)
    return np.abs(mirrored), _b_spline(t).astype(np.float32)


def _b_spline(t: Positions) -> Positions:
    """Weights of the four neighbours of a position ``t`` (0 to 1) between the middle two."""
    near, far = 1 - t, t
    return np.hstack(
        [
            near**3 / 6,
            2 / 3 - far**2 * (2 - far) / 2,
            2 / 3 - near**2 * (2 - near) / 2,
            far**3 / 6,
        ]
    )


def _triangle(line: Positions, length: int, step: float) -> Taps:
    """A weighted mean of all old voxels less than one new voxel away."""
    reach = int(np.ceil(step))
    index = np.rint(line).astype(np.intp)[:, None] + np.arange(-reach, reach + 1)
    weight = np.maximum(0, 1 - np.abs(index - line[:, None]) / step)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, length - 1), weight.astype(np.float32)


def _blended(
    voxels: Voxels, axis: int, index: NDArray[np.intp], weight: NDArray[np.float32]
) -> Voxels:
    shape = list(voxels.shape)
    shape[axis] = len(index)
    out = np.empty(shape, np.float32)
    if axis == -3:
        _blend_slices(np.moveaxis(voxels, -3, 0), np.moveaxis(out, -3, 0), index, weight)
        return out
    ratio = weight.T[:, :, None] if axis == -2 else weight.T[:, None, :]
    # Plane by plane: what is gathered stays in the processor's cache.
    for lead in np.ndindex(*voxels.shape[:-2]):
        plane = voxels[lead]
        total = plane.take(index[:, 0], axis) * ratio[0]
        for tap in range(1, index.shape[1]):
            total += plane.take(index[:, tap], axis) * ratio[tap]
        out[lead] = total
    return out


def _blend_slices(
    voxels: Voxels, out: Voxels, index: NDArray[np.intp], weight: NDArray[np.float32]
) -> None:
    for new, (olds, ratios) in enumerate(zip(index, weight, strict=True)):
        np.multiply(voxels[olds[0]], ratios[0], out=out[new])
        for old, ratio in zip(olds[1:], ratios[1:], strict=True):
            out[new] += voxels[old] * ratio


def _oblique(
    voxels: Voxels,
    matrix: Affine,
    shape: tuple[int, int, int],
    order: Order,
    value: float | None,
) -> Voxels:
    out = np.empty(voxels.shape[:-3] + shape, np.float32)
    for lead in np.ndindex(*voxels.shape[:-3]):
        ndimage.affine_transform(
            voxels[lead],
            matrix[:3, :3],
            matrix[:3, 3],
            shape,
            output=out[lead],
            order=order,
            mode="nearest" if value is None else "grid-constant",
            cval=value or 0.0,
        )
    return out
