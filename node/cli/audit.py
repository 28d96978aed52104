"""``audit verify`` and ``audit export``: the event log, proven and handed out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from node.cli.options import ConfigOption, JsonOption, configuration
from node.cli.printing import complain, emit, local_time
from node.domain.errors import ConfigError, Fault, NodeError

if TYPE_CHECKING:
    from node.audit import Anchor
    from node.domain.event import ChainProof, Event, Head
    from node.ledger import Ledger

_TIME = "A time such as 2025-01-31 or 2025-01-31T08:00:00+01:00; without a zone, local time."


class NoLog(NodeError):
    """The configuration's state folder has no ledger yet, and so no log."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(help="The event log: proof and export.", no_args_is_help=True)
    commands.command()(verify)
    commands.command()(export)
    app.add_typer(commands, name="audit")


def verify(
    head: Annotated[
        str, typer.Option(help="A digest printed or exported earlier: the log must hold it.")
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that no event was changed, removed or inserted.

    The exit code is 1 when one was. The printed head, kept elsewhere, proves the log up to here.
    """
    from node import audit

    with _log(config) as (ledger, anchor):
        proof = audit.verify(ledger, anchor)
        held = not head or _holds(ledger, head)
    fault = proof.fault or ("" if held else "no event has the given digest")
    answer = {
        "ok": not fault,
        "events": proof.events,
        "before_the_chain": proof.before,
        "head": asdict(proof.head),
        "fault": fault,
        "broken": asdict(proof.broken) if proof.broken else None,
    }
    emit(answer, as_json, _sentence(proof, fault))
    if fault:
        raise typer.Exit(1)


def export(
    since: Annotated[str, typer.Option(help=_TIME)] = "",
    until: Annotated[str, typer.Option(help=_TIME)] = "",
    form: Annotated[str, typer.Option("--format", help="jsonl, csv or xml.")] = "jsonl",
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: standard output.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write the events of a span of time, the first instant included, the last not."""
    from node.audit import WRITERS

    if form not in WRITERS:
        known = ", ".join(WRITERS)
        raise ConfigError((Fault("--format", f"there is no form {form!r} (known: {known})"),))
    span = (_at(since, "--since", 0.0), _at(until, "--until", float("inf")))
    with _log(config) as (ledger, _), _opened(out) as stream:
        WRITERS[form](_between(ledger, span), stream)
        with ledger.read() as books:
            last = books.events.head()
    complain(f"the log's head is {_shown(last)}; keep it apart from this machine")


def _between(ledger: Ledger, span: tuple[float, float]) -> Iterator[Event]:
    with ledger.read() as books:
        for event in books.events.walk():
            if span[0] <= event.at < span[1]:
                yield event


def _holds(ledger: Ledger, digest: str) -> bool:
    with ledger.read() as books:
        return any(event.chain == digest for event in books.events.walk())


def _sentence(proof: ChainProof, fault: str) -> str:
    if proof.broken is not None:
        event = proof.broken
        return f"BROKEN at event {event.id} of {local_time(event.at)} ({event.kind}): {fault}"
    if fault:
        return f"BROKEN: {fault}; the last event here is {_shown(proof.head)}"
    before = f", {proof.before} of them from before there was a chain" if proof.before else ""
    return f"sound: {proof.events} events{before}; the head is {_shown(proof.head)}"


def _shown(head: Head) -> str:
    return (
        f"event {head.id} of {local_time(head.at)}, {head.chain}" if head.id else "none: no events"
    )


def _at(text: str, option: str, default: float) -> float:
    if not text:
        return default
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        fault = Fault(option, f"{text!r} is no time; write it as 2025-01-31T08:00:00+01:00")
        raise ConfigError((fault,)) from error


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    # newline="" leaves the line ends to the writer, as csv wants it.
    with out.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextmanager
def _log(config: Path | None) -> Iterator[tuple[Ledger, Anchor]]:
    from node.audit import ANCHOR_NAME, Anchor
    from node.ledger import Ledger

    state = configuration(config).node.state
    path = state / "ledger.sqlite"
    if not path.exists():
        raise NoLog(f"{path} is not there: the node of this configuration has not run yet")
    ledger = Ledger.open(path)
    try:
        yield ledger, Anchor(state / ANCHOR_NAME)
    finally:
        ledger.close()
