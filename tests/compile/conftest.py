"""The real parser and compiler of TensorRT-RTX, which need neither GPU nor driver."""

from __future__ import annotations

import pytest

from node.domain.errors import RuntimeUnavailable
from node.gpu.libraries import Library, load_library


@pytest.fixture(scope="session")
def library() -> Library:
    """TensorRT-RTX; skips with its own words about what is missing."""
    try:
        return load_library("tensorrt_rtx")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
