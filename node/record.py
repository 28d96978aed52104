"""What lies beside a job's frozen results: all that makes them results of that job.

A worker that died between the last fsync and the ledger finds them again, and so does a ledger
that was lost: the same bytes go out under the same UIDs, and nothing is computed twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from node.domain.errors import DigestMismatch
from node.domain.job import Job, JobState
from node.ledger import Books
from node.ledger.deliveries import ResultRow
from node.spool import Frozen, Spool

_KEPT = (
    "id",
    "study_uid",
    "revision",
    "engine",
    "engine_digest",
    "config_digest",
    "created_at",
    "priority",
    "supersedes",
)


@dataclass(frozen=True, slots=True)
class Record:
    """A job that has its results. ``refusal`` and ``trace`` are the pipeline's."""

    job: Job
    results: tuple[Frozen, ...]
    destinations: tuple[str, ...]
    refusal: str
    trace: Mapping[str, Any]


def keep(spool: Spool, record: Record) -> None:
    """Write a record beside its results, if there are any. Raises SpoolError."""
    if not record.results:
        return
    fields = asdict(record.job)
    content = {
        "job": {name: fields[name] for name in _KEPT},
        "results": [
            {name: getattr(one, name) for name in ("sop_instance_uid", "sop_class_uid", "kind")}
            | {"sha256": one.sha256, "file": one.path.name}
            for one in record.results
        ],
        "destinations": list(record.destinations),
        "refusal": record.refusal,
        "trace": dict(record.trace),
    }
    spool.note(record.job.id, json.dumps(content, indent=1).encode())


def find(spool: Spool, job: str) -> Record | None:
    """The record of a job, if all of its results are there as they were frozen; else None."""
    content = spool.noted(job)
    if content is None:
        return None
    try:
        record = _understood(spool, job, json.loads(content))
        for one in record.results:
            spool.verify(one.path, one.sha256)
    except (DigestMismatch, LookupError, OSError, TypeError, ValueError):
        return None
    return record


def enter(books: Books, record: Record, destinations: Sequence[str], now: float) -> None:
    """Enter the results of a job that the ledger knows, and their deliveries as waiting."""
    books.jobs.keep_trace(record.job.id, record.trace)
    for one in record.results:
        row = ResultRow(
            one.sop_instance_uid, record.job.id, one.sop_class_uid, one.kind, one.path, one.sha256
        )
        books.deliveries.add(row, destinations, now)


def _understood(spool: Spool, job: str, content: Mapping[str, Any]) -> Record:
    folder = spool.root / "results" / job
    fields = content["job"]
    known = Job(
        id=fields["id"],
        study_uid=fields["study_uid"],
        revision=fields["revision"],
        engine=fields["engine"],
        engine_digest=fields["engine_digest"],
        config_digest=fields["config_digest"],
        state=JobState.REFUSED if content["refusal"] else JobState.DONE,
        attempts=1,
        created_at=float(fields["created_at"]),
        priority=int(fields["priority"]),
        supersedes=fields["supersedes"],
    )
    if known.id != job:
        raise ValueError(f"results of {known.id} lie in the folder of {job}")
    return Record(
        job=known,
        results=tuple(
            Frozen(
                one["sop_instance_uid"],
                one["sop_class_uid"],
                one["kind"],
                folder / one["file"],
                one["sha256"],
            )
            for one in content["results"]
        ),
        destinations=tuple(map(str, content["destinations"])),
        refusal=str(content["refusal"]),
        trace=content["trace"],
    )
