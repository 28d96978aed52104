"""Outputs: an assessment becomes DICOM objects.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``OUTPUTS``. The contract tests then check what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydicom.dataset import Dataset

from node.domain.finding import Assessment
from node.domain.volume import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The images that were analysed: their headers in slice order, and the grid they form.

    The headers are read from the spooled bytes at the time of encoding, so that identity is
    copied from the source itself. ``grid`` is None where the images form no volume.
    """

    headers: tuple[Dataset, ...]
    grid: Grid | None


class Output(Protocol):
    """One kind of result object."""

    def encode(
        self, assessment: Assessment, source: Source, earlier: Sequence[Dataset]
    ) -> Dataset | None:
        """The object with file meta information, or None when there is nothing for it to say.

        ``earlier`` are the objects that the outputs before this one made of the same assessment.
        The same arguments give the same bytes. Raises EncodingError.
        """
