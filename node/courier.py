"""Delivers frozen results, one courier per destination, for as long as it takes.

A delivery that fails goes back to the ledger with the time of its next try, and a destination that
does not answer is asked by C-ECHO before anything is sent to it again: a PACS that is down for
days holds no thread, and a restart forgets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from node.destinations import Destination
from node.domain.breaker import Breaker
from node.domain.errors import DigestMismatch, PeerError
from node.domain.event import EventKind
from node.domain.job import BackOff, DeliveryEvent, DeliveryState
from node.domain.peer import Network, Receipt
from node.domain.stage import Reached, Stage, unobserved
from node.ledger import Books, Ledger
from node.ledger.deliveries import DeliveryRow
from node.proof import Proving
from node.spool import Spool

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Persistence:
    """How often a delivery is tried (0: for ever), and how long to wait in between.

    After ``trip_after`` failures in a row a destination counts as down.
    """

    attempts: int = 0
    back_off: BackOff = BackOff()
    trip_after: int = 3


@dataclass(frozen=True, slots=True)
class Courier:
    """Delivers to one destination. One at a time may run per destination."""

    name: str
    destination: Destination
    network: Network
    ledger: Ledger
    spool: Spool
    persistence: Persistence
    reached: Reached = unobserved

    def step(self, clock: Callable[[], float]) -> bool:
        """Try what is due, over one association. False when nothing was due."""
        now = clock()
        proving = self._proving
        entered = proving.enter_reports(now)
        with self.ledger.read() as books:
            breaker = books.deliveries.breaker(self.name)
            due = books.deliveries.due(self.name, now)
            proof_due = proving.next_due(books)
        if not due and (proof_due is None or proof_due > now):
            return entered
        if breaker.probe_at is not None:
            if breaker.probe_at > now:
                return entered
            breaker = self._probe(breaker, clock)
            if breaker.is_open:
                return True
        self._send(due, breaker, clock)
        proving.step(clock())
        return True

    def next_due(self) -> float | None:
        """When the next delivery or proof is due (seconds since the epoch)."""
        if self.spool.reports():
            return 0.0
        with self.ledger.read() as books:
            breaker = books.deliveries.breaker(self.name)
            dues = (books.deliveries.next_due(self.name), self._proving.next_due(books))
        return breaker.gate(min((due for due in dues if due is not None), default=None))

    @property
    def _proving(self) -> Proving:
        prover = self.destination.prover()
        return Proving(self.name, prover, self.network, self.ledger, self.spool, self.reached)

    def _probe(self, breaker: Breaker, clock: Callable[[], float]) -> Breaker:
        """Ask a destination that was down whether it answers again."""
        try:
            self.destination.probe(self.network)
        except (PeerError, OSError) as error:
            return self._down(breaker, str(error), clock())
        with self.ledger.write() as books:
            books.deliveries.keep_breaker(self.name, breaker.echoed())
        _log.info("destination answers again", to=self.name)
        return breaker.echoed()

    def _send(
        self, rows: Sequence[DeliveryRow], breaker: Breaker, clock: Callable[[], float]
    ) -> None:
        sound = [row for row in rows if self._sound(row, clock())]
        if not sound:
            return
        self._note_sending(sound, clock())
        self.reached(Stage.DELIVERY_STARTED, sound[0].result.job_id)
        done = 0
        try:
            for row, receipt in zip(sound, self._receipts(sound), strict=False):
                self._record(row, receipt, clock())
                done += 1
        except (PeerError, OSError) as error:
            if done:
                self._up(breaker, clock())
            self._postpone(sound[done:], str(error), clock())
            self._down(Breaker() if done else breaker, str(error), clock())
            return
        self._up(breaker, clock())
        for row in sound[done:]:
            self._failed(row, "the destination gave no receipt", retryable=True, now=clock())

    def _receipts(self, rows: Sequence[DeliveryRow]) -> Iterator[Receipt]:
        return self.destination.deliver([row.result.path for row in rows], self.network)

    def _sound(self, row: DeliveryRow, now: float) -> bool:
        """Whether the bytes on disk are those that were frozen; what is not is held."""
        try:
            self.spool.verify(row.result.path, row.result.sha256)
        except (DigestMismatch, FileNotFoundError) as error:
            self._failed(row, _words(error), retryable=False, now=now)
            return False
        except OSError as error:  # too many open files, a disk that is away for a moment
            self._failed(row, _words(error), retryable=True, now=now)
            return False
        return True

    def _record(self, row: DeliveryRow, receipt: Receipt, now: float) -> None:
        if not receipt.accepted:
            self._failed(
                row, receipt.reason, retryable=receipt.retryable, now=now, status=receipt.status
            )
            return
        self.reached(Stage.RESULT_ACCEPTED, row.result.sop_instance_uid)
        proof = self._proving.begin(now)
        self._advance(
            row,
            DeliveryEvent.ACCEPT,
            now,
            reason=receipt.reason,
            sent_at=now,
            status=receipt.status,
            proof=proof.stage,
            proof_due_at=proof.due_at,
        )
        self.reached(Stage.DELIVERY_RECORDED, row.result.sop_instance_uid)

    def _failed(
        self, row: DeliveryRow, reason: str, *, retryable: bool, now: float, status: int = 0
    ) -> None:
        attempt = row.attempts + 1
        values: dict[str, object] = {"reason": reason, "status": status}
        if not retryable:
            self._advance(row, DeliveryEvent.HOLD, now, **values)
        elif 0 < self.persistence.attempts <= attempt:
            self._advance(row, DeliveryEvent.GIVE_UP, now, **values)
        else:
            due_at = now + self.persistence.back_off.delay(attempt)
            self._advance(row, DeliveryEvent.POSTPONE, now, due_at=due_at, **values)

    def _postpone(self, rows: Sequence[DeliveryRow], reason: str, now: float) -> None:
        """The first was under way when the association ended; the others were not tried."""
        self._failed(rows[0], reason, retryable=True, now=now)
        due_at = now + self.persistence.back_off.delay(1)
        with self.ledger.write() as books:
            for row in rows[1:]:
                again = {"attempts": row.attempts, "due_at": due_at, "reason": reason}
                books.deliveries.advance(row, DeliveryEvent.POSTPONE, **again)

    def _down(self, breaker: Breaker, reason: str, now: float) -> Breaker:
        """Count a failure; the first that opens the breaker is told."""
        tripped = breaker.failed(now, self.persistence.trip_after, self.persistence.back_off)
        with self.ledger.write() as books:
            books.deliveries.keep_breaker(self.name, tripped)
            if tripped.failures == self.persistence.trip_after:
                self._note(books, f"is down and is asked by C-ECHO from now on: {reason}", now)
                _log.warning("destination is down", to=self.name, reason=reason)
        return tripped

    def _up(self, breaker: Breaker, now: float) -> None:
        """The destination has answered; nothing is counted against it any more."""
        if breaker == Breaker():
            return
        with self.ledger.write() as books:
            books.deliveries.keep_breaker(self.name, Breaker())
            if breaker.failures >= self.persistence.trip_after:
                self._note(books, "takes results again", now)

    def _note(self, books: Books, words: str, now: float) -> None:
        books.events.note(now, EventKind.DESTINATION, f"{self.name} {words}", actor=self.name)

    def _note_sending(self, rows: Sequence[DeliveryRow], now: float) -> None:
        new = [row for row in rows if not row.attempts]
        if not new:
            return
        with self.ledger.write() as books:
            for row in new:
                books.events.note(
                    now,
                    EventKind.SENDING,
                    f"{row.result.kind} to {self.name}",
                    study_uid=row.study_uid,
                    job=row.result.job_id,
                    actor=self.name,
                )

    def _advance(
        self, row: DeliveryRow, happened: DeliveryEvent, now: float, **values: object
    ) -> None:
        with self.ledger.write() as books:
            state = books.deliveries.advance(row, happened, **values)
            reason = values.get("reason", "")
            words = f"{row.result.kind} to {self.name}: {state}{f', {reason}' if reason else ''}"
            kind = EventKind.SENT if state is DeliveryState.SENT else EventKind.DELIVERY
            books.events.note(
                now, kind, words, study_uid=row.study_uid, job=row.result.job_id, actor=self.name
            )
        level = _log.warning if state in (DeliveryState.HELD, DeliveryState.DEAD) else _log.info
        level("delivery", result=row.result.sop_instance_uid, to=self.name, state=str(state))


def _words(error: Exception) -> str:
    """What is wrong with a file of ours, without its path."""
    if isinstance(error, OSError):
        return f"the frozen result cannot be read ({error.strerror}): look into the state folder"
    return str(error)
