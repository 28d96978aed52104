"""The ledger's schema, version by version (Alembic)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables of a database up to a revision; a new database gets them all."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    wanted = ScriptDirectory.from_config(config).get_current_head()
    with engine.connect() as connection, connection.begin():
        if revision == "head" and MigrationContext.configure(connection).get_current_revision() == (
            wanted
        ):
            return
    with engine.connect() as connection:
        writing = connection.execution_options(node_writes=True)
        with writing.begin():
            config.attributes["connection"] = writing
            command.upgrade(config, revision)
