"""The place where the parts of one node meet: configuration, state folder, clock and bells."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from node.bells import Bell
from node.config import Config
from node.domain.stage import Reached, unobserved
from node.ledger import Ledger
from node.presence import Presence
from node.rebuild import opened
from node.sandbox import InProcess, Sandbox
from node.spool import Spool

Ring = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Watcher:
    """How the outside looks at a node; tests and the demo put in their own."""

    clock: Callable[[], float] = time.time
    stopwatch: Callable[[], float] = time.perf_counter
    reached: Reached = unobserved
    progress: Callable[[int, int], None] = lambda done, total: None
    reader: Callable[[], Sandbox | InProcess] = Sandbox
    """Makes what reads the headers of arrivals; only what we made ourselves is read without."""


@dataclass(frozen=True)
class Site:
    """What every part is given. ``worker`` tells several workers of one node apart.

    ``bells`` rings a part by name; without it the bells in the state folder are rung.
    """

    config: Config
    watcher: Watcher = field(default_factory=Watcher)
    bells: Mapping[str, Ring] | None = None
    worker: str = "worker"
    _held: ExitStack = field(default_factory=ExitStack, repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, opened when it is first asked for; made anew if it is lost or damaged."""
        path = self.config.node.state / "ledger.sqlite"
        return opened(path, self.spool, self.watcher.clock())

    @cached_property
    def spool(self) -> Spool:
        """The spool."""
        watcher = self.watcher
        return Spool(
            self.config.node.state / "spool",
            watcher.clock,
            watcher.reached,
            watermark=self.config.scp.watermark_mb * 1_000_000,
        )

    @cached_property
    def presence(self) -> Presence:
        """Which parts are there."""
        return Presence(self.config.node.state / "presence")

    def appear(self, name: str) -> None:
        """Be there under a name until ``close``. Raises AlreadyPresent."""
        self._held.enter_context(self.presence.hold(name))

    def bell(self, part: str) -> Bell:
        """The bell of a part in another process."""
        return Bell(self.config.node.state / "bells" / part)

    def ring(self, part: str) -> Ring:
        """What wakes a part."""
        return self.bells[part] if self.bells is not None else self.bell(part).ring

    def close(self) -> None:
        """Close the ledger, if it was opened, and be gone."""
        if "ledger" in self.__dict__:
            self.ledger.close()
        self._held.close()
