"""``engine export``: a network of torch becomes ONNX, in an environment that has torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import JsonOption
from node.cli.printing import emit, say
from node.domain.errors import ConfigError, Fault

if TYPE_CHECKING:
    from node.export import Traced


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command(name="export")(export_networks)


def export_networks(
    source: Annotated[
        Path, typer.Argument(help="Folder of a MONAI bundle, or a model folder of nnU-Net.")
    ],
    out: Annotated[
        Path, typer.Option(help="A bundle's model.onnx; for nnU-Net the folder that gets fold_*.")
    ],
    patch: Annotated[
        str, typer.Option(help="Lengths of a block, 96,96,96. Default: as the model states.")
    ] = "",
    channels: Annotated[
        int, typer.Option(min=0, help="Channels of the input. Default: as the model states.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Export a trained network of torch to ONNX, and compare its answers with torch's own.

    MONAI's or nnU-Net's code builds the network, and a bundle's own code runs then: export what
    you trust. It wants torch and either of the two, in any environment; the node needs none.
    """
    from node.export import Asked, export

    made = []
    for traced in export(source, out, Asked(_lengths(patch), channels)):
        made.append(traced)
        if not as_json:
            _tell(traced)
    if as_json:
        emit([asdict(one) for one in made], as_json)
    else:
        say(f"Next: ai-node engine add {source if out.suffix == '.onnx' else out}")


def _lengths(text: str) -> tuple[int, ...]:
    """Two or three lengths. Raises ConfigError."""
    parts = [part.strip() for part in text.replace("x", ",").split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) not in {0, 2, 3}:
        message = f"{text!r} is no list of two or three lengths, such as 96,96,96"
        raise ConfigError((Fault("--patch", message),))
    return tuple(int(part) for part in parts)


def _tell(traced: Traced) -> None:
    say(
        f"{traced.path}: answers {traced.shape}; at most {traced.difference:.3g} from torch, "
        f"where the greatest value is {traced.greatest:.3g}"
    )
    for note in traced.notes:
        say(f"note: {note}")
