"""``deliveries``, ``retry`` and ``discard``: where results stand, and a person's word on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration, existing_ledger, operator
from node.cli.printing import emit, local_time, say
from node.domain.errors import NodeError
from node.domain.event import EventKind
from node.domain.job import (
    DELIVERY_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
)

if TYPE_CHECKING:
    from pathlib import Path

    from node.ledger import Books
    from node.ledger.deliveries import DeliveryRow

IdsArgument = Annotated[
    list[str] | None, typer.Argument(help="Numbers of deliveries, or SOP Instance UIDs.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every one in --state, at --destination.")]
StateOption = Annotated[
    DeliveryState | None, typer.Option("--state", help="Only those in this state.")
]
DestinationOption = Annotated[str, typer.Option("--destination", help="Only to this destination.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why, for the event log; no patient's name.")
]
ActorOption = Annotated[
    str, typer.Option("--actor", help="Who decides. Default: the user who runs this.")
]

_STUCK = (DeliveryState.HELD, DeliveryState.DEAD)
"""Where only a person moves a delivery on."""


class NoSuchDelivery(NodeError):
    """No delivery has this number, or none of those named allows what is asked for."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which deliveries are meant: those named, or all in some states at a destination."""

    ids: Sequence[str]
    every: bool
    states: Sequence[DeliveryState]
    destination: str


@dataclass(frozen=True, slots=True)
class _Order:
    """What a person wants done, and why."""

    happened: DeliveryEvent
    reason: str
    actor: str
    now: float


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(deliveries)
    app.command()(retry)
    app.command()(discard)


def deliveries(
    state: StateOption = None,
    destination: DestinationOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List where every result stands at every destination, the oldest first."""
    with existing_ledger(config) as ledger, ledger.read() as books:
        rows = books.deliveries.listed([state] if state else (), destination)
    emit(rows, as_json, "\n".join(line for row in rows for line in _lines(row)))


def _lines(row: DeliveryRow) -> Iterator[str]:
    proof = f" ({row.proof})" if row.proof else ""
    when = f", {_when(row)}" if _when(row) else ""
    yield (
        f"{row.id:>6}  {row.state}{proof}: {row.result.kind} to {row.destination}, "
        f"tries {row.attempts}{when}, study {row.study_uid}"
    )
    if row.reason:
        yield f"        {row.reason}"


def retry(  # noqa: PLR0913 - the options of a command are its arguments
    reason: ReasonOption,
    ids: IdsArgument = None,
    every: AllOption = False,
    state: StateOption = None,
    destination: DestinationOption = "",
    actor: ActorOption = "",
    config: ConfigOption = None,
) -> None:
    """Send results now, as if they were new: held and dead ones, or those named.

    A destination that is down is asked at once whether it answers again.
    """
    choice = _Choice(ids or (), every, (state,) if state else _STUCK, destination)
    _decide(choice, _order(DeliveryEvent.RELEASE, reason, actor), config)


def discard(  # noqa: PLR0913 - the options of a command are its arguments
    reason: ReasonOption,
    ids: IdsArgument = None,
    every: AllOption = False,
    state: StateOption = None,
    destination: DestinationOption = "",
    actor: ActorOption = "",
    config: ConfigOption = None,
) -> None:
    """Never send results: held and dead ones, or those named that were not accepted yet."""
    choice = _Choice(ids or (), every, (state,) if state else _STUCK, destination)
    _decide(choice, _order(DeliveryEvent.DISCARD, reason, actor), config)


def _order(happened: DeliveryEvent, reason: str, actor: str) -> _Order:
    words = " ".join(reason.split())
    if not words:
        raise typer.BadParameter("say why, in a few words", param_hint="--reason")
    return _Order(happened, words, actor or operator(), time.time())


def _decide(choice: _Choice, order: _Order, config: Path | None) -> None:
    """Apply a person's decision, to all that it names or to none. Raises NoSuchDelivery."""
    from node.bells import Bell

    if choice.every == bool(choice.ids):
        raise typer.BadParameter("name deliveries, or say --all", param_hint="IDS")
    with existing_ledger(config) as ledger, ledger.write() as books:
        rows = _chosen(books, choice)
        for row in rows:
            _refuse_unfit(row, order.happened)
            _apply(books, row, order)
    for row in rows:
        say(f"{row.id}: {row.result.kind} to {row.destination} was {row.state}: {order.happened}")
    say(f"{len(rows)} deliveries: {order.happened}")
    Bell(configuration(config).node.state / "bells" / "gateway").ring()


def _chosen(books: Books, choice: _Choice) -> tuple[DeliveryRow, ...]:
    if choice.every:
        return books.deliveries.listed(choice.states, choice.destination)
    everything = books.deliveries.listed((), choice.destination)
    named: dict[int, DeliveryRow] = {}
    for number in choice.ids:
        found = [row for row in everything if number in (str(row.id), row.result.sop_instance_uid)]
        if not found:
            raise NoSuchDelivery(f"no delivery has the number {number}: see ai-node deliveries")
        named.update({row.id: row for row in found})
    return tuple(named.values())


def _refuse_unfit(row: DeliveryRow, happened: DeliveryEvent) -> None:
    if (row.state, happened) not in DELIVERY_TRANSITIONS:
        raise NoSuchDelivery(
            f"{row.id} is {row.state}, so it cannot be {_DONE[happened]}; nothing was changed"
        )


_DONE = {DeliveryEvent.RELEASE: "sent again", DeliveryEvent.DISCARD: "discarded"}


def _apply(books: Books, row: DeliveryRow, order: _Order) -> None:
    if order.happened is DeliveryEvent.RELEASE:
        state = books.deliveries.release(row, order.now)
    else:
        state = books.deliveries.advance(row, order.happened, reason=order.reason)
    books.events.note(
        order.now,
        EventKind.OPERATOR,
        f"{row.result.kind} to {row.destination}: {order.happened}, was {row.state}, now {state}: "
        f"{order.reason}",
        study_uid=row.study_uid,
        job=row.result.job_id,
        actor=order.actor,
    )


def _when(row: DeliveryRow) -> str:
    if row.state is DeliveryState.WAITING:
        return f"next try {local_time(row.due_at)}"
    return f"sent {local_time(row.sent_at)}" if row.sent_at else ""
