"""Every folder in ``engines/`` is a package that holds what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node import bundle
from node.engine import Engine
from node.runtimes.onnx import Onnx
from tests.places import ROOT

LARGEST_MODEL = 6_000_000
"""Bytes: a clone of the repository carries every model."""

FOLDERS = sorted(path for path in (ROOT / "engines").iterdir() if path.is_dir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """One engine folder after the other."""
    return Path(request.param)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """The engine of the folder, loaded on the processor."""
    with Engine.load(bundle.read(folder), Onnx(threads=1)) as loaded:
        yield loaded


def test_manifest_reads_and_means_this_model(folder: Path) -> None:
    read = bundle.read(folder)
    assert read.manifest.engine.name == folder.name
    assert read.manifest.engine.sha256 == bundle.file_digest(read.model)


def test_model_is_small(folder: Path) -> None:
    assert bundle.read(folder).model.stat().st_size < LARGEST_MODEL


def test_card_is_there(folder: Path) -> None:
    assert bundle.read(folder).notes == ()


def test_network_fits_its_manifest(engine: Engine) -> None:
    assert engine.session.inputs


def test_golden_input_gives_golden_output(folder: Path, engine: Engine) -> None:
    golden = folder / "golden"
    if not (golden / "input.npy").is_file():
        pytest.skip(f"engines/{folder.name}/golden/input.npy is absent: make it with train.py")
    manifest = engine.bundle.manifest
    feeds = {manifest.inputs[0].tensor: np.load(golden / "input.npy").astype(np.float32)}
    given = engine.session.infer(feeds)[manifest.output.tensor]
    expected = np.load(golden / "expected.npy").astype(np.float32)
    # Stored in half precision: three digits of a probability.
    assert np.abs(given - expected).max() < 2e-3
    assert expected.max() > 0.5 > expected.min()
