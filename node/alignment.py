"""Several series become one input: every role's volume on the grid of the reference.

By their place in the patient alone, which two series share where they share a frame of reference
(PS3.3 C.7.4.1). Nothing is registered: movement between the series is not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from node.domain.blame import blamed
from node.domain.errors import InferenceError, NotAssessable
from node.domain.sampling import index_matrix, resampled
from node.domain.volume import Grid, Volume
from node.domain.voxels import finite


def gathered(volumes: Mapping[str, Volume], roles: tuple[str, ...]) -> dict[str, Volume]:
    """The volumes of the roles in order, as float32, each on its own grid.

    Raises InferenceError when one is missing or has no numbers; NotAssessable when one lies in
    another frame of reference than the first.
    """
    missing = [role for role in roles if role not in volumes]
    if missing:
        raise InferenceError(f"no volume was given for the role {', '.join(missing)}")
    first = roles[0]
    found: dict[str, Volume] = {}
    for role in roles:
        with blamed(f"volume of role {role}"):
            found[role] = volumes[role].with_voxels(finite(volumes[role].voxels))
            if role != first:
                _refuse_other_frame(found[role], found[first], first)
    return found


def aligned(volumes: Mapping[str, Volume]) -> dict[str, Volume]:
    """Every role's volume on the grid of the first's.

    Raises NotAssessable when one covers no part of it.
    """
    (first, reference), *_ = volumes.items()
    found: dict[str, Volume] = {}
    for role, volume in volumes.items():
        with blamed(f"volume of role {role}"):
            found[role] = _onto(volume, reference, first)
    return found


def same(grid: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels, to a thousandth of a millimetre."""
    return grid.shape == other.shape and np.allclose(grid.affine, other.affine, rtol=0, atol=1e-3)


def _refuse_other_frame(volume: Volume, reference: Volume, role: str) -> None:
    own, other = volume.frame_of_reference_uid, reference.frame_of_reference_uid
    if not own or own != other:
        raise NotAssessable(
            f"its frame of reference is {'another than' if own else 'unknown, not'} that of "
            f"{role}: the two series share no coordinates. Register them first, or send series of "
            f"one examination"
        )


def _onto(volume: Volume, reference: Volume, role: str) -> Volume:
    """A volume on the grid of another series in the same frame of reference."""
    if same(volume.grid, reference.grid):
        return volume
    if not _overlap(volume.grid, reference.grid):
        raise NotAssessable(f"it covers no part of the series of {role}")
    return resampled(volume, reference.grid, order=1, value=float(volume.voxels.min()))


def _overlap(grid: Grid, reference: Grid) -> bool:
    """Whether the box around a reference grid meets a grid."""
    lengths = np.array(grid.shape)
    corners = [(*np.multiply(place, np.array(reference.shape) - 1), 1) for place in _CORNERS]
    inside = (index_matrix(grid.affine, reference.affine) @ np.array(corners, float).T)[:3]
    return bool((inside.max(axis=1) >= -0.5).all() and (inside.min(axis=1) <= lengths - 0.5).all())


_CORNERS = tuple(product((0, 1), repeat=3))
