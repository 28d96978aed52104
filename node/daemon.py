"""A whole node in one process: every part, wired with direct calls instead of bells.

The demo and the tests run it so; in service each part is a process of its own
(``node.supervisor``, or one systemd unit each).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from node.crew import wait_for_end
from node.parts.gateway import Gateway
from node.parts.receiver import Receiver
from node.parts.worker import Bench
from node.site import Site, Watcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from node.config import Config
    from node.ledger import Ledger
    from node.pipeline import Setup
    from node.room import Room
    from node.spool import Spool


class Node:
    """A node on one machine. ``with Node(config) as node: node.wait()``."""

    _gateway: Gateway
    _bench: Bench

    def __init__(self, config: Config, watcher: Watcher | None = None) -> None:
        """Load every engine and open the spool and the ledger. Raises NodeError."""
        bells = {
            "gateway": lambda: self._gateway.crew.wake(),
            "worker": lambda: self._bench.crew.wake(),
        }
        self._site = Site(config, watcher or Watcher(), bells)
        self._gateway = Gateway(self._site)
        self._bench = Bench(self._site)
        self._receiver = Receiver(self._site)
        self._parts = (self._gateway, self._bench, self._receiver)

    @property
    def port(self) -> int:
        """The port on which we listen (of interest where the configuration says 0)."""
        return self._receiver.port

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self._site.ledger

    @property
    def spool(self) -> Spool:
        """The spool."""
        return self._site.spool

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The loaded engines by name."""
        return self._bench.setups

    @property
    def room(self) -> Room:
        """What triggers are given."""
        return self._gateway.room

    def start(self) -> None:
        """Recover what the last run left; the door opens last. Raises NodeError."""
        for part in self._parts:
            part.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a loop has ended. True if one has; raises what ended it."""
        return wait_for_end(tuple(part.crew for part in self._parts), timeout_s)

    def stop(self) -> None:
        """Close the door, let each part finish its step, and close the books."""
        for part in reversed(self._parts):
            part.stop()
        self._site.close()

    def __enter__(self) -> Node:
        """Start the node; one that cannot start leaves nothing running."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the node."""
        self.stop()
