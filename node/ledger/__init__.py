"""The ledger: what arrived, what was decided, what was made and what was delivered.

It is the truth: the queue carries what stands here, and ``why`` reads it back. SQLite in WAL mode
with full synchronisation is the embedded default; the same tables serve PostgreSQL.

Every change happens inside ``Ledger.write()``, one transaction, over seven books: arrivals, jobs,
deliveries, pulls, events, quarantine and upkeep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from node.domain.errors import LedgerBroken, LedgerBusy
from node.ledger.arrivals import Arrivals
from node.ledger.deliveries import Deliveries
from node.ledger.events import Events
from node.ledger.jobs import Jobs
from node.ledger.migrations import upgrade
from node.ledger.pulls import Pulls
from node.ledger.quarantine import Quarantine
from node.ledger.upkeep import Upkeep

_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN")
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


@dataclass(frozen=True)
class Books:
    """The books of one transaction."""

    connection: Connection

    @cached_property
    def arrivals(self) -> Arrivals:
        """Instances and the studies that they form."""
        return Arrivals(self.connection)

    @cached_property
    def jobs(self) -> Jobs:
        """Engines to run on studies."""
        return Jobs(self.connection, self.events)

    @cached_property
    def deliveries(self) -> Deliveries:
        """Results and where they stand at each destination."""
        return Deliveries(self.connection)

    @cached_property
    def pulls(self) -> Pulls:
        """Studies found at a peer and retrieved, or still to be."""
        return Pulls(self.connection)

    @cached_property
    def events(self) -> Events:
        """What happened, in words."""
        return Events(self.connection)

    @cached_property
    def quarantine(self) -> Quarantine:
        """What was acknowledged and must not be used."""
        return Quarantine(self.connection)

    @cached_property
    def upkeep(self) -> Upkeep:
        """What is missing, and what may be removed."""
        return Upkeep(self.connection)


class Ledger:
    """An open ledger. Safe to use from several threads and processes.

    Whatever the database refuses is a LedgerBusy, after which the same call may be made again,
    or a LedgerBroken, after which only a new start helps.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        """Use ``Ledger.open``."""
        self._engine = engine
        self._path = path
        self._file = _identity(path)

    @classmethod
    def open(cls, path: Path, patience_s: float = 30.0) -> Ledger:
        """Open or make the SQLite ledger at ``path`` and bring its tables up to date.

        A call waits for so many seconds while another writes. Raises LedgerError.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": patience_s})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            with _in_words():
                _upgrade(engine)
            undo.pop_all()
        return cls(engine, path)

    @contextmanager
    def write(self) -> Iterator[Books]:
        """A transaction that changes the ledger: all of it is durable after the block, or none.

        Raises LedgerError; then nothing was changed.
        """
        self._refuse_another_file()
        with _in_words(), self._engine.connect() as connection:
            writing = connection.execution_options(node_writes=True)
            with writing.begin():
                yield Books(writing)

    @contextmanager
    def read(self) -> Iterator[Books]:
        """A consistent view of the ledger. Raises LedgerError."""
        self._refuse_another_file()
        with _in_words(), self._engine.connect() as connection, connection.begin():
            yield Books(connection)

    def faults(self, *, thorough: bool = False) -> tuple[str, ...]:
        """What SQLite finds wrong with the file; empty when it is sound.

        ``thorough`` compares every index with its table too. Raises LedgerError.
        """
        pragma = "integrity_check" if thorough else "quick_check"
        with self.read() as books:
            found = books.connection.exec_driver_sql(f"PRAGMA {pragma}").scalars()
            return tuple(line for line in map(str, found) if line != "ok")

    def _refuse_another_file(self) -> None:
        # What is written into a file that was moved away is lost.
        if _identity(self._path) != self._file:
            raise LedgerBroken(
                f"{self._path.name} was removed or replaced while it was open; this part of the "
                "node must start again"
            )

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _upgrade(engine: Engine) -> None:
    try:
        upgrade(engine)
    except OSError as error:  # the migrations are files
        raise LedgerBusy(f"the ledger cannot be opened now ({error.strerror})") from error


@contextmanager
def _in_words() -> Iterator[None]:
    """Turns what the database refuses into our own errors."""
    try:
        yield
    except DatabaseError as error:
        reason = getattr(error.orig, "sqlite_errorname", type(error.orig).__name__)
        if reason.startswith(_PASSING):
            raise LedgerBusy(
                f"the ledger cannot be used now ({reason}); it is tried again. Look for a full "
                "disk, or a program that keeps the file locked"
            ) from error
        if reason.startswith(_DAMAGED):
            raise LedgerBroken(
                f"the ledger's file is damaged ({reason}); the next start makes it anew from the "
                "spool, or do it now: ai-node ledger rebuild"
            ) from error
        raise


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling would begin late and deferred; ours begins at once.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL may lose the last commits when the power fails
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes the lock first, so that it never has to give up half way.
    writes = connection.get_execution_options().get("node_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
