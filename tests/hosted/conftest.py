"""The kernels are compiled once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosted.device import compiled


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kernels.cu``, compiled by g++."""
    return compiled(tmp_path_factory.mktemp("kernels"))
