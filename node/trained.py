"""Networks of torch as people keep them: a MONAI bundle, and a model folder of nnU-Net.

Whoever built a network builds it here, too: MONAI's own parser, and nnU-Net's own trainer class.
That executes what a bundle's configuration says, so it happens only when a person asks for it by
``ai-node engine export``. Weights are read without executing anything.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.domain.errors import ImportRefused

NETWORKS = ("network_def", "network", "net", "model")
"""Where a bundle's configuration has its network."""
_INFERERS = ("inferer::roi_size", "evaluator::inferer::roi_size")
_CONFIGURATIONS = ("inference.json", "inference.yaml", "inference.yml")
_WRAPPED = ("network_weights", "model", "state_dict", "model_state_dict", "network", "net")
"""Where training scripts put the weights among other things."""
_PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+")
_CORES = ("_core", "core")
_FOREIGN = re.compile(r"GLOBAL (\S+)")
"""How torch names what it would have to execute."""
_FINAL, _BEST = "checkpoint_final.pth", "checkpoint_best.pth"


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A network with its weights. ``block`` is (channels, *patch) of its input; ``folder`` is
    where it belongs below the place of the export, and ``beside`` the texts that go with it.
    """

    network: Any
    block: tuple[int, ...]
    folder: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person stated; empty and 0: what the model's own files state."""

    patch: tuple[int, ...] = ()
    channels: int = 0


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a MONAI bundle."""
    return any((folder / "configs" / name).is_file() for name in _CONFIGURATIONS)


def bundled(folder: Path, asked: Asked) -> Learned:
    """The network of a MONAI bundle. Raises ImportRefused."""
    from monai.bundle import ConfigParser

    configs = folder / "configs"
    parser = ConfigParser()
    parser.read_config([configs / name for name in _CONFIGURATIONS if (configs / name).is_file()])
    metadata = configs / "metadata.json"
    if metadata.is_file():
        parser.read_meta(metadata)
    parser["bundle_root"] = str(folder)
    weights = _bundle_weights(folder)
    place = next((name for name in NETWORKS if name in parser), "")
    if not place:
        raise ImportRefused(f"{folder.name}: its configuration has none of {', '.join(NETWORKS)}")
    with _importable(folder), _explained(f"MONAI cannot build {place} of {folder.name}"):
        network = parser.get_parsed_content(place)
        block = (_bundle_channels(parser, asked), *_bundle_patch(parser, asked))
    _fill(network, _loaded(weights), weights)
    return Learned(network, block, notes=(f"weights of {weights.relative_to(folder)}",))


def _bundle_weights(folder: Path) -> Path:
    found = [
        path
        for path in sorted((folder / "models").glob("*"))
        if path.suffix in {".pt", ".pth", ".ckpt"} and not is_torchscript(path)
    ]
    named = [path for path in found if path.stem == "model"] or found
    if not found:
        raise ImportRefused(
            f"{folder.name}/models has no checkpoint (model.pt). Where large_files.yml says where "
            f"it is: python -m monai.bundle download_large_files --bundle_path {folder}"
        )
    if len(named) > 1:
        names = ", ".join(path.name for path in found)
        raise ImportRefused(
            f"{folder.name}/models has several checkpoints ({names}): call the one model.pt"
        )
    return named[0]


def _bundle_channels(parser: Any, asked: Asked) -> int:
    stated = asked.channels or _format(parser).get("num_channels")
    if not isinstance(stated, int) or stated < 1:
        raise ImportRefused("metadata.json states no num_channels of the input: say --channels N")
    return stated


def _bundle_patch(parser: Any, asked: Asked) -> tuple[int, ...]:
    if asked.patch:
        return asked.patch
    for place in _INFERERS:
        if place in parser:
            patch = parser.get_parsed_content(place)
            if isinstance(patch, Sequence) and all(int(n) > 0 for n in patch):
                return tuple(int(n) for n in patch)
    shape = _format(parser).get("spatial_shape") or ()
    if shape and all(isinstance(n, int) and n > 0 for n in shape):
        return tuple(shape)
    raise ImportRefused(
        "the bundle states no roi_size and no fixed spatial_shape: say the lengths of a block, "
        "in MONAI's order, as --patch 96,96,96"
    )


def _format(parser: Any) -> Mapping[str, Any]:
    """What metadata.json says of the network's first input."""
    place = "_meta_::network_data_format::inputs"
    inputs = parser.get(place, {})
    return next((one for one in inputs.values() if isinstance(one, Mapping)), {})


def folded(folder: Path, asked: Asked) -> Iterator[Learned]:
    """The networks of an nnU-Net model folder, fold by fold, as nnU-Net itself builds them.

    Raises ImportRefused.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads((folder / "plans.json").read_text(encoding="utf-8")))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    folds = [place for place in sorted(folder.glob("fold_*")) if _checkpoint(place) is not None]
    if not folds:
        raise ImportRefused(f"{folder.name} has no fold_* folder with a {_FINAL}")
    for place in folds:
        path = _checkpoint(place)
        if path is not None:
            yield _fold(plans, dataset, path, asked)


def _checkpoint(fold: Path) -> Path | None:
    return next((fold / name for name in (_FINAL, _BEST) if (fold / name).is_file()), None)


def _fold(plans: Any, dataset: Mapping[str, Any], path: Path, asked: Asked) -> Learned:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    checkpoint = _loaded(path)
    try:
        stated = {
            "configuration": checkpoint["init_args"]["configuration"],
            "trainer_name": checkpoint["trainer_name"],
            "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
        }
    except (KeyError, TypeError) as error:
        raise ImportRefused(f"{path.name} is no checkpoint of nnU-Net 2: {error}") from error
    with _explained(f"nnU-Net cannot build the network of {path.parent.name}"):
        settings = plans.get_configuration(stated["configuration"])
        channels = determine_num_input_channels(plans, settings, dataset)
        heads = plans.get_label_manager(dataset).num_segmentation_heads
        network = _architecture(stated["trainer_name"], (plans, settings), (channels, heads))
        patch = asked.patch or tuple(int(n) for n in settings.patch_size)
    _fill(network, checkpoint, path)
    beside = {"model.json": json.dumps(stated, indent=2) + "\n"}
    note = "" if path.name == _FINAL else f"there is no {_FINAL}; weights of {path.name}"
    return Learned(network, (channels, *patch), path.parent.name, beside, (note,) if note else ())


def _architecture(trainer: str, plans: tuple[Any, Any], channels: tuple[int, int]) -> Any:
    """The network of a trainer class, without the heads of deep supervision."""
    import inspect

    build = _trainer(trainer).build_network_architecture
    off = {"enable_deep_supervision": False}
    if "plans_manager" in inspect.signature(build).parameters:
        return build(*plans, *channels, **off)
    settings = plans[1]
    return build(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        *channels,
        **off,
    )


def _trainer(name: str) -> Any:
    """The class of a trainer, where nnU-Net keeps them. Raises ImportRefused."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    place = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    found = recursive_find_python_class(str(place), name, "nnunetv2.training.nnUNetTrainer")
    if found is None:
        raise ImportRefused(f"this nnU-Net has no trainer {name}: put its file where it was then")
    return found


def _loaded(path: Path) -> Any:
    """A checkpoint, of which nothing is executed. Raises ImportRefused."""
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals(_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _FOREIGN.search(str(error))
        raise ImportRefused(
            f"{path.name} holds more than weights, and reading it would execute that "
            f"({found[1] if found else _first_line(error)}). Where you trust it: load it in "
            f"Python, torch.save(network.state_dict(), {path.name!r}), and export that"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ImportRefused(f"{path.name} cannot be read: {_first_line(error)}") from error


def _numbers() -> list[Any]:
    """numpy's plain numbers and arrays, which nnU-Net's checkpoints have in their diary."""
    import numpy as np
    from numpy import dtypes

    inner = getattr(np, "_core").multiarray  # noqa: B009 - numpy gives them no public name
    types = [dtypes.Float32DType, dtypes.Float64DType, dtypes.Int64DType, dtypes.BoolDType]
    return [
        np.dtype,
        np.ndarray,
        *types,
        # By the names of numpy 2, and by those of numpy 1, under which older ones were written.
        *((inner.scalar, f"numpy.{core}.multiarray.scalar") for core in _CORES),
        *((inner._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
    ]


def _fill(network: Any, checkpoint: Any, path: Path) -> None:
    """Put a checkpoint's weights into a network. Raises ImportRefused unless all fit."""
    import torch

    if not isinstance(network, torch.nn.Module):
        raise ImportRefused(f"a {type(network).__name__} was built, and no network of torch")
    try:
        network.load_state_dict(_weights(checkpoint, path), strict=True)
    except RuntimeError as error:
        raise ImportRefused(
            f"the weights of {path.name} do not fit {type(network).__name__}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error


def _weights(checkpoint: Any, path: Path) -> dict[str, Any]:
    import torch

    table = checkpoint
    for _ in range(2):
        inner = [name for name in _WRAPPED if isinstance(_entry(table, name), Mapping)]
        table = table[inner[0]] if inner else table
    if not isinstance(table, Mapping) or not any(
        isinstance(one, torch.Tensor) for one in table.values()
    ):
        raise ImportRefused(f"{path.name} has no weights (a state_dict) in it")
    return {_PREFIXES.sub("", name): one for name, one in table.items()}


def _entry(table: Any, name: str) -> Any:
    return table.get(name) if isinstance(table, Mapping) else None


def is_torchscript(path: Path) -> bool:
    """Whether a file is a program of TorchScript."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A bundle's own modules can be imported, as MONAI does it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What other people's code raises, in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
            TypeError, ValueError) as error:  # fmt: skip
        raise ImportRefused(f"{what}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
