"""Real series from the archives beside the checkout, as instances."""

from __future__ import annotations

from pathlib import Path

from pydicom.misc import is_dicom

from node.domain.study import Instance, Study
from node.testing.series import received
from tests.places import unpacked


def real_study(name: str, directory: Path) -> Study:
    """All instances of an archive as one study, whatever their headers say."""
    paths = [path for path in sorted(unpacked(name, directory).rglob("*")) if path.is_file()]
    return Study.of("1.2.3", received([path for path in paths if is_dicom(path)]))


def real_series(name: str, directory: Path) -> list[tuple[Instance, ...]]:
    """The instances of each series of an archive."""
    return [series.instances for series in real_study(name, directory).series]
