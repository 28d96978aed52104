"""The story of one study, read back from the ledger: what happened and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.domain.errors import NodeError
from node.domain.study import Series
from node.ledger import Books, Ledger
from node.ledger.arrivals import StudyRow
from node.ledger.deliveries import DeliveryRow, ResultRow
from node.ledger.events import Event
from node.ledger.jobs import JobRow


class UnknownStudy(NodeError):
    """Nothing in the ledger has this number."""


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """A series in short: its UID, modality, description and number of instances."""

    uid: str
    number: str
    modality: str
    description: str
    instances: int


@dataclass(frozen=True, slots=True)
class JobStory:
    """One engine's part: the job, what it made, and where that went."""

    row: JobRow
    results: tuple[ResultRow, ...]
    deliveries: tuple[DeliveryRow, ...]

    @property
    def verdicts(self) -> Sequence[Mapping[str, Any]]:
        """What the selection said of each series."""
        verdicts: Sequence[Mapping[str, Any]] = self.row.trace.get("series", ())
        return verdicts

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds that each stage took."""
        stages: Mapping[str, float] = self.row.trace.get("stages", {})
        return stages


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that the ledger knows of a study."""

    study: StudyRow
    first_at: float
    series: tuple[SeriesLine, ...]
    jobs: tuple[JobStory, ...]
    events: tuple[Event, ...]


def tell(ledger: Ledger, identifier: str) -> tuple[Story, ...]:
    """The stories behind an accession number or a study, series or SOP Instance UID.

    An accession number may name several studies. Raises UnknownStudy.
    """
    with ledger.read() as books:
        studies = books.arrivals.find(identifier)
        made = books.deliveries.find(identifier)
        stories = tuple(_story(books, uid) for uid in dict.fromkeys((*studies, made)) if uid)
    if not stories:
        raise UnknownStudy(
            f"nothing here has the number {identifier}: it has not arrived (see the PACS's send "
            "log, and `ai-node echo` from there), or it is neither an accession number nor a "
            "study, series or SOP Instance UID"
        )
    return stories


def _story(books: Books, study_uid: str) -> Story:
    row = books.arrivals.row(study_uid)
    if row is None:
        raise UnknownStudy(f"study {study_uid} is not in the ledger")
    study = books.arrivals.study(study_uid)
    jobs = books.jobs.of_study(study_uid)
    return Story(
        study=row,
        first_at=min((i.received_at for i in study.instances), default=row.last_at),
        series=tuple(_line(series) for series in study.series),
        jobs=tuple(
            JobStory(
                job, books.deliveries.results_of(job.job.id), books.deliveries.of_job(job.job.id)
            )
            for job in jobs
        ),
        events=books.events.of_study(study_uid, tuple(job.job.id for job in jobs)),
    )


def _line(series: Series) -> SeriesLine:
    return SeriesLine(
        uid=series.uid,
        number=series.text("SeriesNumber").removesuffix(".0"),
        modality=series.text("Modality"),
        description=series.text("SeriesDescription"),
        instances=len(series.instances),
    )
