"""``quarantine``: what was acknowledged and is kept aside, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration, operator
from node.cli.printing import emit, local_time, say
from node.domain.errors import HeaderError, NodeError

if TYPE_CHECKING:
    from pathlib import Path

    from node.ledger import Ledger
    from node.ledger.quarantine import Entry
    from node.spool import Spool

NumberArgument = Annotated[int, typer.Argument(help="The number in the list.", min=1)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it goes into the event log.")]


class NoQuarantine(NodeError):
    """The configuration's state folder has no ledger yet."""


@dataclass(frozen=True, slots=True)
class _Rooms:
    """The state folder's parts that the commands use."""

    ledger: Ledger
    spool: Spool
    state: Path


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(
        help="Objects that were acknowledged and are kept aside.", no_args_is_help=True
    )
    commands.command("list")(entries)
    commands.command()(show)
    commands.command()(release)
    commands.command()(discard)
    app.add_typer(commands, name="quarantine")


def entries(
    every: Annotated[bool, typer.Option("--all", help="Also what was decided on.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is kept aside."""
    from rich.table import Table

    with _rooms(config) as rooms, rooms.ledger.read() as books:
        rows = books.quarantine.rows(closed=every)
    table = Table("number", "since", "kind", "state", "SOP Instance UID", "reason")
    table.columns[4].overflow = table.columns[5].overflow = "fold"
    for row in rows:
        table.add_row(
            str(row.id), local_time(row.at), row.kind, row.state, row.sop_instance_uid, row.reason
        )
    emit(rows, as_json, table)


def show(number: NumberArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say everything about one of them but whose it is."""
    from node.quarantine import NotInQuarantine

    with _rooms(config) as rooms, rooms.ledger.read() as books:
        entry = books.quarantine.row(number)
    if entry is None:
        raise NotInQuarantine(f"nothing has the number {number}: see ai-node quarantine list")
    told = asdict(entry) | {"since": local_time(entry.at)} | _provenance(entry)
    if entry.closed_at is not None:
        told["closed"] = local_time(entry.closed_at)
    shown = {key: value for key, value in told.items() if value not in ("", None)}
    emit(told if as_json else shown, as_json)


def release(number: NumberArgument, reason: ReasonOption, config: ConfigOption = None) -> None:
    """Let it be read again like a new arrival, after what kept it aside was put right."""
    from node.bells import Bell
    from node.quarantine import Decision
    from node.quarantine import release as put_back

    with _rooms(config) as rooms:
        put_back(
            rooms.ledger, rooms.spool, number, Decision(operator(), _words(reason), time.time())
        )
        Bell(rooms.state / "bells" / "gateway").ring()
    say(f"released number {number}: the node reads it again; see ai-node quarantine list")


def discard(number: NumberArgument, reason: ReasonOption, config: ConfigOption = None) -> None:
    """Remove its bytes for good. Its entry and the events stay."""
    from node.quarantine import Decision
    from node.quarantine import discard as remove

    with _rooms(config) as rooms:
        remove(rooms.ledger, rooms.spool, number, Decision(operator(), _words(reason), time.time()))
    say(f"discarded number {number}")


def _words(reason: str) -> str:
    words = " ".join(reason.split())
    if not words:
        raise typer.BadParameter("say why, in a few words", param_hint="--reason")
    return words


def _provenance(entry: Entry) -> dict[str, object]:
    """Who sent it, and how large it is, as its file says."""
    from node.dicom.part10 import read_arrival

    try:
        arrival = read_arrival(entry.path)
        size = entry.path.stat().st_size
    except (HeaderError, OSError):
        return {"file": "gone" if not entry.path.exists() else "without our envelope"}
    return {
        "peer": arrival.peer,
        "calling_ae": arrival.calling_ae,
        "address": arrival.address,
        "received": local_time(arrival.received_at),
        "sop_class_uid": arrival.sop_class_uid,
        "transfer_syntax_uid": arrival.transfer_syntax_uid,
        "sha256": arrival.sha256,
        "bytes": size,
    }


@contextmanager
def _rooms(config: Path | None) -> Iterator[_Rooms]:
    from node.ledger import Ledger
    from node.spool import Spool

    state = configuration(config).node.state
    if not (state / "ledger.sqlite").exists():
        raise NoQuarantine(f"{state} has no ledger: the node of this configuration has not run yet")
    ledger = Ledger.open(state / "ledger.sqlite")
    try:
        yield _Rooms(ledger, Spool(state / "spool", time.time), state)
    finally:
        ledger.close()
