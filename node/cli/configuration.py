"""``check``, ``init`` and ``schema``: the configuration file before the node reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration_path
from node.cli.printing import emit, say
from node.domain.errors import ConfigError, Fault, NodeError

if TYPE_CHECKING:
    from node.config import Config, Document, Table, Where

Answers = dict[str, str | int]
"""Path of a key, e.g. ``peer[0].host``, and the value that it gets."""


class RefusedToOverwrite(NodeError):
    """A file is there already, and the command was not told to replace it."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(check)
    app.command()(init)
    app.command()(schema)


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check a configuration: every wrong key with its line.

    The exit code is 2 when there is one.
    """
    path = configuration_path(config)
    try:
        sound = checked(path)
    except ConfigError as error:
        if not as_json:
            raise
        emit({"ok": False, "file": str(path), "faults": error.faults}, as_json=True)
        raise typer.Exit(2) from error
    answer = {"ok": True, "file": str(path), "faults": []}
    emit(answer, as_json, f"{path}: sound. {_summary(sound)}")


def init(
    directory: Annotated[Path, typer.Argument(help="Folder that gets node.toml.")],
    ae_title: Annotated[str, typer.Option(help="The AE title of this node.")] = "AINODE",
    port: Annotated[int, typer.Option(help="The port on which it listens.")] = 11112,
    pacs: Annotated[
        str,
        typer.Option(metavar="NAME,AE,HOST,PORT", help="The archive that gets the results."),
    ] = "",
    state: Annotated[
        str, typer.Option(help="Folder of what is received and made; relative to node.toml.")
    ] = "state",
    force: Annotated[bool, typer.Option("--force", help="Replace a node.toml.")] = False,
) -> None:
    """Write a commented configuration."""
    answers: Answers = {"node.ae_title": ae_title, "scp.port": port, "node.state": state}
    path = write_configuration(directory, answers | _pacs_answers(pacs), force)
    say(f"{path} is written. Next:")
    if not pacs:
        say("  edit its [[peer]] tables: who may send, and where results go")
    for command in ("check", "run"):
        say(f"  ai-node {command} --config {path}")


def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from node.cli.families import registries
    from node.cli.families import schema as whole

    emit(whole(registries()), as_json=True)


def write_configuration(directory: Path, answers: Answers, force: bool = False) -> Path:
    """Write ``node.toml`` into a folder from the shipped one, with some values replaced.

    Raises RefusedToOverwrite, and ConfigError when an answer is not legal; then nothing is
    written.
    """
    from node.config import frame, parse
    from node.shipped import folder

    path = directory / "node.toml"
    if path.exists() and not force:
        raise RefusedToOverwrite(f"{path} is there already; --force replaces it")
    text = (folder("config") / "node.toml").read_text(encoding="utf-8")
    filled = _filled(text, answers)
    frame(parse(filled, str(path)))
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(filled, encoding="utf-8")
    return path


def checked(path: Path) -> Config:
    """A configuration of which every part has been built once. Raises ConfigError."""
    """The configuration, once its members and its engine packages were found sound too."""
    from node.config import read

    return _checked(read(path))


def checked_text(text: str, path: Path) -> Config:
    """The same for the text that a file is going to have. Raises ConfigError."""
    from node.config import parse

    return _checked(parse(text, str(path)))


def _checked(document: Document) -> Config:
    from node.cli.families import registries
    from node.config import check as check_document
    from node.config import frame, gather
    from node.rules import rows

    attempts: list[Callable[[], object]] = [
        partial(_check_package, table, where, _shelf(document))
        for table, where in rows(document, "engine")
    ]
    attempts.append(partial(check_document, document, registries()))
    gather(attempts)
    return frame(document)


def _shelf(document: Document) -> list[Path]:
    """Where engines lie that the hospital added; nowhere while the state folder is a wrong key."""
    from node.config import NodeSection
    from node.roster import SHELF

    section = document.table.get("node", {})
    state = section.get("state", str(NodeSection().state)) if isinstance(section, dict) else None
    folder = Path(document.where.file).absolute().parent
    return [folder / state / SHELF] if isinstance(state, str) else []


def _check_package(engine: Table, where: Where, shelf: list[Path]) -> None:
    from node import bundle
    from node.config import located_package
    from node.roster import refuse_unready

    package = engine.get("package")
    if not isinstance(package, str) or not package:
        return
    try:
        folder = bundle.find(located_package(package, where), shelf)
    except ConfigError as error:
        faults = (where.at("package").fault(fault.message) for fault in error.faults)
        raise ConfigError(tuple(faults)) from error
    found = bundle.read(folder)
    if engine.get("enabled", True) is True and engine.get("mode", "live") == "live":
        try:
            refuse_unready(found)
        except ConfigError as error:
            faults = (where.at("mode").fault(fault.message) for fault in error.faults)
            raise ConfigError(tuple(faults)) from error


def _summary(config: Config) -> str:
    engines = [engine.package for engine in config.engines if engine.enabled]
    return (
        f"{config.node.ae_title} on port {config.scp.port}, peers: {len(config.peers)}, "
        f"engines: {', '.join(engines) or 'none'}, destinations: {len(config.destinations)}, "
        f"state in {config.node.state}"
    )


def _pacs_answers(pacs: str) -> Answers:
    """The answers in ``NAME,AE,HOST,PORT``. Raises ConfigError when it is not that."""
    if not pacs:
        return {}
    name, ae_title, host, port, *rest = [*(part.strip() for part in pacs.split(",")), *[""] * 4]
    if any(rest[:-4]) or not (name and ae_title and host and port.isdecimal()):
        message = f"expected NAME,AE,HOST,PORT such as pacs,ORTHANC,192.0.2.7,4242, got {pacs!r}"
        raise ConfigError((Fault("--pacs", message),))
    return {
        "peer[0].name": name,
        "peer[0].ae_title": ae_title,
        "peer[0].host": host,
        "peer[0].port": int(port),
        "destination[0].peer": name,
    }


def _filled(text: str, answers: Answers) -> str:
    """The same text with other values at some keys; the comments above them stay."""
    from node.config import parse

    lines = text.splitlines(keepends=True)
    places = parse(text).where.lines
    for path, value in answers.items():
        number = places[path] - 1
        key = lines[number].partition("=")[0]
        # A JSON string is a TOML string too.
        lines[number] = f"{key}= {json.dumps(value, ensure_ascii=False)}\n"
    return "".join(lines)
