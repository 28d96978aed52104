"""Where the tests find what the repository does not carry."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared(name: str) -> Path:
    """A file or folder of the real data beside the checkout; skips the test when absent.

    ``NODE_TEST_DATA`` overrules the place ``../shared/data``.
    """
    base = Path(os.environ.get("NODE_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = base / name
    if not path.exists():
        pytest.skip(f"real data {name} is absent: put it under {base} or set NODE_TEST_DATA")
    return path


def unpacked(name: str, directory: Path) -> Path:
    """The real series archive ``dicom/<name>.tar.xz`` unpacked into a directory."""
    archive = shared(f"dicom/{name}.tar.xz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory


def tool(name: str) -> str:
    """The path of a real peer's program; skips the test when it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(
            f"{name} is not installed (Debian: dcmtk, orthanc, dicom3tools, systemd, strace)"
        )
    return found
