"""Quiet hours: when a device is not wanted for studies, and may compile networks instead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_DAY = 24 * 60
_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A span of every day by the local clock, in minutes since midnight; it may pass midnight.

    ``begin`` belongs to it, ``end`` does not; two equal ones mean the whole day.
    """

    begin: int = 22 * 60
    end: int = 6 * 60

    def __post_init__(self) -> None:
        """Refuse what is no time of day."""
        if not (0 <= self.begin < _DAY and 0 <= self.end < _DAY):
            raise ValueError(f"quiet hours lie between 00:00 and 23:59: {self.begin}, {self.end}")

    @classmethod
    def read(cls, text: str) -> QuietHours:
        """From "22:00-06:00". Raises ValueError."""
        found = _SPAN.fullmatch(text.replace(" ", ""))
        if found is None:
            raise ValueError(f"write quiet hours as 22:00-06:00, not {text!r}")
        hour, minute, to_hour, to_minute = (int(part) for part in found.groups())
        return cls(hour * 60 + minute, to_hour * 60 + to_minute)

    def __str__(self) -> str:
        return "-".join(f"{time // 60:02}:{time % 60:02}" for time in (self.begin, self.end))


def may_build(now: datetime, hours: QuietHours | None) -> bool:
    """Whether a network may be compiled at a local time; without quiet hours it always may."""
    if hours is None:
        return True
    since_begin = (now.hour * 60 + now.minute - hours.begin) % _DAY
    return since_begin < ((hours.end - hours.begin) % _DAY or _DAY)
