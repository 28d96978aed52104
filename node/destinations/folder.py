"""Results to a folder: for a PACS that imports files, for research, and for looking at them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from node.dicom.contexts import read_label
from node.dicom.wire import is_uid
from node.domain.errors import HeaderError, PeerUnreachable, may_pass
from node.domain.peer import Network, Receipt


@dataclass(frozen=True, config={"extra": "forbid"})
class Folder:
    """One Part 10 file per object, complete or not there, named by its SOP Instance UID."""

    path: Path
    """The folder; its parent must exist, so that a missing mount is noticed."""

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        """One receipt per file, in order. Raises PeerUnreachable when the folder is not writable.

        The same bytes a second time are accepted; other bytes under the same UID are not, because
        somebody may already have read the first.
        """
        self.probe(network)
        for file in files:
            yield self._placed(file)

    def probe(self, network: Network) -> None:
        """Raises PeerUnreachable when the folder is not there and cannot be made."""
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def prover(self) -> None:
        """None: an accepted file is on the disk, or on whatever is mounted there."""

    def _placed(self, file: Path) -> Receipt:
        try:
            uid = read_label(file).sop_instance_uid
            content = file.read_bytes()
        except (HeaderError, OSError) as error:
            if isinstance(error, OSError) and may_pass(error):
                raise
            return Receipt("", accepted=False, reason=f"{file.name} is unreadable: {error}")
        # A UID from a file is text like any other until it has been looked at.
        stem = uid if is_uid(uid) else hashlib.sha256(uid.encode()).hexdigest()
        try:
            same = _write_once(self.path / f"{stem}.dcm", content)
        except OSError as error:
            raise self._unwritable(error) from error
        if same:
            return Receipt(uid, accepted=True)
        return Receipt(
            uid,
            accepted=False,
            reason="the folder has other bytes under this SOP Instance UID: move that file away",
        )

    def _unwritable(self, error: OSError) -> PeerUnreachable:
        return PeerUnreachable(
            f"the folder {self.path} cannot be written ({error.strerror}): mount it, free space, "
            "or give the node the right to write there"
        )


def _write_once(path: Path, content: bytes) -> bool:
    """Write durably and atomically unless the file is there; whether it now has this content."""
    if path.exists():
        return path.read_bytes() == content
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o640)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
