"""Sees to it that a destination still has what it accepted, and raises the alarm when it does not.

Reports of storage commitment lie in the spool, wherever they came in; requests and questions go
out from here. What follows from an answer is decided in ``node.domain.proof``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.destinations import Prover
from node.dicom.commitment import failure_words
from node.domain.errors import (
    ContextRejected,
    HeaderError,
    PeerError,
    SpoolError,
    StatusError,
)
from node.domain.event import EventKind
from node.domain.job import DeliveryEvent, DeliveryState, derived_uid
from node.domain.peer import Network
from node.domain.proof import (
    LOOKING,
    Accepted,
    CommitmentReport,
    Proof,
    ProofEvent,
    ProofPlan,
    ProofStep,
    advance_proof,
    begin,
    committed,
)
from node.domain.stage import Reached, Stage, unobserved
from node.ledger import Books, Ledger
from node.ledger.deliveries import DeliveryRow
from node.spool import Spool, read_report

_log = structlog.get_logger()

_NO_REPORT = "no storage commitment report came in time"
_MISSING = "the destination accepted it and does not have it"


@dataclass(frozen=True, slots=True)
class Proving:
    """The proofs of one destination; without a ``prover`` there are none."""

    name: str
    prover: Prover | None
    network: Network
    ledger: Ledger
    spool: Spool
    reached: Reached = unobserved

    def begin(self, now: float) -> ProofStep:
        """What is to be shown of a result that has just been accepted."""
        return begin(self.prover.plan if self.prover else None, now)

    def next_due(self, books: Books) -> float | None:
        """When there is something to do (seconds since the epoch)."""
        return books.deliveries.next_proof_due(self.name) if self.prover else None

    def enter_reports(self, now: float) -> bool:
        """Take what the spool has of reports, for any destination. False when it has none."""
        found = self.spool.reports()
        for path in found:
            self._enter_report(path, now)
        return bool(found)

    def step(self, now: float) -> None:
        """Ask and look for what is due."""
        if self.prover is not None:
            self._time_out(self.prover.plan, now)
            self._ask(self.prover, now)
            self._look(self.prover, now)

    def _enter_report(self, path: Path, now: float) -> None:
        try:
            report = read_report(path)
        except FileNotFoundError:
            return  # another courier took it
        except SpoolError as error:
            _log.error("report put aside", reason=str(error))
            path.replace(path.with_suffix(".damaged"))
            return
        with self.ledger.write() as books:
            rows = books.deliveries.of_transaction(report.transaction_uid)
            for row in rows:
                _report(books, row, report, now)
        if not rows:
            _log.warning("report on an unknown transaction dropped", peer=report.calling_ae)
        path.unlink(missing_ok=True)

    def _time_out(self, plan: ProofPlan, now: float) -> None:
        rows = self._due(Proof.ASKED, now)
        self._conclude([(row, ProofEvent.NO_REPORT) for row in rows], plan, _NO_REPORT, now)

    def _ask(self, prover: Prover, now: float) -> None:
        rows = self._present(Proof.ASK, prover.plan, now)
        if not rows:
            return
        # The same results accepted at the same times are the same transaction, however often we
        # have to ask; and the report may come before the answer does.
        marks = (f"{row.result.sop_instance_uid} {row.sent_at!r}" for row in rows)
        transaction = derived_uid("storage commitment", self.name, *marks)
        with self.ledger.write() as books:
            for row in rows:
                books.deliveries.note_proof(row, transaction_uid=transaction)
        happened, words = ProofEvent.REQUESTED, ""
        try:
            prover.ask(_paths(rows), transaction, self.spool.keep_report, self.network)
            self.reached(Stage.PROOF_ASKED, rows[0].result.sop_instance_uid)
        except (ContextRejected, StatusError) as error:
            happened, words = ProofEvent.REFUSED, str(error)
        except (PeerError, HeaderError, OSError) as error:
            happened, words = ProofEvent.NO_ANSWER, str(error)
        _log.info("storage commitment", to=self.name, results=len(rows), answer=str(happened))
        self._conclude([(row, happened) for row in rows], prover.plan, words, now)

    def _look(self, prover: Prover, now: float) -> None:
        rows = [row for stage in LOOKING for row in self._present(stage, prover.plan, now)]
        if not rows:
            return
        try:
            found = prover.look(_paths(rows), self.network)
            self.reached(Stage.PROOF_ASKED, rows[0].result.sop_instance_uid)
        except (ContextRejected, StatusError) as error:
            passing = isinstance(error, StatusError) and error.transient
            happened = ProofEvent.NO_ANSWER if passing else ProofEvent.REFUSED
            self._conclude([(row, happened) for row in rows], prover.plan, str(error), now)
        except (PeerError, HeaderError, OSError) as error:
            everything = [(row, ProofEvent.NO_ANSWER) for row in rows]
            self._conclude(everything, prover.plan, str(error), now)
        else:
            answers = [
                (row, ProofEvent.FOUND)
                if row.result.sop_instance_uid in found
                else (row, ProofEvent.MISSING)
                for row in rows
            ]
            self._conclude(answers, prover.plan, _MISSING, now)
            for uid in found:
                self.reached(Stage.PROVEN, uid)

    def _present(self, stage: Proof, plan: ProofPlan, now: float) -> list[DeliveryRow]:
        """What is due and still has its file, which says whereof to speak."""
        rows = self._due(stage, now)
        gone = [row for row in rows if not row.result.path.is_file()]
        if gone:
            with self.ledger.write() as books:
                for row in gone:
                    lost = ProofStep(Proof.UNPROVEN, alarm=True)
                    _enter(books, row, lost, "its file is gone", now)
        return [row for row in rows if row not in gone]

    def _due(self, stage: Proof, now: float) -> tuple[DeliveryRow, ...]:
        with self.ledger.read() as books:
            return books.deliveries.proofs_due(self.name, stage, now)

    def _conclude(
        self,
        answers: Sequence[tuple[DeliveryRow, ProofEvent]],
        plan: ProofPlan,
        words: str,
        now: float,
    ) -> None:
        if not answers:
            return
        with self.ledger.write() as books:
            for row, happened in answers:
                # A report or a person may have been faster.
                current = books.deliveries.row(row.id)
                if current and (current.state, current.proof) == (DeliveryState.SENT, row.proof):
                    sent_at = now if current.sent_at is None else current.sent_at
                    accepted = Accepted(row.proof, sent_at, current.resends)
                    step = advance_proof(accepted, happened, plan, now)
                    _enter(books, current, step, words, now)


def _report(books: Books, row: DeliveryRow, report: CommitmentReport, now: float) -> None:
    """What a report says of one result."""
    uid = row.result.sop_instance_uid
    refusals = {failed.sop_instance_uid: failed.reason for failed in report.failed}
    if uid in refusals:
        if (row.state, row.proof) == (DeliveryState.SENT, Proof.ASKED):
            words = f"the destination does not commit to it: {failure_words(refusals[uid])}"
            _enter(books, row, ProofStep(Proof.LOOK, now), words, now)
    elif uid in report.committed and row.state in (DeliveryState.SENT, DeliveryState.VERIFIED):
        _enter(books, row, committed(), "", now)


def _enter(books: Books, row: DeliveryRow, step: ProofStep, words: str, now: float) -> None:
    """Write a step into the ledger."""
    place = f"{row.result.kind} to {row.destination}"
    stage: dict[str, object] = {"proof": step.stage, "proof_due_at": step.due_at}
    if step.happened is None:
        books.deliveries.note_proof(row, **stage, reason=words or row.reason)
    elif step.happened is DeliveryEvent.RESEND:
        again = {"attempts": 0, "due_at": now, "resends": row.resends + 1, "reason": words}
        books.deliveries.advance(row, step.happened, **stage, **again)
        _note(books, row, EventKind.DELIVERY, f"{place}: sent again, {words}", now)
    else:
        state = books.deliveries.advance(row, step.happened, **stage, reason="")
        _note(books, row, EventKind.PROVEN, f"{place}: {state}", now)
        _log.info("delivery", result=row.result.sop_instance_uid, state=str(state))
    if step.alarm:
        text = f"{place}: accepted, but not proven to be kept: {words}"
        _note(books, row, EventKind.ALARM, text, now)
        _log.warning("delivery not proven", result=row.result.sop_instance_uid, reason=words)


def _note(books: Books, row: DeliveryRow, kind: EventKind, words: str, now: float) -> None:
    books.events.note(
        now,
        kind,
        words,
        study_uid=row.study_uid,
        job=row.result.job_id,
        actor=row.destination,
    )


def _paths(rows: Sequence[DeliveryRow]) -> list[Path]:
    return [row.result.path for row in rows]
