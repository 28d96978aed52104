"""An archive that remembers what was stored how often, and with which bytes."""

from __future__ import annotations

import hashlib
from collections import Counter

from node.testing.archive import Archive


class Vault(Archive):
    """The far end of a trial."""

    def __init__(self) -> None:
        """Empty, with nothing planned against the node."""
        super().__init__()
        self.contents: dict[str, set[str]] = {}

    def __enter__(self) -> Vault:
        self.start()
        return self

    @property
    def uids(self) -> set[str]:
        """SOP Instance UID of everything that it was sent."""
        return set(self.stored)

    @property
    def resent(self) -> int:
        """How many objects came again after they had been accepted."""
        return sum(count - 1 for count in Counter(self.stored).values())

    @property
    def ambiguous(self) -> set[str]:
        """SOP Instance UIDs under which different bytes came."""
        return {uid for uid, digests in self.contents.items() if len(digests) > 1}

    def _hold(self, content: bytes, uid: str) -> None:
        self.contents.setdefault(uid, set()).add(hashlib.sha256(content).hexdigest())
        super()._hold(content, uid)
