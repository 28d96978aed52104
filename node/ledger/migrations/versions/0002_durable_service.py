"""Priorities, proofs, the chain of events, and the quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


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

    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("actor", sa.String(length=64), server_default="", nullable=False)
        )
        batch_op.add_column(
            sa.Column("chain", sa.String(length=64), server_default="", nullable=False)
        )

    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(sa.Column("pixel_offset", sa.Integer(), nullable=True))

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

    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.drop_column("pixel_offset")

    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_column("chain")
        batch_op.drop_column("actor")

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_column("transaction_uid")
        batch_op.drop_column("proof_due_at")
        batch_op.drop_column("proof")

    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_quarantine_state"))

    op.drop_table("quarantine")
