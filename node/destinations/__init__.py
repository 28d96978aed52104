"""Destinations: where finished objects go.

To add one: a frozen pydantic dataclass in a sibling file (its fields are its TOML options), and
one line in ``DESTINATIONS``. The contract tests then check that it is idempotent and that it fails
in typed words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from node.destinations.folder import Folder
from node.destinations.store import Store
from node.domain.peer import Network, Receipt


class Destination(Protocol):
    """A place for result objects."""

    def deliver(self, files: Sequence[Path], network: Network) -> Iterator[Receipt]:
        """Deliver Part 10 files, one receipt each, in order.

        Delivering the same bytes twice is no error. Raises PeerError when the destination as a
        whole cannot be reached; what has a receipt by then stands.
        """


DESTINATIONS: dict[str, type[Destination]] = {
    "store": Store,
    "folder": Folder,
}
