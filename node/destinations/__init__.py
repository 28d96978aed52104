"""Destinations: where finished objects go.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``DESTINATIONS``. The contract tests then check that it is idempotent and that it fails
in typed words. A destination that can show that it keeps what it accepted is a ``Prover`` too, or
has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from node.destinations.folder import Folder
from node.destinations.store import Store
from node.domain.peer import Network, Receipt
from node.domain.proof import CommitmentReport, ProofPlan


class Prover(Protocol):
    """Shows that a destination keeps what it accepted."""

    @property
    def plan(self) -> ProofPlan:
        """What is wanted, and when."""

    def ask(
        self,
        files: Sequence[Path],
        transaction_uid: str,
        keep: Callable[[CommitmentReport], object],
        network: Network,
    ) -> None:
        """Ask for storage commitment; the report comes to ``keep``, or to our own port.

        Raises PeerUnreachable and PeerRejected when nobody answers, ContextRejected and StatusError
        when the destination does not offer it.
        """

    def look(self, files: Sequence[Path], network: Network) -> frozenset[str]:
        """The SOP Instance UIDs of those files that the destination has. Raises as ``ask``."""


class Destination(Protocol):
    """A place for result objects."""

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        """Deliver Part 10 files, one receipt each, in order.

        Delivering the same bytes twice is no error. Raises PeerError when the destination as a
        whole cannot be reached; what has a receipt by then stands.
        """

    def probe(self, network: Network) -> None:
        """See whether the destination can be reached, at little cost. Raises PeerError."""

    def prover(self) -> Prover | None:
        """What proves that an object is kept; None where accepted is all that can be known."""


DESTINATIONS: dict[str, type[Destination]] = {
    "store": Store,
    "folder": Folder,
}
