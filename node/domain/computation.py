"""What computed a result: words that go into the result itself and into the event log."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Computation:
    """``runtime`` names library, version, precision, plan and device; ``verification`` is the
    digest of the verdict that let it serve, hexadecimal. Empty: nobody has said.
    """

    runtime: str = ""
    verification: str = ""

    def __str__(self) -> str:
        verified = self.verification[:_SHOWN]
        parts = (
            f"computed by {self.runtime}" if self.runtime else "",
            f"verification {verified}" if verified else "",
        )
        return "; ".join(part for part in parts if part)
