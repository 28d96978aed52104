"""A scanner: sends objects to a node over one real association.

The demo needs somebody to send, and the tests a sender that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.dataset import Dataset

from node.dicom import scu
from node.domain.peer import Network, Peer, Receipt

Progress = Callable[[int, int], object]
"""Called after each object with how many are sent and how many there are."""


@dataclass(frozen=True, slots=True)
class Called:
    """The node that the scanner sends to, and the AE title that the scanner gives itself."""

    host: str
    port: int
    ae_title: str
    calling_ae: str = "MODALITY"


@dataclass(frozen=True, slots=True)
class Sent:
    """The answers in the order of sending."""

    receipts: tuple[Receipt, ...]

    @property
    def accepted(self) -> int:
        """How many objects the node acknowledged."""
        return sum(receipt.accepted for receipt in self.receipts)

    @property
    def statuses(self) -> dict[int, int]:
        """How often each DIMSE status was answered."""
        every = [receipt.status for receipt in self.receipts]
        return {status: every.count(status) for status in sorted(set(every))}


def _silent(sent: int, total: int) -> None:
    """The Progress of a scanner that nobody watches."""


def send(
    source: Path | Sequence[Path] | Sequence[Dataset], called: Called, progress: Progress = _silent
) -> Sent:
    """Send the files under a folder in order of name, files, or data sets, over one association.

    Raises PeerUnreachable, PeerRejected.
    """
    with TemporaryDirectory() as directory:
        files = _files(source, Path(directory))
        peer = Peer("node", called.ae_title, called.host, called.port)
        receipts: list[Receipt] = []
        for receipt in scu.store(Network(called.calling_ae), peer, files):
            receipts.append(receipt)
            progress(len(receipts), len(files))
    return Sent(tuple(receipts))


def _files(source: Path | Sequence[Path] | Sequence[Dataset], directory: Path) -> list[Path]:
    if isinstance(source, Path):
        return sorted(path for path in source.rglob("*") if path.is_file())
    return [
        _saved(entry, directory / f"{number:06d}.dcm")
        if isinstance(entry, Dataset)
        else Path(entry)
        for number, entry in enumerate(source)
    ]


def _saved(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
