"""Plans: what makes two of them different, and how the cache speaks of those that it has.

A plan is a network compiled for one device by one version of one library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

Lengths = tuple[int, ...]
Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Key:
    """Everything that a plan depends on. Two keys that differ anywhere are two plans."""

    weights: str
    """sha256 of the network with its external weights: structure alone is not enough."""
    flavour: str
    """The library: "tensorrt", "tensorrt_rtx"."""
    version: str
    """Of the library that is loaded, all of its numbers."""
    precision: str
    driver: str = ""
    capability: str = ""
    """Compute capability of the device, "9.0"."""
    device: str = ""
    """The device's name."""
    memory: int = 0
    """The device's memory in bytes."""
    profiles: tuple[tuple[str, Lengths, Lengths, Lengths], ...] = ()
    """Tensor, smallest, usual and largest lengths."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """What the builder was set to."""
    schema: int = 1
    """Of the way in which we build."""

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Key:
        """The key of a recipe's identity (``node.gpu.recipe.Recipe.identity``).

        Raises TypeError or KeyError when that has a field more or less than a key.
        """
        profiles = tuple(
            (one["tensor"], *(tuple(one[name]) for name in ("smallest", "usual", "largest")))
            for one in identity["profiles"]
        )
        settings = tuple(sorted(identity["settings"].items()))
        return cls(**dict(identity) | {"profiles": profiles, "settings": settings})

    @property
    def digest(self) -> str:
        """sha256 over all of it, hexadecimal: the name of the plan's folder."""
        return digest_of(asdict(self))


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan in the cache. ``key`` and ``told`` are empty where ``meta.json`` is damaged."""

    digest: str
    key: Mapping[str, Any]
    told: Mapping[str, Any]
    size: int
    """Bytes of everything in its folder."""
    used_at: float
    """Seconds since the epoch."""
    folder: Path


@dataclass(frozen=True, slots=True)
class Rejected:
    """A plan in quarantine."""

    digest: str
    reason: str
    size: int
    folder: Path


class StoreStage(StrEnum):
    """The steps of keeping a plan, in their order."""

    BUILT = "built"
    WRITTEN = "written"
    SYNCED = "synced"
    CLEARED = "cleared"
    """The plan that had the same key before is out of the way."""
    NAMED = "named"
    DURABLE = "durable"


def digest_of(key: object) -> str:
    """sha256 over a key's JSON, in one fixed form, hexadecimal."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
