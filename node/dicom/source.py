"""The images behind a result: what every output, and the gate after it, must agree with."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from node.domain.volume import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The images that were analysed: their headers in slice order, and the grid they form.

    The headers are read from the spooled bytes at the time of encoding, so that identity is
    copied from the source itself. ``grid`` is None where the images form no volume.
    """

    headers: tuple[Dataset, ...]
    grid: Grid | None
