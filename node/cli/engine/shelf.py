"""``engine list``, ``show`` and ``remove``: which engines there are, and what each is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.engine.places import (
    EngineArgument,
    EngineInPlace,
    added,
    configured,
    folder_of,
    guessed,
    plans_of,
    read,
    section_of,
    verdicts_of,
)
from node.cli.engine.switch import ActorOption, Order, ReasonOption, carry_out
from node.cli.options import ConfigOption, JsonOption, configuration_path, operator
from node.cli.printing import emit, say
from node.domain.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from node.bundle import Bundle
    from node.config import Config
    from node.domain.plan import Kept
    from node.manifest import Manifest
    from node.verdicts import Verdict

_CARD_LINES = 12


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="list")(list_engines)
    commands.command(name="show")(show)
    commands.command(name="remove")(remove)


def list_engines(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the engines that are shipped and those that were added."""
    from node import bundle

    settings = configured(config)
    rows = [
        *(_row(folder, "shipped", settings) for folder in bundle.list_shipped()),
        *(_row(folder, "added", settings) for folder in added(settings)),
    ]
    emit(rows, as_json, _table(rows))


def _row(folder: Path, origin: str, config: Config | None) -> dict[str, Any]:
    """What is known of an engine; of one that cannot be read, why."""
    from node import bundle

    try:
        found = bundle.read(folder)
    except ConfigError as error:
        return {"name": folder.name, "origin": origin, "folder": folder, "fault": str(error)}
    engine = found.manifest.engine
    section = section_of(folder, config)
    return {
        "name": engine.name,
        "version": engine.version,
        "title": engine.title,
        "task": engine.task,
        "clinical_use": engine.clinical_use,
        "digest": found.digest,
        "folder": folder,
        "origin": origin,
        "mode": _mode(folder, config),
        "runtime": section.runtime.kind if section else "",
        "verified": _verified(verdicts_of(found, config)),
    }


def _mode(folder: Path, config: Config | None) -> str:
    section = section_of(folder, config)
    if section is None:
        return "not configured"
    return section.mode if section.enabled else "disabled"


def _verified(verdicts: tuple[Verdict, ...]) -> str:
    if not verdicts:
        return "no"
    return "passed" if verdicts[0].passed else "failed"


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    keys = ("name", "version", "origin", "mode", "runtime", "verified")
    table = Table(*keys, "what it finds", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        last = f"cannot be read: {row['fault']}" if "fault" in row else row["title"]
        table.add_row(*(str(row.get(key, "")) for key in keys), last)
    return table


def show(engine: EngineArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what an engine wants, does and makes, and what is still guessed."""
    settings = configured(config)
    found = read(engine, settings)
    document = _document(found, settings)
    emit(document, as_json, "\n".join(_page(found, settings)))


def _document(found: Bundle, config: Config | None) -> dict[str, object]:
    verdicts = verdicts_of(found, config)
    return {
        "folder": found.folder,
        "digest": found.digest,
        "card": found.card,
        "guessed": guessed(found.folder),
        "mode": _mode(found.folder, config),
        "verdicts": [asdict(one) | {"passed": one.passed} for one in verdicts],
        "plans": plans_of(found, config),
        "notes": found.notes,
        "manifest": asdict(found.manifest),
    }


def _page(found: Bundle, config: Config | None) -> Iterator[str]:
    engine = found.manifest.engine
    yield f"{engine.name} {engine.version}: {engine.title}"
    if engine.description:
        yield f"  {engine.description}"
    yield f"  maker      {engine.manufacturer}, licence {engine.licence}"
    yield f"  use        {'clinical' if engine.clinical_use else 'NOT for clinical use'}"
    yield f"  folder     {found.folder}"
    yield f"  package    {found.digest}"
    yield f"  mode       {_mode(found.folder, config)}"
    yield from _manifest_lines(found.manifest)
    yield from _verdict_lines(verdicts_of(found, config))
    yield from _plan_lines(plans_of(found, config))
    yield from _guess_lines(guessed(found.folder))
    yield from (f"  note       {note}" for note in found.notes)
    yield from _card_lines(found.card)


def _manifest_lines(manifest: Manifest) -> Iterator[str]:
    from node.steps import MASKS, STEPS

    for series in manifest.series:
        yield f"  series     {series.role}: {len(series.accepts)} conditions"
        yield from (f"               {condition}" for condition in map(_said, series.accepts))
    for one in manifest.pre:
        yield f"  before     {_kind(STEPS, one.step)} {_options(one.step)}".rstrip()
    if manifest.cascade is not None:
        yield f"  looks      where {manifest.cascade.package} has found something"
    yield f"  sees       {_options(manifest.window)}"
    if manifest.members:
        models = ", ".join(one.model for one in manifest.networks)
        yield f"  networks   {models}; {manifest.ensemble.combine}"
    for tensor in manifest.inputs:
        yield f"  input      {tensor.tensor} from {', '.join(tensor.roles)}"
    yield f"  output     {manifest.output.tensor}, activation {manifest.output.activation}"
    for step in manifest.post:
        yield f"  after      {_kind(MASKS, step)} {_options(step)}".rstrip()
    for label in manifest.findings:
        yield f"  finding    {label.label}: {label.name}, {label.type}"
    yield f"  makes      {', '.join(manifest.reports.outputs)}"


def _kind(registry: dict[str, type[Any]], step: object) -> str:
    return next((kind for kind, member in registry.items() if type(step) is member), "unknown")


def _options(member: Any) -> str:
    """The options of a dataclass that are not their defaults."""
    from dataclasses import fields

    shown = [
        f"{one.name}={getattr(member, one.name)}"
        for one in fields(member)
        if getattr(member, one.name) != one.default
    ]
    return " ".join(shown)


def _said(condition: Any) -> str:
    if condition.any_of:
        return "any of: " + "; ".join(map(_said, condition.any_of))
    return _options(condition)


def _verdict_lines(verdicts: tuple[Verdict, ...]) -> Iterator[str]:
    if not verdicts:
        yield "  verified   no: ai-node engine verify"
    for verdict in verdicts:
        yield f"  verified   {'passed' if verdict.passed else 'FAILED'}, {verdict.runtime}"
        yield from (f"               {gate}" for gate in verdict.failures)


def _plan_lines(plans: tuple[Kept, ...]) -> Iterator[str]:
    for one in plans:
        key = one.key
        built = f"{key.get('precision')} for {key.get('device') or 'any GPU'}"
        library = f"{key.get('flavour')} {key.get('version')}"
        yield f"  plan       {one.digest[:12]}, {built}, {library}, {one.size / 1e6:.1f} MB"


def _guess_lines(lines: tuple[str, ...]) -> Iterator[str]:
    if lines:
        yield f"  guessed    {len(lines)} values; read them, and take the marks away:"
    yield from (f"               {line}" for line in lines)


def _card_lines(card: Path | None) -> Iterator[str]:
    if card is not None:
        yield f"  card       {card}"
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from (f"    | {line}" for line in lines[:_CARD_LINES])


def remove(  # noqa: PLR0913 - the options of a command are its arguments
    engine: EngineArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    config: ConfigOption = None,
) -> None:
    """Remove an engine that was added, and its table, if it is disabled, from the configuration.

    One that is shipped, or that the configuration has at work, stays.
    """
    settings = configured(config)
    folder = folder_of(engine, settings)
    _refuse_removal(folder, settings)
    if not yes:
        typer.confirm(f"remove {folder} with everything in it?", abort=True)
    if section_of(folder, settings) is not None:
        order = Order(folder, None, "removed", reason, actor or operator())
        carry_out(order, configuration_path(config))
    # First out of sight, so that nobody reads half of it.
    aside = folder.with_name(f".removed-{folder.name}")
    try:
        folder.rename(aside)
        (aside / "engine.toml").unlink()
        shutil.rmtree(aside)
    except OSError as error:
        raise EngineInPlace(f"{folder} cannot be removed: {error.strerror}") from error
    say(f"{folder} is removed")


def _refuse_removal(folder: Path, config: Config | None) -> None:
    from node.bundle import is_shipped

    if is_shipped(folder):
        raise EngineInPlace(f"{folder.name} is shipped with the node; `engine disable` stops it")
    section = section_of(folder, config)
    if section is not None and section.enabled:
        raise EngineInPlace(
            f"the configuration has {folder.name} at work ({section.mode}): `ai-node engine "
            f"disable {folder.name}` first"
        )
