"""Looks at what came back as somebody would who trusts nobody.

Everything is read from the archive's own bytes: identity, references, geometry and conformance of
each object, and, where the truth is known, how well the segmentation meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from node import overlay
from node.bundle import Bundle
from node.conformance import check
from node.dicom import pixels
from node.dicom.geometry import arrange
from node.domain.finding import Finding, Region
from node.domain.job import JobState
from node.domain.study import Study
from node.domain.volume import Volume
from node.ledger.jobs import JobRow

SMALLEST_DICE = 0.7
"""What a segmentation of the phantom must reach; see the engine's card for its figures."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Returned:
    """What was sent, what the archive got, and what the ledger says; ``truth`` is the phantom's.

    ``in_time`` is False when the wait for the results was given up.
    """

    sent: tuple[Dataset, ...]
    objects: tuple[Dataset, ...]
    job: JobRow | None
    study: Study | None
    bundle: Bundle | None
    truth: NDArray[np.bool_] | None
    in_time: bool

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self.job.job.engine if self.job else ""

    @cached_property
    def volume(self) -> Volume | None:
        """The analysed series, loaded once more from the node's spool."""
        if self.job is None or self.study is None or self.bundle is None:
            return None
        wanted = self.bundle.wanted[0]
        chosen = self.job.trace.get("chosen", {}).get(wanted.role)
        series = [series for series in self.study.series if series.uid == chosen]
        return pixels.load(arrange(series[0].instances, wanted.tolerance)) if series else None

    @cached_property
    def sources(self) -> tuple[Dataset, ...]:
        """The sent images that were analysed, in slice order."""
        if self.volume is None:
            return ()
        by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in self.sent}
        return tuple(by_uid[instance.sop_instance_uid] for instance in self.volume.sources)

    @cached_property
    def segmentation(self) -> Dataset | None:
        """The SEG, if one came back."""
        found = [made for made in self.objects if made.SOPClassUID == SegmentationStorage]
        return found[0] if found else None

    @cached_property
    def masks(self) -> tuple[NDArray[np.bool_], ...]:
        """One mask (k, j, i) per segment, read back from the SEG on the source's slices."""
        if self.segmentation is None or self.volume is None:
            return ()
        seg = hd.seg.Segmentation.from_dataset(self.segmentation)
        stack = seg.get_pixels_by_source_instance(
            [str(source.SOPInstanceUID) for source in self.sources],
            ignore_spatial_locations=False,
            assert_missing_frames_are_empty=True,
        )
        return tuple(stack[..., number] > 0 for number in range(stack.shape[-1]))


def inspect(returned: Returned) -> tuple[tuple[Check, ...], float | None]:
    """Every check, and the Dice coefficient where the truth is known."""
    assessed = _assessed(returned)
    if not assessed.ok:
        return (assessed,), None
    dice = _dice(returned)
    checks = [assessed, *_objects(returned), *_conformance(returned), *_geometry(returned)]
    if dice is not None:
        checks.append(
            Check("segmentation meets the truth", dice >= SMALLEST_DICE, f"Dice {dice:.3f}")
        )
    return tuple(checks), dice


def draw(returned: Returned, path: Path) -> Path | None:
    """The overlay of the key slice, from the SEG as the archive has it."""
    if returned.volume is None or returned.bundle is None:
        return None
    concepts = [label.concept for label in returned.bundle.manifest.findings]
    findings = [
        Finding(concepts[0], str(segment.TrackingID), str(segment.TrackingUID), Region.of(mask))
        for segment, mask in zip(_segments(returned), returned.masks, strict=True)
    ]
    return overlay.draw(returned.volume, findings, path, algorithm=returned.bundle.algorithm())


def _assessed(returned: Returned) -> Check:
    name = "study was assessed"
    if returned.job is None:
        return Check(name, False, "no job came about: the node received no complete study")
    if not returned.in_time:
        return Check(name, False, "the wait for the results was given up")
    state = returned.job.job.state
    return Check(name, state is JobState.DONE, returned.job.reason or str(state))


def _objects(returned: Returned) -> Iterator[Check]:
    """Did everything that was made arrive?"""
    kinds = [str(made.Modality) for made in returned.objects]
    found = len(returned.job.trace["findings"]) if returned.job else 0
    expected = ["SEG", "SR"] if found else ["SR"]
    yield Check(
        "archive has every result once", sorted(kinds) == expected, ", ".join(kinds) or "nothing"
    )


def _conformance(returned: Returned) -> Iterator[Check]:
    """Identity, references and content of each object, by the node's own rules."""
    for made in returned.objects:
        others = tuple(other for other in returned.objects if other is not made)
        faults = check(made, returned.sources, others)
        yield Check(
            f"{made.Modality}: identity, references, standard", not faults, "; ".join(faults)
        )


def _geometry(returned: Returned) -> Iterator[Check]:
    """Every frame of the SEG lies on the source slice that it names."""
    if returned.segmentation is None:
        return
    by_uid = {str(source.SOPInstanceUID): source for source in returned.sources}
    wrong = [
        number
        for number, frame in enumerate(returned.segmentation.PerFrameFunctionalGroupsSequence, 1)
        if not _in_place(frame, by_uid)
    ]
    count = len(returned.segmentation.PerFrameFunctionalGroupsSequence)
    detail = f"frames {wrong} of {count}" if wrong else f"{count} frames"
    yield Check("SEG: each frame lies on its source slice", not wrong, detail)


def _in_place(frame: Dataset, by_uid: dict[str, Dataset]) -> bool:
    named = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    source = by_uid.get(str(named))
    position = frame.PlanePositionSequence[0].ImagePositionPatient
    return source is not None and np.allclose(position, source.ImagePositionPatient, atol=1e-3)


def _dice(returned: Returned) -> float | None:
    """Dice coefficient 2|A and B| / (|A| + |B|) of all segments together (Dice 1945)."""
    if returned.truth is None or returned.volume is None:
        return None
    found = np.zeros(returned.truth.shape, bool)
    for mask in returned.masks:
        found |= mask
    both = 2 * int(np.count_nonzero(found & returned.truth))
    every = int(np.count_nonzero(found)) + int(np.count_nonzero(returned.truth))
    return both / max(1, every)


def _segments(returned: Returned) -> list[Dataset]:
    return list(returned.segmentation.SegmentSequence) if returned.segmentation else []
