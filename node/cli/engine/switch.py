"""``engine enable`` and ``disable``: which engines the configuration has at work, and how."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.engine.places import EngineArgument, folder_of, guessed, section_of, verdicts_of
from node.cli.options import ConfigOption, configuration_path, operator
from node.cli.printing import say
from node.domain.errors import NodeError

if TYPE_CHECKING:
    from node.bundle import Bundle
    from node.config import Config

ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why, for the event log; no patient's name.")
]
ActorOption = Annotated[
    str, typer.Option("--actor", help="Who decides. Default: the user who runs this.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would change in the file.")
]


class NotReady(NodeError):
    """An engine may not be live yet; the text lists everything that is missing."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a person wants: the table of the engine in a folder with some values (None: gone)."""

    folder: Path
    values: dict[str, Any] | None
    words: str
    reason: str
    actor: str
    dry: bool = False

    @property
    def name(self) -> str:
        """The engine's name."""
        return self.folder.name


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="enable")(enable)
    commands.command(name="disable")(disable)


def enable(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    shadow: Annotated[bool, typer.Option("--shadow", help="Keep results, send none.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Send results.")] = False,
    outputs: Annotated[
        list[str] | None, typer.Option("--output", help="Output to make; default: all there are.")
    ] = None,
    destinations: Annotated[
        list[str] | None, typer.Option("--destination", help="Where to; default: all there are.")
    ] = None,
    accept_guesses: Annotated[
        bool, typer.Option("--accept-guesses", help="Live though values are still guessed.")
    ] = False,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    dry_run: DryOption = False,
    config: ConfigOption = None,
) -> None:
    """Have the configuration run an engine. Going live wants a card, a verification and --reason.

    In shadow mode an engine does everything but send.
    """
    from node import bundle
    from node.config import load

    if shadow == live:
        raise typer.BadParameter("say --shadow or --live", param_hint="--shadow / --live")
    settings = load(configuration_path(config))
    folder = folder_of(engine, settings)
    found = bundle.read(folder)
    if live:
        _refuse_unready(found, settings, accept_guesses, reason)
    mode = "live" if live else "shadow"
    values: dict[str, Any] = {}
    fresh = section_of(folder, settings) is None
    if outputs or fresh:
        values["outputs"] = outputs or _all_outputs(settings)
    if destinations or fresh:
        values["destinations"] = destinations or [one.name for one in settings.destinations]
    values["mode"] = mode
    if not fresh:
        values["enabled"] = True
    order = Order(folder, values, f"enabled, {mode}", reason, actor or operator(), dry_run)
    carry_out(order, configuration_path(config))


def disable(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    dry_run: DryOption = False,
    config: ConfigOption = None,
) -> None:
    """Have the configuration run an engine no more; its table stays, and so do its results."""
    from node.config import load

    settings = load(configuration_path(config))
    folder = folder_of(engine, settings)
    if section_of(folder, settings) is None:
        raise NotReady(f"the configuration has no [[engine]] table for {engine}; nothing to do")
    order = Order(folder, {"enabled": False}, "disabled", reason, actor or operator(), dry_run)
    carry_out(order, configuration_path(config))


def _refuse_unready(found: Bundle, config: Config, accept_guesses: bool, reason: str) -> None:
    """Raises NotReady with everything that stands between an engine and patients."""
    missing = list(_missing(found, config, accept_guesses))
    if not " ".join(reason.split()):
        missing.append("nobody says why: --reason")
    if missing:
        listed = "\n".join(f"  - {words}" for words in missing)
        name = found.manifest.engine.name
        raise NotReady(f"{name} cannot be live yet:\n{listed}\n--shadow runs it without sending")


def _missing(found: Bundle, config: Config, accept_guesses: bool) -> Iterator[str]:
    name = found.manifest.engine.name
    if found.card is None:
        yield f"there is no CARD.md in {found.folder}: what it was trained on, and how well it does"
    verdicts = verdicts_of(found, config)
    if not verdicts:
        yield f"it is not verified: ai-node engine verify {name}"
    elif not verdicts[0].passed:
        yield f"its verification failed: {verdicts[0].failures[0]}"
    guesses = guessed(found.folder)
    if guesses and not accept_guesses:
        yield (
            f"{len(guesses)} values of its manifest are still guessed ({guesses[0]}): put them "
            f"right and take the marks away, or say --accept-guesses"
        )


def _all_outputs(config: Config) -> list[str]:
    """The names of the outputs, segmentations first: a report refers to what was made before."""
    if not config.outputs:
        raise NotReady("the configuration has no [[output]] table: say what is to be made")
    ordered = sorted(config.outputs, key=lambda one: one.kind != "seg")
    return [one.name for one in ordered]


def carry_out(order: Order, path: Path) -> None:
    """Change the file, when the whole of it holds afterwards; tell, and leave an event.

    Raises ConfigError with what would be wrong, ConfigurationStays when it cannot be replaced.
    """
    from node.cli.configuration import checked_text
    from node.cli.engine.editing import difference, replace_file
    from node.config import frame, parse

    with path.open(encoding="utf-8", newline="") as file:
        before = file.read()
    after = _edited(before, order, frame(parse(before, str(path))))
    new = checked_text(after, path)
    if after == before:
        say(f"{order.name} is {order.words} already; nothing was changed")
        return
    say(difference(before, after, path))
    if order.dry:
        say("nothing was changed")
        return
    replace_file(path, before, after)
    say(f"{path}: {order.name} is {order.words}. {_noted(order, new)}")
    say("Take it up: sudo systemctl reload 'ai-node*.service' (or send SIGHUP to `ai-node run`)")


def _edited(text: str, order: Order, settings: Config) -> str:
    from node.cli.engine.editing import with_engine, with_values, without_engine

    section = section_of(order.folder, settings)
    if section is None:
        return with_engine(text, {"package": _package(order, settings), **(order.values or {})})
    index = settings.engines.index(section)
    if order.values is None:
        return without_engine(text, index)
    values = dict(order.values)
    if section.enabled and values.get("enabled"):
        del values["enabled"]
    return with_values(text, index, values)


def _package(order: Order, settings: Config) -> str:
    """How the file calls an engine: by its name where that is enough."""
    from node.bundle import is_shipped

    if is_shipped(order.folder) or order.folder.parent == settings.node.state / "engines":
        return order.folder.name
    return str(order.folder.resolve())


def _noted(order: Order, settings: Config) -> str:
    """Leave an event for the auditor; says where it is."""
    from node.domain.event import EventKind
    from node.ledger import Ledger

    path = settings.node.state / "ledger.sqlite"
    if not path.exists():
        return "No event is on record, for this node has not run yet"
    why = " ".join(order.reason.split())
    words = f"engine {order.name}: {order.words}" + (f": {why}" if why else "")
    ledger = Ledger.open(path)
    try:
        with ledger.write() as books:
            books.events.note(time.time(), EventKind.OPERATOR, words, actor=order.actor)
    finally:
        ledger.close()
    return f"On record by {order.actor}"
