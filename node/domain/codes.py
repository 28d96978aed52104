"""Coded concepts: value, scheme designator, meaning (PS3.3 section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept such as ``Code("52988006", "SCT", "Lesion")``."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    value: str
    scheme: str
    meaning: str

    def __str__(self) -> str:
        return f"({self.value}, {self.scheme}, {self.meaning!r})"


PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")  # IHE AIR 6.5.3.1
"""Purpose of Reference of the Contributing Equipment item that names the engine."""
