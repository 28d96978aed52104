"""The networks of an engine, one or several, each looking at the same volumes.

A session that takes the whole sliding window on its device is given it; any other is fed block by
block. Networks look one after the other, and sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from node.domain.blame import blamed
from node.domain.errors import RuntimeUnavailable
from node.gpu.canvas import Labelled, Labelling
from node.progress import Progress, share
from node.runtimes import Labeller, Session, Sweeper
from node.windows import Activation, Window, activated, predict

_log = structlog.get_logger()

Answer = NDArray[np.float32]
"""Probabilities or logits, (classes, k, j, i)."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A loaded network and the window through which it looks."""

    session: Session
    window: Window

    @property
    def sweeps(self) -> bool:
        """Whether its device takes this window as a whole."""
        asked = getattr(self.session, "sweeps", None)
        return isinstance(self.session, Sweeper) and (asked is None or bool(asked(self.window)))

    def look(
        self,
        feeds: Mapping[str, NDArray[Any]],
        output: str,
        progress: Progress | None,
        after: Activation = "none",
    ) -> Answer:
        """The tensor ``output`` over whole volumes; ``after`` is done to what was blended.

        Raises InferenceError.
        """
        if isinstance(self.session, Sweeper) and self.sweeps:
            return self.session.sweep(feeds, self.window, output, progress, after)
        return activated(predict(self.session.infer, feeds, self.window, output, progress), after)

    def label(
        self,
        feeds: Mapping[str, NDArray[Any]],
        output: str,
        rule: Labelling,
        progress: Progress | None,
    ) -> Labelled | None:
        """Labels by a rule, made where the network computes; None where that cannot be done.

        Raises InferenceError.
        """
        if not isinstance(self.session, Labeller) or not self.sweeps:
            return None
        try:
            return self.session.labels(feeds, self.window, output, rule, progress)
        except RuntimeUnavailable as error:
            _log.warning("labels are made on the host", why=str(error))
            return None


def looks(
    networks: Sequence[Network],
    feeds: Mapping[str, NDArray[Any]],
    output: str,
    progress: Progress | None,
    after: Activation = "none",
) -> Iterator[Answer]:
    """The answer of each network in turn, made when it is asked for. Raises InferenceError."""
    for number, network in enumerate(networks):
        name = f"network {number + 1} of {len(networks)}" if len(networks) > 1 else "network"
        with blamed(name):
            answer = network.look(feeds, output, share(progress, number, len(networks)), after)
        yield answer


def mean(answers: Iterable[Answer]) -> Answer:
    """The mean of answers, in the memory of the first; one alone is its own."""
    waiting = iter(answers)
    total, count = next(waiting), 1
    for answer in waiting:
        total += answer
        count += 1
    if count > 1:
        total /= count
    return total
