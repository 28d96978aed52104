"""``jobs`` and ``why``: what became of a study; ``cancel`` and ``reprocess``: what shall."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration, existing_ledger, operator
from node.cli.printing import emit, local_time, say
from node.domain.errors import NodeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from node.domain.job import JobEvent
    from node.ledger import Books
    from node.ledger.jobs import JobRow
    from node.story import JobStory, Story


class NoSuchJob(NodeError):
    """Nothing has this number, or nothing that can be done is left to do."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(jobs)
    app.command()(why)
    app.command()(cancel)
    app.command()(reprocess)


def jobs(
    state: Annotated[str, typer.Option(help="Only jobs in this state.")] = "",
    limit: Annotated[int, typer.Option(help="The newest so many.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    from rich.table import Table

    with existing_ledger(config) as ledger, ledger.read() as books:
        rows = books.jobs.recent(limit, state)
    table = Table("created", "state", "engine", "attempts", "study", "reason")
    # A UID is copied from here into ``why``, so it is folded rather than cut off.
    table.columns[4].overflow = "fold"
    for row in rows:
        job = row.job
        table.add_row(
            local_time(job.created_at),
            job.state,
            job.engine,
            str(job.attempts),
            job.study_uid,
            row.reason,
        )
    emit(rows, as_json, table)


def why(
    number: Annotated[
        str, typer.Argument(help="Accession number, or a study, series or SOP Instance UID.")
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what happened to a study and why, on one page."""
    from node.story import tell

    with existing_ledger(config) as ledger:
        stories = tell(ledger, number)
    emit(stories, as_json, "\n\n".join("\n".join(page(story)) for story in stories))


NumberArgument = Annotated[
    str, typer.Argument(help="Job id, accession number, or study, series or SOP Instance UID.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the event log; no patient's name.")]


def cancel(number: NumberArgument, reason: ReasonOption, config: ConfigOption = None) -> None:
    """End jobs that have no result yet; one that runs stops at its next stage.

    A failed job that nobody will run again is ended too, so that retention may remove its study.
    """
    from node.domain.job import JobEvent

    _intervene(number, JobEvent.CANCEL, reason, config)


def reprocess(number: NumberArgument, reason: ReasonOption, config: ConfigOption = None) -> None:
    """Run jobs that are held, failed or cancelled. What is done is not done again."""
    from node.domain.job import JobEvent

    _intervene(number, JobEvent.RELEASE, reason, config)


def _intervene(number: str, event: JobEvent, reason: str, config: Path | None) -> None:
    """Apply a person's decision to every job of a number that allows it. Raises NoSuchJob."""
    from node.bells import Bell
    from node.domain.event import EventKind
    from node.domain.job import JOB_TRANSITIONS

    now, actor = time.time(), operator()
    with existing_ledger(config) as ledger, ledger.write() as books:
        rows = _jobs_of(books, number)
        fitting = [row for row in rows if (row.job.state, event) in JOB_TRANSITIONS]
        if not fitting:
            states = ", ".join(f"{row.job.engine} is {row.job.state}" for row in rows) or "none"
            raise NoSuchJob(f"{number} has no job that one can {event} (its jobs: {states})")
        for row in fitting:
            job = row.job
            state = books.jobs.advance(job.id, event, now, reason, due_at=now)
            words = f"{job.engine}: {event}, now {state}: {reason}"
            books.events.note(
                now,
                EventKind.OPERATOR,
                words,
                study_uid=job.study_uid,
                job=job.id,
                actor=actor,
            )
            say(f"job {job.id} of {job.engine} was {job.state}, is {state}")
    Bell(configuration(config).node.state / "bells" / "worker").ring()


def _jobs_of(books: Books, number: str) -> tuple[JobRow, ...]:
    row = books.jobs.row(number)
    if row is not None:
        return (row,)
    return tuple(row for uid in books.arrivals.find(number) for row in books.jobs.of_study(uid))


def page(story: Story) -> Iterator[str]:
    """A study's story, line by line."""
    study = story.study
    count = sum(series.instances for series in story.series)
    yield f"study {study.study_uid}" + (f" (accession {study.accession})" * bool(study.accession))
    yield f"  received   {local_time(story.first_at)}  {count} instances, last from {study.peer}"
    if study.completed_at is None:
        yield f"  complete   not yet: the last instance came {local_time(study.last_at)}"
    else:
        yield f"  complete   {local_time(study.completed_at)}  by {study.rule}"
    if study.opened_at is not None and study.completed_at is not None:
        yield f"  reopened   {local_time(study.opened_at)}  something new arrived since"
    for series in story.series:
        yield (
            f"  series {series.number or '?':<4} {series.modality or '?':<3} "
            f"{series.instances:>4} instances  {series.description}"
        )
    for job in story.jobs:
        yield from _job_lines(job)
    if story.events:
        yield "  events"
    for event in story.events:
        yield f"    {local_time(event.at)}  {event.kind}: {event.words}"


def _job_lines(story: JobStory) -> Iterator[str]:
    job = story.row.job
    yield f"  engine {job.engine}: {job.state}" + (f", {story.row.reason}" * bool(story.row.reason))
    yield f"    job {job.id}, attempt {job.attempts}, package {job.engine_digest[:12]}"
    if job.supersedes:
        yield f"    replaces the results of job {job.supersedes}, on an earlier content"
    for verdict in story.verdicts:
        took = "taken" if verdict["accepted"] else "not taken"
        yield f"    {verdict['label']}: {took}"
        yield from (f"      {words}" for words in verdict["words"])
    if story.stages:
        yield "    " + ", ".join(f"{name} {value:.2f} s" for name, value in story.stages.items())
    if story.row.trace.get("computation"):
        yield f"    {story.row.trace['computation']}"
    if story.row.trace.get("shadow"):
        yield "    in shadow: what was made is kept in the state folder, and none of it is sent"
    yield from _finding_lines(story.row.trace.get("findings", ()))
    yield from (f"    {note}" for note in story.row.trace.get("notes", ()))
    for result in story.results:
        yield f"    made {result.kind} {result.sop_instance_uid}"
    for row in story.deliveries:
        when = local_time(row.sent_at) if row.sent_at else f"next try {local_time(row.due_at)}"
        yield (
            f"    {row.result.kind} to {row.destination}: {row.state}, {when}, "
            f"attempts {row.attempts}" + (f", {row.reason}" * bool(row.reason))
        )


def _finding_lines(findings: Iterable[dict[str, object]]) -> Iterator[str]:
    for finding in findings:
        numbers = finding["measurements"]
        assert isinstance(numbers, dict)  # noqa: S101 - as the pipeline wrote it
        values = ", ".join(f"{name} {value:.1f}" for name, value in numbers.items())
        yield f"    found {finding['tracking_id']}: {values}"
