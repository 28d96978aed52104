"""Every schema leads to the newest one with every row kept, and the node goes on with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from node.domain.event import prove
from node.domain.job import DeliveryState, JobState
from node.ledger import Ledger
from node.ledger.migrations import upgrade
from node.ledger.tables import metadata

# As the first release wrote them: one study in the middle of everything.
ROWS = {
    "studies": "('1.2', 'ACC7', 'scanner', NULL, 1005.0, 'r', 1015.0, 'quiet period')",
    "instances": "('1.2.3.1', '1.1', '1.2.3', '1.2', 's', '1.1', 'scanner', 1000.0, '/a.dcm', "
    '\'{"AccessionNumber":"ACC7","Modality":"MR"}\')',
    "jobs": "('j', '1.2', 'r', 'engine', 'd', 'c', 'running', 1, 1015.0, 1015.0, NULL, '', '{}')",
    "results": "('2.25.1', 'j', '1.4', 'seg', '/seg.dcm', 's', 0)",
    "deliveries": "(1, '2.25.1', 'pacs', 'waiting', 2, 1020.0, NULL, 0, 'down')",
    "events": "(1, 1015.0, 'complete', '1.2', '', 'by quiet period')",
    "pulls": "('pacs', '1.2', 'ACC7', 5, 'pulled', 0, 900.0, 890.0, 910.0, '')",
    "watermarks": "('query pacs', 880.0)",
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger of the first schema with data in it."""
    path = tmp_path / "ledger.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    upgrade(engine, "0001")
    with engine.begin() as connection:
        for table, values in ROWS.items():
            connection.execute(text(f"INSERT INTO {table} VALUES {values}"))  # noqa: S608
    engine.dispose()
    return path


def test_no_row_of_the_first_schema_is_lost(old: Path) -> None:
    ledger = Ledger.open(old)
    with ledger.read() as books:
        for table in ROWS:
            count = f"SELECT count(*) FROM {table}"  # noqa: S608
            assert books.connection.execute(text(count)).scalar_one() == 1, table
        (instance,) = books.arrivals.study("1.2").instances
        (job,) = books.jobs.of_study("1.2")
        (delivery,) = books.deliveries.of_job("j")
        assert books.arrivals.find("ACC7") == ("1.2",)
        assert books.pulls.watermark("query pacs") == 880.0
    ledger.close()
    assert instance.facts["Modality"] == "MR"
    assert (job.job.state, job.job.attempts, job.job.priority) == (JobState.RUNNING, 1, 0)
    assert (delivery.state, delivery.attempts, delivery.reason) == (
        DeliveryState.WAITING,
        2,
        "down",
    )


def test_the_node_goes_on_with_what_the_first_schema_left(old: Path) -> None:
    ledger = Ledger.open(old)
    with ledger.write() as books:
        assert books.jobs.reopen_orphans({"worker"}, 2000.0) == 1
        claimed = books.jobs.claim(2000.0, "worker")
        assert claimed is not None
        assert claimed.attempts == 2
        assert prove(books.events.walk()).sound
        (holding,) = books.upkeep.holdings()
        assert not holding.finished
    ledger.close()


def test_migrating_there_and_back_keeps_the_first_schema(old: Path) -> None:
    from alembic import command
    from alembic.config import Config

    engine = create_engine(f"sqlite:///{old}")
    upgrade(engine)
    config = Config()
    config.set_main_option("script_location", "node:ledger/migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    upgrade(engine)
    with engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        assert {table.name for table in metadata.sorted_tables} <= set(names.scalars())
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1
    engine.dispose()
