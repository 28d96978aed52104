"""Parts: what runs of a node, together in one process or each in its own.

::

    receiver: Scp -> Spool.keep --bell--> gateway: [intake: Indexer, Push] --bell--> worker
                                          gateway: [courier per destination] <--bell---'

Each pair of brackets is a loop in a thread. The parts share the state folder and nothing else, so
whatever becomes of one, the others serve. To add one: a class in a sibling file and one line in
``PARTS``.
"""

from __future__ import annotations

from typing import Protocol

from node.crew import Crew
from node.site import Site


class Part(Protocol):
    """One part of a node."""

    crew: Crew
    """Its loops."""

    def start(self) -> None:
        """Recover what the last run left, and begin to serve. Raises NodeError."""

    def alive(self, now: float) -> bool:
        """Whether it has shown lately that it still makes progress; ``now`` is the clock's."""

    def stop(self) -> None:
        """Finish what is under way and give everything back."""


class Maker(Protocol):
    """How a part comes about."""

    def __call__(self, site: Site) -> Part:
        """Load what the part needs. Raises NodeError."""


# A part is imported when it is made: the receiver need not carry what only a worker computes with.


def _receiver(site: Site) -> Part:
    from node.parts.receiver import Receiver

    return Receiver(site)


def _gateway(site: Site) -> Part:
    from node.parts.gateway import Gateway

    return Gateway(site)


def _worker(site: Site) -> Part:
    from node.parts.worker import Bench

    return Bench(site)


PARTS: dict[str, Maker] = {
    "receiver": _receiver,
    "gateway": _gateway,
    "worker": _worker,
}
"""In the order in which they start."""
