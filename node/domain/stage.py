"""The named stages of an instance's way through the node.

Every part tells an injected callable when it has reached a stage. The daemon turns that into
progress (the watchdog, the demo's table of times); the tests end the process there, to show that
nothing acknowledged is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """In the order in which one study passes them."""

    ASSOCIATED = "associated"
    BYTES_WRITTEN = "bytes written"
    BYTES_DURABLE = "bytes durable"
    """fsync and rename are done; the answer 0x0000 is not yet sent."""
    INDEXED = "indexed"
    STUDY_COMPLETE = "study complete"
    JOB_CREATED = "job created"
    JOB_CLAIMED = "job claimed"
    SELECTED = "selected"
    LOADED = "loaded"
    INFERRED = "inferred"
    ENCODED = "encoded"
    CHECKED = "checked"
    RESULT_FROZEN = "result frozen"
    JOB_FINISHED = "job finished"
    DELIVERY_STARTED = "delivery started"
    RESULT_ACCEPTED = "result accepted"
    """The destination has answered success; the ledger does not know yet."""
    DELIVERY_RECORDED = "delivery recorded"


Reached = Callable[[Stage, str], None]
"""Called with the stage and the UID or id of what reached it."""


def unobserved(stage: Stage, subject: str) -> None:
    """The Reached of a node that nobody watches."""
