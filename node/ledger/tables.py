"""The tables of the ledger, the same for SQLite and PostgreSQL. Times: seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

studies = Table(
    "studies",
    metadata,
    Column("study_uid", String(64), primary_key=True),
    Column("accession", String(64), nullable=False, default=""),
    Column("peer", String(64), nullable=False),
    Column("opened_at", Float),
    Column("last_at", Float, nullable=False),
    Column("revision", String(64), nullable=False, default=""),
    Column("completed_at", Float),
    Column("rule", String(32), nullable=False, default=""),
    # Digest of the patient's identity in the study's first instance: the others must agree.
    Column("patient_key", String(64), nullable=False, default="", server_default=""),
)
Index(None, studies.c.accession)
Index(None, studies.c.opened_at)

instances = Table(
    "instances",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("study_uid", String(64), ForeignKey(studies.c.study_uid), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("path", Text, nullable=False),
    Column("facts", Text, nullable=False),
    # Where the value of Pixel Data begins in the file; None where the header must be asked again.
    Column("pixel_offset", Integer),
)
Index(None, instances.c.study_uid)
Index(None, instances.c.series_uid, instances.c.study_uid)
# What retention has removed keeps its row, with an empty path; few have their bytes still.
_KEPT = instances.c.path != ""
Index("ix_instances_kept", instances.c.study_uid, sqlite_where=_KEPT, postgresql_where=_KEPT)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("study_uid", String(64), ForeignKey(studies.c.study_uid), nullable=False),
    Column("revision", String(64), nullable=False),
    Column("engine", String(128), nullable=False),
    Column("engine_digest", String(64), nullable=False),
    Column("config_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("reason", Text, nullable=False, default=""),
    Column("trace", Text, nullable=False, default="{}"),
    Column("priority", Integer, nullable=False, default=0, server_default="0"),
    Column("deadline_at", Float),
    # The job of an earlier revision whose results this job's results replace.
    Column("supersedes", String(32), nullable=False, default="", server_default=""),
    # Which worker runs it, so that a worker that starts again takes back its own jobs only.
    Column("worker", String(64), nullable=False, default="", server_default=""),
)
Index(None, jobs.c.state, jobs.c.due_at)
Index(None, jobs.c.study_uid)

results = Table(
    "results",
    metadata,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("job_id", String(32), ForeignKey(jobs.c.id), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("position", Integer, nullable=False),
)
Index(None, results.c.job_id)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", String(64), ForeignKey(results.c.sop_instance_uid), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("due_at", Float, nullable=False),
    Column("sent_at", Float),
    Column("status", Integer, nullable=False, default=0),
    Column("reason", Text, nullable=False, default=""),
    # How far it is proven that the destination keeps what it accepted.
    Column("proof", String(16), nullable=False, default="", server_default=""),
    Column("proof_due_at", Float),
    Column("transaction_uid", String(64), nullable=False, default="", server_default=""),
    # How often it was sent again because the destination did not have what it had accepted.
    Column("resends", Integer, nullable=False, default=0, server_default="0"),
    UniqueConstraint("sop_instance_uid", "destination"),
)
Index(None, deliveries.c.state, deliveries.c.due_at)

breakers = Table(
    "breakers",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("probe_at", Float),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("study_uid", String(64), nullable=False, default=""),
    Column("job_id", String(32), nullable=False, default=""),
    Column("words", Text, nullable=False, default=""),
    Column("actor", String(64), nullable=False, default="", server_default=""),
    # sha256 over the row before and this one: what is changed afterwards shows.
    Column("chain", String(64), nullable=False, default="", server_default=""),
)
Index(None, events.c.study_uid)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("path", Text, nullable=False),
    Column("sop_instance_uid", String(64), nullable=False, default=""),
    Column("study_uid", String(64), nullable=False, default=""),
    Column("kind", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("closed_at", Float),
    Column("actor", String(64), nullable=False, default=""),
)
Index(None, quarantine.c.state)

pulls = Table(
    "pulls",
    metadata,
    Column("peer", String(64), primary_key=True),
    Column("study_uid", String(64), primary_key=True),
    Column("accession", String(64), nullable=False, default=""),
    Column("instances", Integer),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("due_at", Float, nullable=False),
    Column("found_at", Float, nullable=False),
    Column("pulled_at", Float),
    Column("reason", Text, nullable=False, default=""),
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("at", Float, nullable=False),
)
