"""Results to a PACS, by C-STORE: where the radiologist's own viewer finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from node.dicom import commitment, scu
from node.dicom.requestor import known_peer
from node.domain.errors import ContextRejected, StatusError
from node.domain.peer import Network, Receipt
from node.domain.proof import CommitmentReport, ProofPlan


@dataclass(frozen=True, config={"extra": "forbid"})
class Store:
    """C-STORE to a peer over one association (PS3.4 Annex B), and the proof that it keeps it."""

    peer: str
    """Name of the [[peer]] that stores the results; it has a host and a port."""
    proof: Literal["auto", "none", "find", "commitment"] = "auto"
    """What shows that the peer keeps a result. commitment: Storage Commitment (PS3.4 Annex J),
    then C-FIND; find: C-FIND at IMAGE level; auto: as find, but no alarm where the peer has no
    C-FIND; none: what it accepted is done."""
    proof_delay_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds from the C-STORE to the first C-FIND: an archive may index what it took later."""
    proof_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds to wait for the commitment report, and until what is not found is sent again."""
    proof_resends: Annotated[int, Field(ge=0)] = 2
    """How often a result that the peer accepted and does not have is sent again."""
    report_wait_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that the association of a commitment request stays open for the report."""

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        """One receipt per file, in order; "duplicate SOP instance" counts as accepted.

        Raises PeerUnreachable and PeerRejected when the peer cannot be reached, and PeerError
        when no peer has this name.
        """
        yield from scu.store(network, known_peer(network, self.peer), files)

    def probe(self, network: Network) -> None:
        """C-ECHO. Any answer will do: a peer that refuses Verification may well store."""
        try:
            scu.echo(network, known_peer(network, self.peer))
        except (ContextRejected, StatusError):
            return

    def prover(self) -> Store | None:
        """This destination, unless the configuration wants no proof."""
        return None if self.proof == "none" else self

    @property
    def plan(self) -> ProofPlan:
        """The options of the proof. Raises ValueError where no proof is wanted."""
        if self.proof == "none":
            raise ValueError("no proof is wanted")
        return ProofPlan(self.proof, self.proof_delay_s, self.proof_timeout_s, self.proof_resends)

    def ask(
        self,
        files: Sequence[Path],
        transaction_uid: str,
        keep: Callable[[CommitmentReport], object],
        network: Network,
    ) -> None:
        """Request storage commitment of the files by N-ACTION. Raises PeerError, HeaderError."""
        references = [commitment.read_reference(path) for path in files]
        request = commitment.request_of(transaction_uid, references)
        peer = known_peer(network, self.peer)
        scu.request_commitment(network, peer, request, keep, self.report_wait_s)

    def look(self, files: Sequence[Path], network: Network) -> frozenset[str]:
        """Which of the files the peer finds by C-FIND. Raises PeerError, HeaderError."""
        references = [commitment.read_reference(path) for path in files]
        return scu.kept(network, known_peer(network, self.peer), references)
