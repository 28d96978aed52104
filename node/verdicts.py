"""Verdicts: what a verification came to, and where that is kept.

A verdict is kept under a name made of everything that could change it, so a start with the same
package, library, driver and node asks nothing again, and a start with any other does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from node.gates import Gate

_log = structlog.get_logger()

FOLDER = "verified"
"""Where verdicts are kept, in the state folder."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an output was from the reference's: largest and mean absolute difference."""

    output: str
    largest: float
    mean: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification came to.

    ``package`` is the digest of the engine's package, ``runtime`` what computed, in words, and
    ``version`` the node's. ``at`` is seconds since the epoch, ``seconds`` how long it took.
    """

    engine: str
    package: str
    runtime: str
    version: str
    gates: tuple[Gate, ...]
    deviations: tuple[Deviation, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    at: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every gate let it through; where there was none, nothing was verified."""
        return bool(self.gates) and all(gate.passed for gate in self.gates)

    @property
    def failures(self) -> tuple[Gate, ...]:
        """The gates that did not."""
        return tuple(gate for gate in self.gates if not gate.passed)

    @property
    def digest(self) -> str:
        """sha256 over everything but the time, hexadecimal: the same answers, the same digest."""
        content = asdict(replace(self, seconds=0.0, at=0.0))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Records:
    """The verdicts that were kept, one file each, in a folder of the state folder."""

    folder: Path

    def find(self, key: str) -> Verdict | None:
        """A verdict that passed, if one is kept.

        What cannot be read counts as not there: the network is verified again.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._path(key).read_text(encoding="utf-8"))
            verdict = _understood(content)
            if verdict.passed and verdict.digest == content["digest"]:
                return verdict
        return None

    def keep(self, key: str, verdict: Verdict) -> None:
        """Write a verdict, whatever it was. A disk that is full costs another verification later,
        and no more."""
        marked = [asdict(gate) | {"passed": gate.passed} for gate in verdict.gates]
        content = asdict(verdict) | {
            "gates": marked,
            "passed": verdict.passed,
            "digest": verdict.digest,
        }
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            _log.warning("verdict cannot be kept", engine=verdict.engine, error=error.strerror)

    def all(self) -> Iterator[Verdict]:
        """Every verdict that is kept, and was not changed since, the newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(path.read_text(encoding="utf-8"))
                verdict = _understood(content)
                found.extend([verdict] if verdict.digest == content["digest"] else [])
        yield from sorted(found, key=lambda one: -one.at)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _understood(content: Mapping[str, Any]) -> Verdict:
    plain = {name: content[name] for name in ("engine", "package", "runtime", "version")}
    return Verdict(
        **plain,
        gates=tuple(
            Gate(one["name"], float(one["value"]), float(one["limit"]), bool(one["at_most"]))
            for one in content["gates"]
        ),
        deviations=tuple(Deviation(**one) for one in content["deviations"]),
        notes=tuple(content["notes"]),
        seconds=float(content["seconds"]),
        at=float(content["at"]),
    )
