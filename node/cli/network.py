"""``echo``, ``send`` and ``pull``: the network by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import ConfigOption, JsonOption, configuration
from node.cli.printing import complaints, emit
from node.domain.errors import ConfigError, Fault, NodeError

if TYPE_CHECKING:
    from node.config import Config
    from node.domain.peer import Peer

PeerArgument = Annotated[str, typer.Argument(help="Name of a [[peer]] in the configuration.")]


class NothingToSend(NodeError):
    """A folder holds no DICOM file."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(echo)
    app.command()(send)
    app.command()(pull)


def echo(peer: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Ask a peer for a C-ECHO and which results it would take."""
    from rich.table import Table

    from node.dicom.scu import echo as ask

    settings = configuration(config)
    answer = ask(settings.known_network, known_peer(settings, peer))
    table = Table("SOP class", "answer", title=f"{peer} answers in {answer.latency_ms:.0f} ms")
    for offer in answer.offers:
        table.add_row(offer.name, offer.answer)
    emit(answer, as_json, table)


def send(
    directory: Annotated[Path, typer.Argument(help="Folder of DICOM files.")],
    to: Annotated[str, typer.Option("--to", help="Name of a [[peer]]; default: this node.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a folder by C-STORE, to this node or to a peer."""
    from rich.progress import track

    from node.dicom.scu import store
    from node.domain.peer import Peer

    settings = configuration(config)
    own = Peer("this node", settings.node.ae_title, "127.0.0.1", settings.scp.port)
    peer = known_peer(settings, to) if to else own
    files = dicom_files(directory)
    receipts = list(
        track(
            store(settings.known_network, peer, files),
            description=f"sending to {peer.name}",
            total=len(files),
            console=complaints(),
            disable=not complaints().is_terminal,
        )
    )
    refused = [receipt for receipt in receipts if not receipt.accepted]
    words = [f"{receipt.sop_instance_uid}: {receipt.reason}" for receipt in refused]
    summary = f"{len(receipts) - len(refused)} of {len(files)} taken by {peer.name}"
    emit(receipts, as_json, "\n".join([*words, summary]))
    if refused:
        raise typer.Exit(1)


def pull(
    accession: Annotated[str, typer.Argument(help="Accession number of the study.")],
    peer: Annotated[
        str,
        typer.Option("--from", help="Name of a [[peer]]; default: the one that queries go to."),
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a PACS send a study to this node (C-FIND, C-MOVE)."""
    from node.triggers.query import pull as fetch

    settings = configuration(config)
    source = known_peer(settings, peer or _queried(settings))
    studies = fetch(settings.known_network, source, accession)
    lines = [
        f"{match.study_uid}: {moved.completed} instances sent to us" for match, moved in studies
    ]
    emit([{"study": match, "moved": moved} for match, moved in studies], as_json, "\n".join(lines))


def known_peer(settings: Config, name: str) -> Peer:
    """A peer by name. Raises ConfigError with the names that there are."""
    found = settings.known_network.peers.get(name)
    if found is None:
        names = ", ".join(peer.name for peer in settings.peers) or "none"
        raise ConfigError((Fault("peer", f"there is no peer {name!r}; configured: {names}"),))
    return found


def _queried(settings: Config) -> str:
    """The peer of the first query trigger, else the only peer that can be called."""
    for entry in settings.triggers:
        if entry.kind == "query":
            return str(entry.table.get("peer", ""))
    callable_peers = [peer.name for peer in settings.peers if peer.port]
    if len(callable_peers) == 1:
        return callable_peers[0]
    names = ", ".join(callable_peers) or "none has a port"
    raise ConfigError((Fault("--from", f"say which peer has the study: {names}"),))


def dicom_files(directory: Path) -> list[Path]:
    """Every Part 10 file below a folder, in order. Raises NothingToSend."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and _is_dicom(path)]
    if not files:
        raise NothingToSend(f"{directory} holds no DICOM file (Part 10, with its DICM prefix)")
    return files


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
