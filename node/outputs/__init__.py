"""Outputs: an assessment becomes DICOM objects.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``OUTPUTS``. The contract tests then check what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydicom.dataset import Dataset

from node.dicom.source import Source
from node.domain.finding import Assessment
from node.outputs.seg import Seg
from node.outputs.sr import Sr

__all__ = ["OUTPUTS", "Output", "Source"]


class Output(Protocol):
    """One kind of result object."""

    def encode(
        self, assessment: Assessment, source: Source, earlier: Sequence[Dataset]
    ) -> Dataset | None:
        """The object with file meta information, or None when there is nothing for it to say.

        ``earlier`` are the objects that the outputs before this one made of the same assessment.
        The same arguments give the same bytes. Raises EncodingError.
        """


OUTPUTS: dict[str, type[Output]] = {"seg": Seg, "sr": Sr}
