"""``engine add``: a trained network becomes an engine package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.engine.places import (
    EngineInPlace,
    checked_name,
    configured,
    name_from,
    own_folder,
    section_of,
    shelf,
)
from node.cli.options import ConfigOption, JsonOption
from node.cli.printing import emit, say
from node.domain.errors import ConfigError, Fault, ImportRefused

if TYPE_CHECKING:
    from node.bundle import Bundle
    from node.config import Config
    from node.imports import Import
    from node.proposal import Proposal

TEMPLATE = "CARD.template.md"
"""What a model card has to say; it is no card."""

_WRONG = {
    ".pt": "a file of torch", ".pth": "a file of torch", ".ckpt": "a checkpoint of Lightning",
    ".pt2": "a program of torch.export", ".safetensors": "weights without their network",
    ".h5": "a file of Keras", ".keras": "a file of Keras", ".pb": "a file of TensorFlow",
    ".tflite": "a file of TensorFlow Lite", ".plan": "a plan of TensorRT",
    ".engine": "a plan of TensorRT", ".trt": "a plan of TensorRT", ".xml": "a file of OpenVINO",
}  # fmt: skip
_SHOWN = 40
"""Guesses that are printed; all of them are in the manifest."""
_BOUND = "it is bound to one GPU and one version: add the ONNX file, and `ai-node engine compile`"
_EXPORT = (
    "export it to ONNX: torch.onnx.export(network.eval(), (example,), 'model.onnx', dynamo=True, "
    "opset_version=18)"
)


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="add")(add)


def add(  # noqa: PLR0913 - the options of a command are its arguments
    source: Annotated[
        Path, typer.Argument(help="An .onnx file, a MONAI bundle, or a folder of nnU-Net.")
    ],
    name: Annotated[str, typer.Option(help="What it is to be called. Default: as its file.")] = "",
    to: Annotated[
        Path | None, typer.Option(help="Folder that gets NAME/. Default: that of the state folder.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What it is, where that is not recognised.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace one of this name.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an engine package of a trained network; what has to be guessed is marked."""
    member = _recognised(source, kind)
    chosen = checked_name(name or name_from(source.stem if source.is_file() else source.name))
    settings = configured(config) if to is None else None
    place = to or _shelf(settings)
    _refuse_taken(chosen, place, replace, settings)
    proposal = member.propose(source, chosen)
    made = write(proposal, place)
    if as_json:
        emit(_document(made, proposal), as_json)
    else:
        _tell(made, proposal, str(made.folder) if to else chosen)


def write(proposal: Proposal, place: Path) -> Bundle:
    """Write a package as ``place/NAME``, at once or not at all; one of that name is replaced.

    Raises ConfigError and InferenceError when what was proposed does not hold, EngineInPlace when
    the disk refuses.
    """
    from node import bundle
    from node.engine import Engine
    from node.runtimes.onnx import Onnx

    with _beside(place) as workshop:
        folder = workshop / proposal.name
        _fill(folder, proposal)
        made = bundle.read(folder)
        # Whether the network loads from its new place, and takes what the manifest feeds it.
        Engine.load(made, Onnx()).close()
        _publish(folder, place / proposal.name, workshop)
    return bundle.read(place / proposal.name)


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A folder on the same disk, gone afterwards. What is in it is no engine of ``place``."""
    try:
        workshop = Path(mkdtemp(prefix=".adding-", dir=own_folder(place)))
    except OSError as error:
        raise EngineInPlace(f"{place} cannot be written: {error.strerror}") from error
    try:
        yield workshop
    except OSError as error:
        raise EngineInPlace(
            f"the package cannot be written into {place}: {error.strerror or error}. "
            f"Nothing was changed"
        ) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _fill(folder: Path, proposal: Proposal) -> None:
    from node.bundle import CARD, MANIFEST

    folder.mkdir()
    texts = {**proposal.texts, MANIFEST: proposal.manifest()}
    if CARD not in (*texts, *proposal.files):
        texts[TEMPLATE] = _CARD.format(name=proposal.name)
    for name, source in proposal.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*"):
        _settle(path, 0o755 if path.is_dir() else 0o644)
    _settle(folder, 0o755)


def _settle(path: Path, mode: int) -> None:
    """Make a file or folder durable, and readable for the worker that runs it."""
    path.chmod(mode)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(folder: Path, path: Path, workshop: Path) -> None:
    from node.draft import sync_directory

    _give(folder, path.parent)
    if path.exists():
        path.rename(workshop / "replaced")
    folder.rename(path)
    sync_directory(path.parent)


def _give(folder: Path, place: Path) -> None:
    """What root writes belongs to the owner of the place, whose service reads it."""
    if os.geteuid() == 0:
        owner = place.stat()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)


def _recognised(source: Path, kind: str) -> Import:
    """What understands a source. Raises ImportRefused and ConfigError."""
    from node.imports import IMPORTS
    from node.tables import meant

    if kind and kind not in IMPORTS:
        message = f"unknown kind {kind!r}{meant(kind, IMPORTS)} (known: {', '.join(IMPORTS)})"
        raise ConfigError((Fault("--kind", message),))
    if not os.access(source, os.R_OK):
        raise ImportRefused(f"there is no file or folder {source}, or you may not read it")
    if kind:
        return IMPORTS[kind]()
    for member in IMPORTS.values():
        if member().recognises(source):
            return member()
    raise ImportRefused(_unknown(source, tuple(IMPORTS)))


def _unknown(source: Path, kinds: tuple[str, ...]) -> str:
    known = f"known are: {', '.join(kinds)}; --kind says which it is"
    if source.is_dir():
        return f"{source} is a folder that no import recognises ({known})"
    what = _WRONG.get(source.suffix.lower())
    if what is None:
        return f"{source.name} is nothing that an import recognises ({known})"
    remedy = _BOUND if "plan" in what else _EXPORT
    return f"{source.name} is {what}, and the node runs ONNX: {remedy}"


def _shelf(config: Config | None) -> Path:
    place = shelf(config)
    if place is None:
        raise EngineInPlace(
            "there is no configuration whose state folder could keep the engine: name one with "
            "--config, or a folder with --to"
        )
    return place


def _refuse_taken(name: str, place: Path, replace: bool, config: Config | None) -> None:
    from node.bundle import list_shipped

    if config is not None and name in {path.name for path in list_shipped()}:
        raise EngineInPlace(f"an engine {name} is shipped with the node; choose another --name")
    if (place / name).exists() and not replace:
        raise EngineInPlace(f"{place / name} is there already; --replace replaces it")
    section = section_of(place / name, config)
    if section is not None and section.enabled and section.mode == "live":
        raise EngineInPlace(
            f"{name} is live, and what replaces it has neither card nor verification: "
            f"`ai-node engine enable {name} --shadow` first, or choose another --name"
        )


def _document(made: Bundle, proposal: Proposal) -> dict[str, object]:
    return {
        "name": made.manifest.engine.name,
        "folder": made.folder,
        "digest": made.digest,
        "guesses": proposal.guesses(),
        "notes": proposal.notes,
    }


def _tell(made: Bundle, proposal: Proposal, name: str) -> None:
    from node.bundle import MANIFEST

    say(f"{made.folder} is written, package {made.digest}")
    guesses = list(dict.fromkeys(_guesses(proposal)))
    if guesses:
        say(f"guessed, and marked so in {made.folder / MANIFEST}:")
    for guess in guesses[:_SHOWN]:
        say(f"  {guess}")
    if len(guesses) > _SHOWN:
        say(f"  and {len(guesses) - _SHOWN} more")
    for note in proposal.notes:
        say(f"note: {note}")
    if made.card is None:
        say(f"no CARD.md yet: {made.folder / TEMPLATE} shows what it has to say")
    say("Next:")
    say(f"  ai-node engine show {name}")
    say(f"  ai-node engine try {name} STUDY_DIR")
    say(f"  ai-node engine verify {name}")


def _guesses(proposal: Proposal) -> Iterator[str]:
    """Every guess with its value and its reason."""
    from node.proposal import Guess, toml

    for block in proposal.blocks:
        for key, value in block.rows.items():
            if isinstance(value, Guess):
                why = f"  ({value.why})" if value.why else ""
                yield f"{block.name}.{key} = {toml(value.value)}{why}"


_CARD = """\
# Model card: {name}

This is no card yet. Write what is known below each heading, then call the file CARD.md: without
one the engine runs in shadow mode only.

## Intended use
What it finds, in which images, for whom; and what it must not be used for. Not a medical device?

## Input contract
Modality, body part, orientation, spacing, contrast; how the images were prepared, exactly.

## Training data and licence
Which images, how many patients, from where, under which licence; who drew the truth.

## Results
On patients that training never saw: the measure with its 95 % interval, and how they were chosen.

## Operating point
The threshold, and why there.

## Limits and known failures
Where it fails, with examples; what was never tested.
"""
