"""Instances and the studies that they form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Row, func, insert, or_, select, update

from node.dicom.headers import facts_from_json, facts_to_json
from node.domain.patient import agree, merged, patient_key
from node.domain.study import Instance, Study, revision
from node.ledger.tables import instances, studies


class Recorded(Enum):
    """What recording an instance came to."""

    NEW = "new"
    DUPLICATE = "duplicate"
    """The same bytes were there already."""
    CONFLICT = "conflict"
    """The same SOP Instance UID is there with other bytes, or in another study."""
    OTHER_PATIENT = "other patient"
    """Its study, or its series in another study, is there with another patient."""


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as the ledger knows it; ``opened_at`` is None while nothing new has arrived."""

    study_uid: str
    accession: str
    peer: str
    opened_at: float | None
    last_at: float
    revision: str
    completed_at: float | None
    rule: str


class Arrivals:
    """The book of instances and studies."""

    def __init__(self, connection: Connection) -> None:
        """Bind the book to a transaction."""
        self._connection = connection

    def record(self, instance: Instance) -> Recorded:
        """Enter an instance. A duplicate changes nothing.

        What is in conflict, or another patient's, is not entered.
        """
        known = self._connection.execute(
            select(instances.c.sha256, instances.c.study_uid, instances.c.path).where(
                instances.c.sop_instance_uid == instance.sop_instance_uid
            )
        ).one_or_none()
        if known is not None:
            same = known.sha256 == instance.sha256 and known.study_uid == instance.study_uid
            if same and not known.path:
                self._restore(instance)
            return Recorded.DUPLICATE if same else Recorded.CONFLICT
        key = patient_key(instance.facts)
        known_key = self._patient(instance.study_uid)
        if not all(agree(key, other) for other in (known_key or "", *self._elsewhere(instance))):
            return Recorded.OTHER_PATIENT
        if known_key is None:
            self._add_study(instance, key)
        elif merged(known_key, key) != known_key:
            self._change(instance.study_uid, {"patient_key": merged(known_key, key)})
        self._connection.execute(insert(instances).values(_columns(instance)))
        return Recorded.NEW

    def row(self, study_uid: str) -> StudyRow | None:
        """A study's row, or None."""
        found = self._connection.execute(
            select(studies).where(studies.c.study_uid == study_uid)
        ).one_or_none()
        return _study_row(found) if found is not None else None

    def open_rows(self) -> tuple[StudyRow, ...]:
        """Every study to which something new has arrived since its last completion."""
        found = self._connection.execute(select(studies).where(studies.c.opened_at.is_not(None)))
        return tuple(_study_row(row) for row in found)

    def set_times(self, study_uid: str, opened_at: float | None, last_at: float, peer: str) -> None:
        """Store the state of a study's assembly and who sent to it last."""
        self._change(study_uid, {"opened_at": opened_at, "last_at": last_at, "peer": peer})

    def complete(self, study_uid: str, rule: str, now: float) -> str:
        """Close a study. Returns the revision of the images that it holds."""
        held = self.study(study_uid).instances
        content = revision(instance.key for instance in held if instance.is_image)
        self._change(
            study_uid,
            {"opened_at": None, "completed_at": now, "rule": rule, "revision": content},
        )
        return content

    def study(self, study_uid: str) -> Study:
        """A study with all its instances."""
        rows = self._connection.execute(select(instances).where(instances.c.study_uid == study_uid))
        return Study.of(study_uid, (_instance(row) for row in rows))

    def senders(self, study_uid: str) -> dict[str, int]:
        """How many instances of a study each peer sent, by the peer's name."""
        return self._counts(study_uid, instances.c.peer)

    def classes(self, study_uid: str) -> dict[str, int]:
        """How many instances of each SOP class a study has, by SOP Class UID."""
        return self._counts(study_uid, instances.c.sop_class_uid)

    def patient_id(self, study_uid: str) -> str:
        """The Patient ID of a study; "" when it has none or the study is unknown."""
        facts = self._connection.execute(
            select(instances.c.facts).where(instances.c.study_uid == study_uid).limit(1)
        ).scalar_one_or_none()
        return str(facts_from_json(facts).get("PatientID", "")) if facts else ""

    def find(self, identifier: str) -> tuple[str, ...]:
        """Study Instance UIDs that an accession number, study, series or SOP UID belongs to."""
        direct = select(studies.c.study_uid).where(
            or_(studies.c.study_uid == identifier, studies.c.accession == identifier)
        )
        inside = select(instances.c.study_uid).where(
            or_(
                instances.c.sop_instance_uid == identifier,
                instances.c.series_uid == identifier,
            )
        )
        return tuple(self._connection.execute(direct.union(inside)).scalars())

    def _counts(self, study_uid: str, column: Column[str]) -> dict[str, int]:
        rows = self._connection.execute(
            select(column, func.count())
            .where(instances.c.study_uid == study_uid)
            .group_by(column)
            .order_by(column)
        )
        return {name: count for name, count in rows}  # noqa: C416 - rows are not pairs to mypy

    def _patient(self, study_uid: str) -> str | None:
        """The key of a study's patient; None when the study is not known."""
        return self._connection.execute(
            select(studies.c.patient_key).where(studies.c.study_uid == study_uid)
        ).scalar_one_or_none()

    def _elsewhere(self, instance: Instance) -> tuple[str, ...]:
        """The patients of other studies in which the instance's series is, too."""
        # Two ranges instead of "differs": so the index leads past the series' own study.
        study = instances.c.study_uid
        others = or_(study < instance.study_uid, study > instance.study_uid)
        series = instances.c.series_uid == instance.series_uid
        return tuple(
            self._connection.execute(
                select(studies.c.patient_key).where(
                    studies.c.study_uid.in_(select(study).where(series, others))
                )
            ).scalars()
        )

    def _restore(self, instance: Instance) -> None:
        """What retention had removed was sent again."""
        self._connection.execute(
            update(instances)
            .where(instances.c.sop_instance_uid == instance.sop_instance_uid)
            .values(path=str(instance.path))
        )

    def _add_study(self, instance: Instance, patient: str) -> None:
        row = {
            "study_uid": instance.study_uid,
            "accession": str(instance.facts.get("AccessionNumber", "")),
            "peer": instance.peer,
            "last_at": instance.received_at,
            "revision": "",
            "rule": "",
            "patient_key": patient,
        }
        self._connection.execute(insert(studies).values(row))

    def _change(self, study_uid: str, values: Mapping[str, object]) -> None:
        self._connection.execute(
            update(studies).where(studies.c.study_uid == study_uid).values(values)
        )


def _columns(instance: Instance) -> dict[str, object]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "series_uid": instance.series_uid,
        "study_uid": instance.study_uid,
        "sha256": instance.sha256,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "peer": instance.peer,
        "received_at": instance.received_at,
        "path": str(instance.path),
        "facts": facts_to_json(instance.facts),
        "pixel_offset": instance.pixel_offset,
    }


def _instance(row: Row[Any]) -> Instance:
    return Instance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_uid=row.series_uid,
        study_uid=row.study_uid,
        sha256=row.sha256,
        peer=row.peer,
        received_at=row.received_at,
        path=Path(row.path),
        transfer_syntax_uid=row.transfer_syntax_uid,
        facts=facts_from_json(row.facts),
        pixel_offset=row.pixel_offset,
    )


def _study_row(row: Row[Any]) -> StudyRow:
    return StudyRow(
        study_uid=row.study_uid,
        accession=row.accession,
        peer=row.peer,
        opened_at=row.opened_at,
        last_at=row.last_at,
        revision=row.revision,
        completed_at=row.completed_at,
        rule=row.rule,
    )
