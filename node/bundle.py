"""An engine package: a folder with a manifest, a model and a card, read and verified.

What is verified here is what can be known without computing anything: that the manifest has no
fault, that the model is the one that the manifest means, and which digest stands for the whole
package in results, in job ids and as the IHE AIR Device UID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from node import shipped
from node.config import Document
from node.config import read as read_document
from node.dicom.geometry import ORDINARY, Tolerance
from node.domain.condition import Condition
from node.domain.errors import ConfigError, Fault
from node.domain.finding import Algorithm
from node.domain.job import derived_uid
from node.manifest import Manifest, understand
from node.tables import meant

MANIFEST = "engine.toml"
CARD = "CARD.md"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine wants of a study for one role: conditions, and how regular it must be."""

    role: str
    accepts: tuple[Condition, ...] = ()
    tolerance: Tolerance = ORDINARY


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified engine package. ``card`` is None where the package has no model card."""

    folder: Path
    manifest: Manifest
    digest: str
    """sha256 over the sorted (name, sha256) of the manifest and the model's files, hexadecimal."""
    card: Path | None

    @property
    def model(self) -> Path:
        """The network's file."""
        return self.folder / self.manifest.engine.model

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What the engine wants of a study, the reference role first."""
        tolerance = self.manifest.tolerance
        return tuple(Wanted(one.role, one.accepts, tolerance) for one in self.manifest.series)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not wrong but wants to be known, in words."""
        if self.card is None:
            return (f"{CARD} is missing: nobody can see what the engine was trained on",)
        return ()

    def algorithm(self) -> Algorithm:
        """How results name the engine (IHE AIR). Another package has another Device UID."""
        engine = self.manifest.engine
        return Algorithm(
            name=engine.name,
            version=engine.version,
            manufacturer=engine.manufacturer,
            digest=self.digest,
            device_uid=derived_uid("engine", self.digest),
            parameters=str(self.manifest.operating_point),
        )


def read(folder: Path) -> Bundle:
    """Read and verify an engine folder. Raises ConfigError with every fault."""
    document = read_document(folder / MANIFEST, f"an engine folder has an {MANIFEST}")
    manifest = understand(document)
    names = [MANIFEST, *_model_files(folder, manifest.engine.model)]
    digests = {name: file_digest(folder / name) for name in names}
    _refuse_other_model(document, manifest, digests)
    card = folder / CARD
    return Bundle(
        folder, manifest, package_digest(digests.items()), card if card.is_file() else None
    )


def _model_files(folder: Path, model: str) -> list[str]:
    """The model and the external weights that lie beside it under its name."""
    return sorted(path.name for path in folder.glob(f"{model}*") if path.is_file())


def _refuse_other_model(document: Document, manifest: Manifest, digests: dict[str, str]) -> None:
    engine, where = manifest.engine, document.where.at("engine")
    if engine.model not in digests:
        message = f"there is no file {engine.model!r} beside {MANIFEST}; copy it there"
        raise ConfigError((where.at("model").fault(message),))
    found = digests[engine.model]
    if found != engine.sha256:
        message = (
            f"{engine.model} is another file than this manifest means: its digest is {found}. "
            f"If the model was replaced on purpose, write that here and raise the version; "
            f"otherwise fetch the package again"
        )
        raise ConfigError((where.at("sha256").fault(message),))


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_digest(files: Iterable[tuple[str, str]]) -> str:
    """One digest for files given as (name, sha256), whatever their order."""
    lines = "".join(f"{name}\n{digest}\n" for name, digest in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def find(name_or_path: str, extra: Sequence[Path] = ()) -> Path:
    """The folder of an engine: a path (it has a slash), or a name in ``extra`` or shipped.

    Raises ConfigError that lists the names there are.
    """
    if "/" in name_or_path:
        folder = Path(name_or_path)
        if folder.is_dir():
            return folder
        raise _unknown(f"there is no engine folder {name_or_path}")
    known = {path.name: path for path in (*list_shipped(), *_packages(extra))}
    if name_or_path in known:
        return known[name_or_path]
    names = ", ".join(sorted(known)) or "none"
    raise _unknown(
        f"no engine is called {name_or_path!r}{meant(name_or_path, known)} (known: {names}); "
        f"for a folder of your own write its path, with a slash"
    )


def list_shipped() -> tuple[Path, ...]:
    """The folders of the engines that came with the node, by name."""
    return _packages([shipped.folder("engines")])


def _packages(places: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(
        manifest.parent for place in places for manifest in sorted(place.glob(f"*/{MANIFEST}"))
    )


def _unknown(message: str) -> ConfigError:
    return ConfigError((Fault("engine", message),))
