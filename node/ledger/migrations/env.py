"""What Alembic runs: migrations on the connection that ``upgrade`` gives it."""

from alembic import context

from node.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place; batch mode copies the table instead.
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction covers every statement
)
context.run_migrations()
