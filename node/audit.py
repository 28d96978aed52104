"""The event log as evidence: proven against a second place, exported, and fed by the receiver.

The log itself is a table of the ledger (``node.ledger.events``). What stands here keeps its last
digest beside the ledger, so that a log that was cut off shows; writes it out for others to read;
and gathers rejected associations, so that a flood of them costs a few rows and no time.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO
from xml.sax.saxutils import quoteattr

import structlog
from sqlalchemy.exc import SQLAlchemyError

from node import reload
from node.config import Config
from node.domain.errors import LedgerError, NodeError
from node.domain.event import ChainProof, Event, EventKind, Head, prove
from node.ledger import Ledger

_log = structlog.get_logger()

ANCHOR_NAME = "audit.head"
"""The file of the state folder that holds the last known head."""

SEEN_NAME = "configuration.seen"
"""The file of the state folder that tells which configuration was noted last: digests per key."""


class AnchorError(NodeError):
    """The file that holds the head of the log is not what was written."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head of the log in a file of its own; it is moved on after every so many events."""

    path: Path
    every: int = 100

    def read(self) -> Head | None:
        """The head that was kept; None when there is no such file. Raises AnchorError."""
        try:
            return Head(**json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise AnchorError(
                f"{self.path} cannot be read: somebody has changed it, or the disk has; compare "
                "the log with a head that was printed or exported earlier"
            ) from error

    def follow(self, ledger: Ledger, *, at_once: bool = False) -> Head | None:
        """Keep the log's head, if so many events have come since, or ``at_once``.

        Returns the head that was written. A log that is shorter than the kept head is left to
        ``verify``: the evidence stays. Raises AnchorError, and OSError when the disk fails.
        """
        kept = self.read() or Head()
        with ledger.read() as books:
            head = books.events.head()
        if head.id - kept.id < (1 if at_once else self.every):
            return None
        _write(self.path, json.dumps(asdict(head)) + "\n")
        return head

    def set_aside(self, now: float) -> Path | None:
        """Make room for the log of a new ledger; the old head is kept under another name."""
        if not self.path.exists():
            return None
        return self.path.replace(self.path.with_name(f"{self.path.name}.{int(now)}"))


def verify(ledger: Ledger, anchor: Anchor) -> ChainProof:
    """Walk the whole log, without holding it in memory. Raises AnchorError."""
    kept = anchor.read()
    with ledger.read() as books:
        return prove(books.events.walk(), kept)


class Caller(Protocol):
    """What is known of a requested association; ``node.dicom.scp.Outcome`` is one."""

    @property
    def calling_ae(self) -> str:
        """The AE title that the caller claims."""

    @property
    def address(self) -> str:
        """Its IP address."""

    @property
    def reason(self) -> str:
        """Why it was rejected; "" when it was not."""


@dataclass(slots=True)
class _Count:
    first_at: float
    times: int = 0


Note = tuple[EventKind, str, str]
"""Kind, actor and words."""


class Notes:
    """What the receiver has to note, gathered until the ledger takes it. Safe in several threads.

    The receiver must not wait for the ledger, and a port scan must not become a row and an fsync
    per attempt: equal notes are one event, which says how often.
    """

    def __init__(self, clock: Callable[[], float], most: int = 256) -> None:
        """``most`` different notes are told apart between two flushes."""
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._counts: dict[Note, _Count] = {}

    def observe(self, caller: Caller) -> None:
        """Count a caller that was rejected; others are nothing to note. Takes microseconds."""
        if caller.reason:
            self.note(EventKind.REJECTED, caller.reason, f"{caller.calling_ae}@{caller.address}")

    def note(self, kind: EventKind, words: str, actor: str = "") -> None:
        """Count something that happened now."""
        key = (kind, actor, words)
        with self._lock:
            if key not in self._counts and len(self._counts) >= self._most:
                key = (kind, "", "others, too many to tell apart")
            self._counts.setdefault(key, _Count(self._clock())).times += 1

    def flush(self, path: Path, patience_s: float = 5.0) -> int:
        """Enter what was counted into the ledger at ``path``. Returns how many events.

        What cannot be entered now is kept. The ledger is opened each time: it may have been made
        anew since, and it is none of the receiver's business to make one.
        """
        if not self._counts or not path.exists():
            return 0
        with self._lock:
            counts, self._counts = self._counts, {}
        try:
            with closing(Ledger.open(path, patience_s)) as ledger:
                _enter(ledger, counts)
        except (LedgerError, SQLAlchemyError) as error:
            _log.warning("notes wait for the ledger", error=type(error).__name__, notes=len(counts))
            self._restore(counts)
            return 0
        return len(counts)

    def _restore(self, counts: Mapping[Note, _Count]) -> None:
        with self._lock:
            for key, count in counts.items():
                now = self._counts.setdefault(key, _Count(count.first_at))
                now.first_at = count.first_at
                now.times += count.times


def _enter(ledger: Ledger, counts: Mapping[Note, _Count]) -> None:
    with ledger.write() as books:
        for (kind, actor, words), count in counts.items():
            times = "" if count.times == 1 else f" ({count.times} times)"
            books.events.note(count.first_at, kind, words + times, actor=actor)


@dataclass(slots=True)
class Keeper:
    """Keeps the log in good order while the node runs: moves the anchor, and looks for changes.

    The newest events are proven at the start and once a day; all of them by ``ai-node audit
    verify``, which takes a while for a log of years.
    """

    ledger: Ledger
    anchor: Anchor
    newest: int = 10_000
    every_s: float = 86_400.0
    _due_at: float = 0.0

    def step(self, now: float) -> None:
        """Move the anchor, and prove the newest events when that is due. Raises LedgerError."""
        try:
            if now >= self._due_at:
                self._due_at = now + self.every_s
                self._prove(now)
            self.anchor.follow(self.ledger)
        except OSError as error:
            _log.error("the log's head is not kept", error=error.strerror)
        except AnchorError as error:
            self._alarm(str(error), now)

    def end(self) -> None:
        """Keep the last head. Raises LedgerError."""
        try:
            self.anchor.follow(self.ledger, at_once=True)
        except (OSError, AnchorError) as error:
            _log.error("the log's head is not kept", error=str(error))

    def _prove(self, now: float) -> None:
        kept = self.anchor.read()
        with self.ledger.read() as books:
            last = books.events.head().id
            # The anchor stands within the newest events, unless the log was cut off before it.
            start = books.events.at(min(last, kept.id if kept else last) - self.newest)
            proof = prove(books.events.walk(start.id), kept, start)
        if not proof.sound:
            where = f" at event {proof.broken.id}" if proof.broken else ""
            self._alarm(f"the event log is broken{where}: {proof.fault}", now)

    def _alarm(self, words: str, now: float) -> None:
        _log.error("event log broken", reason=words)
        with self.ledger.write() as books:
            books.events.note(now, EventKind.ALARM, words)


def note_configuration(ledger: Ledger, config: Config, now: float, actor: str = "") -> bool:
    """Note a configuration that is not the one noted last, with the keys that changed.

    Values are not noted. Returns whether it is another one. Raises LedgerError.
    """
    path = config.node.state / SEEN_NAME
    seen = _seen(path)
    if seen.digest == reload.digest(config):
        return False
    salt = seen.salt or secrets.token_hex(16)
    fresh = _Seen(reload.digest(config), salt, reload.keys_digests(config, salt))
    changed = ", ".join(reload.changed_keys(seen.keys, fresh.keys)) if seen.salt else "first seen"
    with ledger.write() as books:
        words = f"configuration {fresh.digest[:16]}: {changed}"
        books.events.note(now, EventKind.CONFIGURED, words, actor=actor)
    try:
        _write(path, json.dumps(asdict(fresh)) + "\n")
    except OSError as error:
        # The next start takes it for new once more; no reason not to start.
        _log.error("the configuration's digests are not kept", error=error.strerror)
    return True


@dataclass(frozen=True, slots=True)
class _Seen:
    """The digests are salted: a short value could be guessed from its plain digest."""

    digest: str = ""
    salt: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


def _seen(path: Path) -> _Seen:
    try:
        return _Seen(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return _Seen()


class Writer(Protocol):
    """One form in which the log is exported."""

    def __call__(self, events: Iterable[Event], out: TextIO) -> None:
        """Write the events, one after the other."""


def write_jsonl(events: Iterable[Event], out: TextIO) -> None:
    """One JSON object per line, with the fields of ``Event`` and the time as text."""
    for event in events:
        out.write(json.dumps(_fields(event), ensure_ascii=False) + "\n")


def write_csv(events: Iterable[Event], out: TextIO) -> None:
    """A header line, then one line per event (RFC 4180)."""
    writer = csv.writer(out)
    writer.writerow(_fields(Event(0.0, "", "", "", "")))
    writer.writerows([_inert(value) for value in _fields(event).values()] for event in events)


def write_xml(events: Iterable[Event], out: TextIO) -> None:
    """A ``log`` of ``event`` elements whose attributes are the fields."""
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n<log>\n')
    for event in events:
        fields = " ".join(f"{name}={quoteattr(str(v))}" for name, v in _fields(event).items())
        out.write(f"  <event {fields}/>\n")
    out.write("</log>\n")


WRITERS: dict[str, Writer] = {"jsonl": write_jsonl, "csv": write_csv, "xml": write_xml}


def _fields(event: Event) -> dict[str, str | float | int]:
    """``at`` is exact, so that whoever reads the export can compute the chain again."""
    when = datetime.fromtimestamp(event.at, UTC).isoformat()
    return {
        "id": event.id,
        "time": when,
        "at": event.at,
        "kind": str(event.kind),
        "study_uid": event.study_uid,
        "job_id": event.job_id,
        "words": event.words,
        "actor": event.actor,
        "chain": event.chain,
    }


def _inert(value: str | float | int) -> str | float | int:
    """A spreadsheet would run text that begins like a formula, and callers choose their titles."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def _write(path: Path, text: str) -> None:
    """Durable and atomic."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as stream:
        temporary.chmod(0o600)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
