"""What arrived: instances, series and studies, as header facts without pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Fact = str | float | tuple[str, ...] | tuple[float, ...]
"""A header value: text, finite number, or a tuple of one of them.

A number that is not finite, or text where a number belongs, is kept as the text it was, so that
whoever needs the number refuses it with the text in the reason.
"""


NOT_IMAGES = frozenset(
    ("SR", "SEG", "PR", "KO", "DOC", "REG", "RTSTRUCT", "RTPLAN", "RTRECORD", "FID", "PLAN", "ANN")
)
"""Modality of what is said about images: reports, segmentations, presentation states, plans."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the receiver knows of an object before anything is parsed.

    ``received_at`` is seconds since the epoch; ``sha256`` is the digest of the data set's bytes
    as they came over the wire, in hexadecimal; ``path`` is the spooled Part 10 file.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    peer: str
    calling_ae: str
    called_ae: str
    address: str
    received_at: float
    path: Path


@dataclass(frozen=True, slots=True)
class Instance:
    """One SOP instance on disk: identity, provenance and the header facts of selection.

    ``pixel_offset`` is where the value of Pixel Data begins in the file, in bytes; where it is
    encapsulated, its Basic Offset Table. None where there is none, where its length does not go
    with the transfer syntax, or where a Modality LUT says what the values mean.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    sha256: str
    peer: str
    received_at: float
    path: Path
    transfer_syntax_uid: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    pixel_offset: int | None = None

    @property
    def key(self) -> str:
        """Identity of the content: SOP Instance UID and digest."""
        return f"{self.sop_instance_uid}:{self.sha256}"

    @property
    def is_image(self) -> bool:
        """Whether an engine could look at it.

        What is not an image neither opens a study nor makes a revision of it. Otherwise the
        results that come back from the archive, or a report dictated a day later, would have
        every engine run again.
        """
        return self.facts.get("Modality", "") not in NOT_IMAGES


@dataclass(frozen=True, slots=True)
class Series:
    """All instances of one series, ordered by SOP Instance UID."""

    uid: str
    instances: tuple[Instance, ...]

    def text(self, keyword: str) -> str:
        """The first non-empty value of a fact over all instances, as text; "" when absent."""
        for instance in self.instances:
            value = instance.facts.get(keyword, "")
            if value not in ("", ()):
                return "\\".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return ""


@dataclass(frozen=True, slots=True)
class Study:
    """All instances of one study, grouped into series ordered by Series Instance UID."""

    uid: str
    series: tuple[Series, ...]

    @classmethod
    def of(cls, uid: str, instances: Iterable[Instance]) -> Study:
        """Group instances into series; the order of the instances does not matter."""
        grouped: dict[str, list[Instance]] = {}
        for instance in instances:
            grouped.setdefault(instance.series_uid, []).append(instance)
        return cls(
            uid,
            tuple(
                Series(series, tuple(sorted(grouped[series], key=lambda i: i.sop_instance_uid)))
                for series in sorted(grouped)
            ),
        )

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every instance of the study."""
        return tuple(instance for series in self.series for instance in series.instances)


def revision(keys: Iterable[str]) -> str:
    """Digest of a study's content: sha256 over the sorted instance keys, in hexadecimal.

    Two arrivals of the same bytes, in any order, have the same revision.
    """
    digest = hashlib.sha256()
    for key in sorted(set(keys)):
        digest.update(key.encode())
        digest.update(b"\n")
    return digest.hexdigest()
