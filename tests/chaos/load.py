"""What the modalities of a trial send: small studies, and the outside ledger of every 0x0000."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from node.dicom import scu
from node.domain.errors import PeerError
from node.domain.peer import Network, Peer
from node.testing.series import SeriesSpec, save
from tests.acceptance.hospital import AE_TITLE, MODALITY, small_study

_SLICES = (5, 6, 7, 5)
"""How many instances each study of the pool has."""
_REPEATED = 0.15
"""How many of the instances are sent twice, as modalities do after a time-out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One study on disk: its files by SOP Instance UID, and each file's data set as bytes."""

    uid: str
    files: Mapping[str, Path]
    datasets: Mapping[str, bytes]


def pool(directory: Path) -> tuple[Sample, ...]:
    """The studies from which every trial takes some; the same ones each time."""
    return tuple(
        saved(small_study(_spec(number), slices), directory / f"study-{number}")
        for number, slices in enumerate(_SLICES)
    )


def _spec(number: int) -> SeriesSpec:
    return SeriesSpec(
        spacing=(5.0, 1.0, 1.0),
        study=f"chaos {number}",
        patient_id=f"CHAOS-{number}",
        accession_number=f"CHAOS{number}",
    )


def saved(datasets: Sequence[Dataset], directory: Path) -> Sample:
    """A study as files in a folder."""
    paths = save(datasets, directory)
    uids = [str(dataset.SOPInstanceUID) for dataset in datasets]
    return Sample(
        str(datasets[0].StudyInstanceUID),
        dict(zip(uids, paths, strict=True)),
        {uid: dataset_bytes(path) for uid, path in zip(uids, paths, strict=True)},
    )


def dataset_bytes(path: Path) -> bytes:
    """What of a Part 10 file goes over the wire: all after group 2 (PS3.10 section 7.1)."""
    # 128 bytes of preamble, DICM, the group length element (12 bytes), and what it counts.
    meta = dcmread(path, stop_before_pixels=True).file_meta
    return path.read_bytes()[132 + 12 + int(meta.FileMetaInformationGroupLength) :]


@dataclass(slots=True)
class Modality:
    """Sends until everything is acknowledged, and keeps the ledger that the node cannot touch."""

    queue: list[tuple[str, Path]]
    acknowledged: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    network: Network = Network(MODALITY)

    @classmethod
    def of(cls, samples: Sequence[Sample], dice: random.Random) -> Modality:
        """Studies interleaved in a random order, some instances twice."""
        queue = [entry for sample in samples for entry in sample.files.items()]
        queue += [entry for entry in queue if dice.random() < _REPEATED]
        dice.shuffle(queue)
        return cls(queue)

    @property
    def done(self) -> bool:
        """Whether everything has been acknowledged."""
        return not self.queue

    def send(self, port: int) -> None:
        """Send what has no acknowledgement yet; a broken association ends it."""
        node = Peer("node", AE_TITLE, "127.0.0.1", port)
        sending = list(self.queue)
        try:
            for number, receipt in enumerate(
                scu.store(self.network, node, [path for _, path in sending])
            ):
                self.statuses[receipt.status] += 1
                if receipt.accepted:
                    self.acknowledged[receipt.sop_instance_uid] += 1
                    self.queue.remove(sending[number])
        except PeerError:
            return


def copies(sample: Sample, count: int, directory: Path) -> list[tuple[str, Path]]:
    """Many objects made of one: the same bytes under other SOP Instance UIDs of equal length."""
    directory.mkdir(parents=True)
    uid, path = next(iter(sample.files.items()))
    content = path.read_bytes()
    made = []
    for number in range(count):
        other = f"{uid[:-8]}{number + 10_000_000:08d}"
        file = directory / f"{number:06d}.dcm"
        file.write_bytes(content.replace(uid.encode(), other.encode()))
        made.append((other, file))
    return made
