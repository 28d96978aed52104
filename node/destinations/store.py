"""Results to a PACS, by C-STORE: where the radiologist's own viewer finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from node.dicom import scu
from node.dicom.requestor import known_peer
from node.domain.peer import Network, Receipt


@dataclass(frozen=True, config={"extra": "forbid"})
class Store:
    """C-STORE to a peer over one association (PS3.4 Annex B)."""

    peer: str
    """Name of the [[peer]] that stores the results; it has a host and a port."""

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        """One receipt per file, in order; "duplicate SOP instance" counts as accepted.

        Raises PeerUnreachable and PeerRejected when the peer cannot be reached, and PeerError
        when no peer has this name.
        """
        yield from scu.store(network, known_peer(network, self.peer), files)
