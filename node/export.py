"""A trained network of torch becomes ``model.onnx``: which kind it is, what is missing, and where.

The node itself never uses torch. So the command says in one sentence what a throw-away environment
has to have, and everything that it writes is there at once or not at all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from node.domain.errors import ImportRefused, RuntimeUnavailable
from node.draft import sync_directory
from node.nnunet import MODEL, is_model_folder
from node.tracing import Traced as Traced
from node.tracing import trace
from node.trained import Asked as Asked
from node.trained import Learned, bundled, folded, is_bundle, is_torchscript

_TRACING = ("torch", "onnxscript", "onnx")
_SHEETS = ("plans.json", "dataset.json")
_PYTHON = (
    "torch.onnx.export({}, (torch.zeros(2, channels, *patch),), 'model.onnx', dynamo=True, "
    "opset_version=18, dynamic_shapes=({{0: torch.export.Dim('batch')}},), external_data=False)"
)


def export(source: Path, out: Path, asked: Asked | None = None) -> Iterator[Traced]:
    """Export the networks of a MONAI bundle or of an nnU-Net model folder, one by one.

    ``out`` is the file of a bundle's network (or the folder that gets ``model.onnx``), and the
    folder that gets the folds of nnU-Net. Raises RuntimeUnavailable, which says what to install and
    how to run it; ImportRefused when this is no such model, or it cannot be exported.
    """
    stated = asked or Asked()
    if source.is_dir() and is_model_folder(source):
        yield from _folds(source, out, stated)
    elif source.is_dir() and is_bundle(source):
        _need(source, out, "monai")
        learned = bundled(source, stated)
        path = out if out.suffix == ".onnx" else out / MODEL
        yield _made(learned, path.parent, path.name)
    else:
        raise ImportRefused(_unsuitable(source))


def _folds(source: Path, out: Path, asked: Asked) -> Iterator[Traced]:
    missing = [name for name in _SHEETS if not (source / name).is_file()]
    if missing:
        inner = ", ".join(str(path.parent) for path in sorted(source.glob("*/plans.json")))
        raise ImportRefused(f"{source.name} holds several trained models: export one of {inner}")
    if out.suffix == ".onnx":
        raise ImportRefused(f"nnU-Net has a network for each fold: --out is a folder, not {out}")
    _need(source, out, "nnunetv2")
    for learned in folded(source, asked):
        yield _made(learned, out / learned.folder, MODEL)
    if out.resolve() != source.resolve():
        with _workshop(out) as place:
            for name in _SHEETS:
                shutil.copyfile(source / name, place / name)
                _publish(place / name, out)


def _need(source: Path, out: Path, *more: str) -> None:
    """Raise RuntimeUnavailable where a library is not installed."""
    missing = [name for name in (*_TRACING, *more) if importlib.util.find_spec(name) is None]
    if missing:
        extra = " ".join(f"--with {name}" for name in more)
        words = f"ai-node engine export {source} --out {out}"
        raise RuntimeUnavailable(
            f"exporting needs {', '.join(missing)}, which the node itself never uses: in a "
            f"throw-away environment, where this was trained, run: uvx --from "
            f"'dicom-ai-node[train]' {extra} {words}  (or: pip install 'dicom-ai-node[train]' "
            f"{' '.join(more)}, and then: {words})"
        )


def _made(learned: Learned, folder: Path, name: str) -> Traced:
    """Trace into a folder of its own; only what has been checked comes to its place."""
    with _workshop(folder) as place:
        traced = trace(learned.network, learned.block, place / name)
        for other, text in learned.beside.items():
            (place / other).write_text(text, encoding="utf-8")
        # The network last: whoever sees it finds what belongs to it.
        for path in sorted(place.iterdir(), key=lambda path: path.name == name):
            _publish(path, folder)
    return replace(traced, path=folder / name, notes=(*learned.notes, *traced.notes))


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(prefix=".exporting-", dir=folder)
    except OSError as error:
        raise ImportRefused(f"{folder} cannot be written: {error.strerror}") from error
    with place as name:
        yield Path(name)


def _publish(made: Path, folder: Path) -> None:
    try:
        made.chmod(0o644)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(folder / made.name)
        sync_directory(folder)
    except OSError as error:
        raise ImportRefused(f"{folder / made.name} cannot be written: {error.strerror}") from error


def _unsuitable(source: Path) -> str:
    """Why this is not exported, and what to do instead."""
    if source.is_dir():
        return (
            f"{source} is neither a MONAI bundle (configs/inference.json) nor a model folder of "
            f"nnU-Net (plans.json and dataset.json)"
        )
    if not source.exists():
        return f"there is no {source}"
    if source.suffix == ".onnx":
        return f"{source.name} is ONNX already: ai-node engine add {source}"
    if source.suffix == ".pt2":
        program = f"torch.export.load({source.name!r})"
        return f"{source.name} is a program of torch.export: {_PYTHON.format(program)}"
    if is_torchscript(source):
        return (
            f"{source.name} is TorchScript, a program whose source is lost to the exporter: export "
            f"the Python network that it was made of: {_PYTHON.format('network.eval()')}"
        )
    if source.suffix == ".zip":
        return f"unpack {source.name} first, and name the folder"
    return (
        f"{source.name} has weights, or a pickled module whose reading would execute it, and says "
        f"not what the network is: name the MONAI bundle or the nnU-Net folder that it belongs to, "
        f"or in Python: {_PYTHON.format('network.eval()')}"
    )
