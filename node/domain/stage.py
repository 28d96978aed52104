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

    STARTED = "started"
    """A part has taken up what its last run left."""
    ASSOCIATED = "associated"
    """A caller was looked at; it has not yet heard whether it is let in."""
    RECEIVED = "received"
    """A whole data set has come; nothing of it is on disk under its name."""
    BYTES_WRITTEN = "bytes written"
    BYTES_SYNCED = "bytes synced"
    """fsync is done; the file has no name that counts."""
    BYTES_NAMED = "bytes named"
    """The rename is done; a loss of power may undo it."""
    BYTES_DURABLE = "bytes durable"
    """The directory is synced as well; the answer 0x0000 is not yet sent."""
    ENTERED = "entered"
    """The ledger has the instance; its file still lies among the arrivals."""
    INDEXED = "indexed"
    QUARANTINED = "quarantined"
    STUDY_COMPLETE = "study complete"
    JOB_CREATED = "job created"
    JOB_CLAIMED = "job claimed"
    SELECTED = "selected"
    LOADED = "loaded"
    INFERRED = "inferred"
    ENCODED = "encoded"
    CHECKED = "checked"
    RESULT_WRITTEN = "result written"
    """One of a job's objects is frozen; others may follow."""
    RESULT_FROZEN = "result frozen"
    JOB_FINISHED = "job finished"
    DELIVERY_STARTED = "delivery started"
    RESULT_ACCEPTED = "result accepted"
    """The destination has answered success; the ledger does not know yet."""
    DELIVERY_RECORDED = "delivery recorded"
    PROOF_ASKED = "proof asked"
    """The destination has answered what it keeps; the ledger does not know yet."""
    PROVEN = "proven"
    """The ledger has the proof that a destination keeps a result."""


Reached = Callable[[Stage, str], None]
"""Called with the stage and the UID or id of what reached it."""


def unobserved(stage: Stage, subject: str) -> None:
    """The Reached of a node that nobody watches."""
