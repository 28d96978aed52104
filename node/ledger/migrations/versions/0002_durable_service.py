"""Priorities, proofs, the chain of events, and the quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# A later revision that copies the table (batch mode with recreate) drops these with the old one
# and must make them again.
_APPEND_ONLY = {
    f"events_no_{verb.lower()}": f"""
        CREATE TRIGGER events_no_{verb.lower()} BEFORE {verb} ON events
        BEGIN SELECT RAISE(ABORT, 'events are only ever appended to'); END
    """
    for verb in ("UPDATE", "DELETE")
}


def upgrade() -> None:
    """Add what the durable service needs."""
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
    )
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_quarantine_state"), ["state"], unique=False)

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("proof", sa.String(length=16), server_default="", nullable=False)
        )
        batch_op.add_column(sa.Column("proof_due_at", sa.Float(), nullable=True))
        batch_op.add_column(
            sa.Column("transaction_uid", sa.String(length=64), server_default="", nullable=False)
        )
        batch_op.add_column(sa.Column("resends", sa.Integer(), server_default="0", nullable=False))

    op.create_table(
        "breakers",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("probe_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("destination", name=op.f("pk_breakers")),
    )

    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("actor", sa.String(length=64), server_default="", nullable=False)
        )
        batch_op.add_column(
            sa.Column("chain", sa.String(length=64), server_default="", nullable=False)
        )
    if op.get_bind().dialect.name == "sqlite":
        for statement in _APPEND_ONLY.values():
            op.execute(statement)

    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(sa.Column("pixel_offset", sa.Integer(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_instances_series_uid_study_uid"), ["series_uid", "study_uid"]
        )
    kept = sa.text("path != ''")
    op.create_index(
        "ix_instances_kept",
        "instances",
        ["study_uid"],
        sqlite_where=kept,
        postgresql_where=kept,
    )

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("deadline_at", sa.Float(), nullable=True))
        batch_op.add_column(
            sa.Column("supersedes", sa.String(length=32), server_default="", nullable=False)
        )
        batch_op.add_column(
            sa.Column("worker", sa.String(length=64), server_default="", nullable=False)
        )

    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("patient_key", sa.String(length=64), server_default="", nullable=False)
        )


def downgrade() -> None:
    """Go back to the first schema."""
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.drop_column("patient_key")

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("worker")
        batch_op.drop_column("supersedes")
        batch_op.drop_column("deadline_at")
        batch_op.drop_column("priority")

    op.drop_index("ix_instances_kept", table_name="instances")
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_instances_series_uid_study_uid"))
        batch_op.drop_column("pixel_offset")

    if op.get_bind().dialect.name == "sqlite":
        for name in _APPEND_ONLY:
            op.execute(f"DROP TRIGGER {name}")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_column("chain")
        batch_op.drop_column("actor")

    op.drop_table("breakers")

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_column("resends")
        batch_op.drop_column("transaction_uid")
        batch_op.drop_column("proof_due_at")
        batch_op.drop_column("proof")

    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_quarantine_state"))

    op.drop_table("quarantine")
