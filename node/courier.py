"""Delivers frozen results, one courier per destination, for as long as it takes.

A delivery that fails goes back to the ledger with the time of its next try: a PACS that is down for
days holds no thread, and a restart forgets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from node.destinations import Destination
from node.domain.errors import DigestMismatch, PeerError
from node.domain.job import BackOff, DeliveryEvent
from node.domain.peer import Network, Receipt
from node.domain.stage import Reached, Stage, unobserved
from node.ledger import Ledger
from node.ledger.deliveries import DeliveryRow
from node.spool import Spool

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Persistence:
    """How often a delivery is tried (0: for ever), and how long to wait in between."""

    attempts: int = 0
    back_off: BackOff = BackOff()


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
        with self.ledger.read() as books:
            due = books.deliveries.due(self.name, clock())
        if not due:
            return False
        sound = [row for row in due if self._sound(row, clock())]
        if sound:
            self._deliver(sound, clock)
        return True

    def next_due(self) -> float | None:
        """When the next delivery is due (seconds since the epoch)."""
        with self.ledger.read() as books:
            return books.deliveries.next_due(self.name)

    def _sound(self, row: DeliveryRow, now: float) -> bool:
        """Whether the bytes on disk are those that were frozen; what is not is held."""
        try:
            self.spool.verify(row.result.path, row.result.sha256)
        except (DigestMismatch, OSError) as error:
            self._advance(row, DeliveryEvent.HOLD, now, f"{error}")
            return False
        return True

    def _deliver(self, rows: Sequence[DeliveryRow], clock: Callable[[], float]) -> None:
        waiting = {row.result.sop_instance_uid: row for row in rows}
        self.reached(Stage.DELIVERY_STARTED, rows[0].result.job_id)
        try:
            for receipt in self._receipts(rows):
                row = waiting.pop(receipt.sop_instance_uid)
                self._record(row, receipt, clock())
        except PeerError as error:
            for row in waiting.values():
                self._failed(row, str(error), retryable=True, now=clock())
            waiting.clear()
        for row in waiting.values():
            self._failed(row, "the destination gave no receipt", retryable=True, now=clock())

    def _receipts(self, rows: Sequence[DeliveryRow]) -> Iterator[Receipt]:
        return self.destination.deliver([row.result.path for row in rows], self.network)

    def _record(self, row: DeliveryRow, receipt: Receipt, now: float) -> None:
        if not receipt.accepted:
            self._failed(row, receipt.reason, retryable=receipt.retryable, now=now)
            return
        self.reached(Stage.RESULT_ACCEPTED, receipt.sop_instance_uid)
        self._advance(
            row, DeliveryEvent.ACCEPT, now, receipt.reason, sent_at=now, status=receipt.status
        )
        self.reached(Stage.DELIVERY_RECORDED, receipt.sop_instance_uid)

    def _failed(self, row: DeliveryRow, reason: str, *, retryable: bool, now: float) -> None:
        attempt = row.attempts + 1
        if not retryable:
            self._advance(row, DeliveryEvent.HOLD, now, reason)
        elif 0 < self.persistence.attempts <= attempt:
            self._advance(row, DeliveryEvent.GIVE_UP, now, reason)
        else:
            due_at = now + self.persistence.back_off.delay(attempt)
            self._advance(row, DeliveryEvent.POSTPONE, now, reason, due_at=due_at)

    def _advance(
        self, row: DeliveryRow, happened: DeliveryEvent, now: float, reason: str, **values: object
    ) -> None:
        with self.ledger.write() as books:
            state = books.deliveries.advance(row, happened, reason=reason, **values)
            words = f"{row.result.kind} to {self.name}: {state}{f', {reason}' if reason else ''}"
            books.events.note(
                now, "delivery", words, study_uid=row.study_uid, job=row.result.job_id
            )
        _log.info("delivery", result=row.result.sop_instance_uid, to=self.name, state=str(state))
