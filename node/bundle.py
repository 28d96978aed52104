"""An engine package: a folder with a manifest, a model and a card, read and verified.

What is verified here is what can be known without computing anything: that the manifest has no
fault, that the models are those that the manifest means, and which digest stands for the whole
package in results, in job ids and as the IHE AIR Device UID. A cascade's package has that of the
engine before it in it: another first engine makes another engine of the second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from node import shipped
from node.config import Document, Where
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
DEEPEST = 3
"""Engines in a cascade, the last included."""
UNREGISTERED = "not registered: movement between the series is not corrected"
"""What is said wherever several series become one input."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine wants of a study for one role: conditions, and how regular it must be."""

    role: str
    accepts: tuple[Condition, ...] = ()
    tolerance: Tolerance = ORDINARY


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified engine package. ``card`` is None where the package has no model card; ``first``
    is the engine that looks before this one, in a cascade.
    """

    folder: Path
    manifest: Manifest
    digest: str
    """sha256 over the sorted (name, sha256) of the manifest, the models' files and the package
    that looks first, hexadecimal."""
    card: Path | None
    first: Bundle | None = None

    @property
    def model(self) -> Path:
        """The network's file; of an ensemble, the first member's."""
        return self.models[0]

    @property
    def models(self) -> tuple[Path, ...]:
        """The files of all networks of an ensemble, or the only one."""
        return tuple(self.folder / one.model for one in self.manifest.networks)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What the engine wants of a study, the reference role first.

        What an engine that looks first must have of a series holds for it here, too.
        """
        before = {} if self.first is None else {one.role: one for one in self.first.wanted}
        return tuple(
            Wanted(
                one.role,
                (*one.accepts, *_musts(before.get(one.role))),
                self.manifest.tolerance,
            )
            for one in self.manifest.series
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not wrong but wants to be known, in words."""
        return tuple(self._noted())

    def _noted(self) -> Iterator[str]:
        if self.card is None:
            yield f"{CARD} is missing: nobody can see what the engine was trained on"
        if self.together:
            yield self.together
        if self.first is not None:
            name = self.first.manifest.engine.name
            yield from (f"{name}, which looks first: {note}" for note in self.first.notes)

    @property
    def together(self) -> str:
        """How several series become one input; empty where there is one."""
        reference, *others = self.manifest.roles
        return f"{', '.join(others)} on the grid of {reference}, {UNREGISTERED}" if others else ""

    def algorithm(self) -> Algorithm:
        """How results name the engine (IHE AIR). Another package has another Device UID."""
        engine = self.manifest.engine
        return Algorithm(
            name=engine.name,
            version=engine.version,
            manufacturer=engine.manufacturer,
            digest=self.digest,
            device_uid=derived_uid("engine", self.digest),
            parameters="; ".join(part for part in self._parameters() if part),
        )

    def _parameters(self) -> Iterator[str]:
        """What a reader of a result wants to know of how it came about."""
        manifest = self.manifest
        yield str(manifest.operating_point)
        if manifest.members:
            count = len(manifest.networks)
            yield f"{manifest.ensemble.combine} of {count} networks"
        if manifest.window.mirror:
            yield f"mean of {len(manifest.window.flips)} mirror images"
        if self.first is not None:
            engine = self.first.manifest.engine
            yield f"looked around the findings of {engine.name} {engine.version}"
        yield self.together


def _musts(wanted: Wanted | None) -> Iterator[Condition]:
    """The conditions that exclude; those with a score only choose."""
    yield from (one for one in (wanted.accepts if wanted else ()) if not one.score)


def read(folder: Path) -> Bundle:
    """Read and verify an engine folder, and those before it in a cascade.

    Raises ConfigError with every fault of the folder; of a cascade, those of the nearest one.
    """
    return _read(folder, ())


def _read(folder: Path, later: tuple[Path, ...]) -> Bundle:
    """A package; ``later`` are the folders of those that it looks first for, nearest last."""
    document = read_document(folder / MANIFEST, f"an engine folder has an {MANIFEST}")
    manifest = understand(document)
    names = [MANIFEST, *_model_files(folder, manifest)]
    digests = {name: file_digest(folder / name) for name in names}
    _refuse_other_models(document, manifest, digests)
    first = _first(document, manifest, (*later, folder.resolve()))
    if first is not None:
        # No file's name has a slash: this stands for the package and nothing else.
        digests[f"cascade/{first.manifest.engine.name}"] = first.digest
    card = folder / CARD
    digest = package_digest(digests.items())
    return Bundle(folder, manifest, digest, card if card.is_file() else None, first)


def _model_files(folder: Path, manifest: Manifest) -> list[str]:
    """The models and the external weights that lie beside each under its name."""
    found = {
        path.name
        for network in manifest.networks
        for path in folder.iterdir()
        if path.name.startswith(network.model) and path.is_file()
    }
    return sorted(found)


def _refuse_other_models(document: Document, manifest: Manifest, digests: dict[str, str]) -> None:
    faults = []
    for number, network in enumerate(manifest.networks):
        where = document.where.at("member").item(number - 1)
        where = where if number else document.where.at("engine")
        if network.model not in digests:
            message = f"there is no file {network.model!r} beside {MANIFEST}; copy it there"
            faults.append(where.at("model").fault(message))
        elif digests[network.model] != network.sha256:
            message = (
                f"{network.model} is another file than this manifest means: its digest is "
                f"{digests[network.model]}. If the model was replaced on purpose, write that here "
                f"and raise the version; otherwise fetch the package again"
            )
            faults.append(where.at("sha256").fault(message))
    if faults:
        raise ConfigError(tuple(faults))


def _first(document: Document, manifest: Manifest, chain: tuple[Path, ...]) -> Bundle | None:
    """The package that looks first; ``chain`` are the folders of all later ones, nearest last."""
    cascade = manifest.cascade
    if cascade is None:
        return None
    where = document.where.at("cascade")
    folder = _first_folder(cascade.package, chain[-1], where)
    if folder.resolve() in chain:
        names = " > ".join(path.name for path in (*chain, folder))
        raise ConfigError((where.at("package").fault(f"each waits for the other: {names}"),))
    if len(chain) >= DEEPEST:
        message = f"{DEEPEST} engines at most look one after the other"
        raise ConfigError((where.at("package").fault(message),))
    first = _read(folder, chain)
    _refuse_stranger(first.manifest, manifest, where)
    return first


def _first_folder(package: str, folder: Path, where: Where) -> Path:
    place = str(folder / package) if "/" in package else package
    try:
        return find(place, [folder.parent])
    except ConfigError as error:
        raise ConfigError(
            tuple(where.at("package").fault(fault.message) for fault in error.faults)
        ) from None


def _refuse_stranger(first: Manifest, manifest: Manifest, where: Where) -> None:
    """The first engine sees the volumes of the same roles, and gives labels that are asked for."""
    missing = [role for role in first.roles if role not in manifest.roles]
    if missing:
        message = (
            f"{first.engine.name} wants the roles {', '.join(missing)}, which this engine has not: "
            f"call the same series the same in both"
        )
        raise ConfigError((where.at("package").fault(message),))
    known = [label.label for label in first.findings]
    for index, label in enumerate(manifest.cascade.labels if manifest.cascade else ()):
        if label not in known:
            message = f"{first.engine.name} has no finding with the label {label} (its: {known})"
            raise ConfigError((where.at("labels").item(index).fault(message),))


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


def is_shipped(folder: Path) -> bool:
    """Whether a package came with the node: it is read there, and never written or removed."""
    return folder.resolve() in {path.resolve() for path in list_shipped()}


def _packages(places: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(
        manifest.parent for place in places for manifest in sorted(place.glob(f"*/{MANIFEST}"))
    )


def _unknown(message: str) -> ConfigError:
    return ConfigError((Fault("engine", message),))
