"""What the tests of ``engine`` work on: a configuration, a network as a file, and a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from pydicom.dataset import Dataset

from node.cli.configuration import write_configuration
from node.config import Config, load
from node.testing.series import save
from tests.acceptance.hospital import small_study
from tests.engines.package import brighter_than


@dataclass(frozen=True)
class Shop:
    """Everything lies in one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration file, as ``ai-node init`` writes it."""
        return self.folder / "node.toml"

    @property
    def settings(self) -> Config:
        """The configuration as it is now."""
        return load(self.config)

    @property
    def network(self) -> Path:
        """A network that finds what is brighter than 2 standard deviations."""
        path = self.folder / "bright.onnx"
        return path if path.exists() else brighter_than(path, 2.0, steepness=20.0)

    @property
    def added(self) -> Path:
        """Where an engine called ``bright`` lies once it is added."""
        return self.folder / "state" / "engines" / "bright"

    def study(self, datasets: Sequence[Dataset] | None = None, name: str = "study") -> Path:
        """A folder with a study: axial MR slices with a bright box."""
        folder = self.folder / name
        save(small_study() if datasets is None else datasets, folder)
        return folder

    def correct(self, **values: object) -> None:
        """Put right what was guessed: other values in the manifest's tables, and no mark left."""
        manifest = self.added / "engine.toml"
        document = tomlkit.parse(manifest.read_text())
        for key, value in values.items():
            table, _, name = key.partition("__")
            place = document[table]
            (place[0] if isinstance(place, list) else place)[name] = value
        lines = tomlkit.dumps(document).splitlines()
        manifest.write_text("\n".join(line.partition("  # guessed")[0] for line in lines) + "\n")

    def write_card(self) -> None:
        """A model card."""
        (self.added / "CARD.md").write_text("# Model card: bright\n\nA test.\n")


def opened(folder: Path) -> Shop:
    """A shop in a folder."""
    write_configuration(folder, {"node.state": "state"})
    return Shop(folder)
