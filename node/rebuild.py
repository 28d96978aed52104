"""A ledger that is lost or damaged is made anew from the spool, which is the truth.

::

    ledger.sqlite       -> ledger.sqlite.broken-<time>    kept, for whoever wants to look
    spool/studies/...   -> spool/incoming/                read again by the indexer
    spool/results/...   -> re-entered by the reconciler, by what lies beside them

Only renames happen here, so a node with a hundred thousand objects opens its door at once; the
indexer catches up behind it. What only the ledger knew is gone: the event log, queries' marks,
jobs without results (they run again), and whether a result was delivered (it is delivered again,
the same object under the same UID).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.audit import ANCHOR_NAME, Anchor
from node.domain.errors import LedgerBroken
from node.domain.event import EventKind
from node.ledger import Ledger
from node.ledger.quarantine import Entry, Kind
from node.spool import Spool

_log = structlog.get_logger()

_SIDE_FILES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild came to. ``aside`` is the broken file, None where there was none."""

    aside: Path | None
    instances: int
    quarantined: int


def opened(path: Path, spool: Spool, now: float) -> Ledger:
    """The ledger, made anew if it is damaged, or gone while there is something in the spool.

    Several parts may call this at once; one of them does the work. Raises LedgerBusy.
    """
    with _alone(path):
        reason = _fault(path, spool)
        if reason:
            _log.error("ledger is made anew", reason=reason)
            rebuild(path, spool, now, reason)
        return Ledger.open(path)


def rebuild(path: Path, spool: Spool, now: float, reason: str) -> Rebuilt:
    """Put the ledger aside, begin a new one, and give everything in the spool to the indexer.

    No part of the node may have the ledger open.
    """
    # The files first: a crash after this finds no ledger and a spool with studies, or arrivals.
    instances = spool.unshelve()
    aside = _put_aside(path, now)
    Anchor(path.with_name(ANCHOR_NAME)).set_aside(now)
    with closing(Ledger.open(path)) as ledger, ledger.write() as books:
        count = sum(
            books.quarantine.add(Entry(place, Kind.UNREADABLE, why, now)) is not None
            for place, why in spool.kept_aside()
        )
        kept = f"; the old file is kept as {aside.name}" if aside else ""
        words = f"ledger made anew from {instances} objects in the spool: {reason}{kept}"
        books.events.note(now, EventKind.REBUILT, words)
        books.events.note(now, EventKind.ALARM, words)
    return Rebuilt(aside, instances, count)


def _fault(path: Path, spool: Spool) -> str:
    """Why the ledger must be made anew; "" when it is sound, or when this node never ran."""
    shelved = next(spool.shelved(), None) is not None
    if not path.exists():
        return "its file is gone" if shelved else ""
    try:
        with closing(Ledger.open(path)) as ledger:
            found = ledger.faults()[:3]
            with ledger.read() as books:
                empty = not books.upkeep.knows_instances()
    except LedgerBroken as error:
        return str(error)
    return "it knows nothing of what is in the spool" if shelved and empty else "; ".join(found)


def _put_aside(path: Path, now: float) -> Path | None:
    aside = None
    for suffix in _SIDE_FILES:
        source = path.with_name(path.name + suffix)
        if source.exists():
            place = path.with_name(f"{path.name}.broken-{int(now)}{suffix}")
            source.replace(place)
            aside = aside or place
    return aside


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other part looks after the ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
