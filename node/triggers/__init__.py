"""Triggers: what turns studies into jobs, or brings them here.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``TRIGGERS``.
"""

from __future__ import annotations

from typing import Protocol

from node.room import Room
from node.triggers.push import Push
from node.triggers.query import Query


class Trigger(Protocol):
    """One way in which work comes about."""

    def fire(self, room: Room, now: float) -> None:
        """Do what is due at ``now`` (seconds since the epoch). Doing it twice is harmless."""


TRIGGERS: dict[str, type[Trigger]] = {
    "push": Push,
    "query": Query,
}
