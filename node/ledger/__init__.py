"""The ledger: what arrived, what was decided, what was made and what was delivered.

It is the truth: the queue carries what stands here, and ``why`` reads it back. SQLite in WAL mode
with full synchronisation is the embedded default; the same tables serve PostgreSQL.

Every change happens inside ``Ledger.write()``, one transaction, over five books: arrivals, jobs,
deliveries, pulls and events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from node.ledger.arrivals import Arrivals
from node.ledger.deliveries import Deliveries
from node.ledger.events import Events
from node.ledger.jobs import Jobs
from node.ledger.migrations import upgrade
from node.ledger.pulls import Pulls


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
        return Jobs(self.connection)

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


class Ledger:
    """An open ledger. Safe to use from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        """Use ``Ledger.open``."""
        self._engine = engine

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open or make the SQLite ledger at ``path`` and bring its tables up to date."""
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30.0})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin)
        upgrade(engine)
        return cls(engine)

    @contextmanager
    def write(self) -> Iterator[Books]:
        """A transaction that changes the ledger: all of it is durable after the block, or none."""
        with self._engine.connect() as connection:
            writing = connection.execution_options(node_writes=True)
            with writing.begin():
                yield Books(writing)

    @contextmanager
    def read(self) -> Iterator[Books]:
        """A consistent view of the ledger."""
        with self._engine.connect() as connection, connection.begin():
            yield Books(connection)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling would begin late and deferred; ours begins at once.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL may lose the last commits when the power fails
        "busy_timeout=30000",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A writer takes the lock first, so that it never has to give up half way.
    writes = connection.get_execution_options().get("node_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
