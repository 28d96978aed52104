"""Generated brain FLAIR phantom: a head with one bright lesion whose outline is known exactly.

The geometry is analytic (ellipsoids with noisy surfaces), so a volume of any size is made in a
second or two from its seed and contains no patient data. Intensities are relative to brain = 1.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

FLAIR_LEVELS = {"fat": 2.3, "skull": 0.22, "csf": 0.28, "grey": 1.1, "white": 0.92, "muscle": 0.7}
GREY_VALUES_PER_BRAIN = 300.0


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, ...]) -> np.ndarray:
    """Smooth unit-variance noise with about `cells` bumps along each axis."""
    coarse = rng.standard_normal(tuple(c + 1 for c in cells))
    fine = zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=3)
    fine = fine[tuple(slice(0, n) for n in shape)]
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def _axes(slices: int, size: int, spacing: float, dz: float) -> tuple[np.ndarray, ...]:
    """Millimetre coordinates z (up), y (to the back), x (to the patient's left), open grids."""
    z = (np.arange(slices) - (slices - 1) * 0.38) * dz
    y = (np.arange(size) - (size - 1) / 2) * spacing
    return z[:, None, None], y[None, :, None], y[None, None, :]


def _radius(grid: tuple[np.ndarray, ...], centre: np.ndarray, semi: np.ndarray) -> np.ndarray:
    """Normalised ellipsoid radius (1 on the surface)."""
    terms = (((g - c) / s) ** 2 for g, c, s in zip(grid, centre, semi, strict=True))
    return np.sqrt(sum(terms))


def _blend(base: np.ndarray, level: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
    return base * (1 - weight) + level * weight


def _inside(distance: np.ndarray, width: float) -> np.ndarray:
    """Soft membership: 1 where distance is far below zero, 0 far above; `width` has its unit."""
    return 1 / (1 + np.exp(np.clip(distance / width, -30, 30)))


def _brain(rng: np.random.Generator, grid: tuple[np.ndarray, ...], depth: np.ndarray) -> np.ndarray:
    """Grey ribbon with sulci, white matter, deep grey nuclei; `depth` is mm below the surface."""
    shape = depth.shape
    folds = _noise(rng, shape, (shape[0] // 2, 16, 16))
    fine = _noise(rng, shape, (shape[0], 26, 26))
    ribbon = 5 + 2.5 * folds
    tissue = np.full(shape, FLAIR_LEVELS["white"]) + 0.025 * fine
    tissue = _blend(tissue, FLAIR_LEVELS["grey"], _inside(depth - ribbon, 1.2))
    sulci = np.exp(-((fine / 0.22) ** 2)) * _inside(depth - 9, 1.5) * 0.8
    fissure = np.exp(-((grid[2] / 1.2) ** 2)) * _inside(depth - 28, 4.0) * 0.8
    for side in (-1, 1):
        nuclei = _radius(grid, np.array([8.0, -2.0, side * 20.0]), np.array([14.0, 22.0, 9.0]))
        tissue = _blend(tissue, FLAIR_LEVELS["grey"], 0.8 * _inside(nuclei - 1, 0.1))
    tissue = _blend(tissue, FLAIR_LEVELS["csf"], np.maximum(sulci, fissure))
    return tissue * (1 + 0.03 * _noise(rng, shape, (4, 8, 8)))


def _ventricles(rng: np.random.Generator, grid: tuple[np.ndarray, ...]) -> np.ndarray:
    """Signed normalised distance to two lateral ventricles that spread towards the back."""
    wide = rng.uniform(0.8, 1.4)
    parts = []
    for side in (-1, 1):
        for y0, x0, semi in ((-14, 8, (11, 19, 5)), (14, 14, (12, 22, 6)), (32, 21, (9, 13, 6))):
            size = np.array(semi, dtype=float) * [1.0, 1.0, wide]
            parts.append(_radius(grid, np.array([18.0, y0, side * x0]), size) - 1)
    return np.minimum.reduce(parts)


def _lesion(
    rng: np.random.Generator, grid: tuple[np.ndarray, ...], depth: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Soft membership of one lesion of about 20 to 30 mm centred deep in white matter."""
    central = (np.abs(grid[2]) > 18) & (np.abs(grid[0] - 20) < 35)
    centres = np.argwhere((depth > 18) & free & central)
    k, j, i = centres[rng.integers(len(centres))]
    centre = np.array([grid[0][k, 0, 0], grid[1][0, j, 0], grid[2][0, 0, i]])
    semi = rng.uniform(20, 30) / 2 * rng.uniform(0.9, 1.1, 3)
    bumps = 0.1 * _noise(rng, depth.shape, (6, 20, 20))
    return _inside(_radius(grid, centre, semi) - 1 + bumps, 0.07)


def make(
    seed: int, slices: int = 24, size: int = 240, spacing: float = 1.0, dz: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Volume (float32) and lesion mask, [k, j, i]: k upwards, j to the back, i to the left."""
    rng = np.random.default_rng(seed)
    grid = _axes(slices, size, spacing, dz)
    semi = np.array([92.0, 92.0, 73.0]) * rng.uniform(0.94, 1.06, 3)
    centre = np.array([0.0, 0.0, 0.0])
    head = _radius(grid, centre, semi)
    depth = (1 - head) * semi[2] + 0.8 * _noise(rng, head.shape, (6, 10, 10))
    scalp, skull = rng.uniform(4, 6.5), rng.uniform(3.5, 6)
    brain_depth = depth - scalp - skull - 1.5

    volume = np.zeros(head.shape)
    fat = FLAIR_LEVELS["fat"] * rng.uniform(0.75, 1.2)
    volume = _blend(volume, fat, _inside(-depth, 0.5))
    volume = _blend(volume, FLAIR_LEVELS["skull"], _inside(scalp - depth, 0.6))
    volume = _blend(volume, FLAIR_LEVELS["csf"], _inside(scalp + skull - depth, 0.6))
    volume = _blend(volume, _brain(rng, grid, brain_depth), _inside(-brain_depth, 0.5))
    ventricle = _ventricles(rng, grid)
    rim = np.exp(-(((ventricle - 0.12) / 0.12) ** 2)) * 0.12
    volume = volume * (1 + rim * (brain_depth > 5))
    lesion = _lesion(rng, grid, brain_depth, ventricle > 0.4)
    lesion_level = rng.uniform(1.5, 1.9) * (1 + 0.04 * _noise(rng, head.shape, (6, 14, 14)))
    volume = _blend(volume, lesion_level, lesion)
    volume = _blend(volume, FLAIR_LEVELS["csf"], _inside(ventricle, 0.06))
    return _acquire(rng, volume), (lesion > 0.5) & (ventricle > 0)


def _acquire(rng: np.random.Generator, ideal: np.ndarray) -> np.ndarray:
    """Coil shading, in-plane point spread and Rician noise, in scanner-like grey values."""
    shading = np.exp(0.07 * _noise(rng, ideal.shape, (2, 2, 2)))
    image = gaussian_filter(ideal * shading, (0.25, 0.7, 0.7))
    sigma = rng.uniform(0.02, 0.05)
    real = image + sigma * rng.standard_normal(image.shape)
    magnitude = np.hypot(real, sigma * rng.standard_normal(image.shape))
    return (magnitude * GREY_VALUES_PER_BRAIN).astype(np.float32)
