"""The tests that need a GPU say why they are skipped, and do not skip where a GPU was promised."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from node.gpu.probing import probe
from tests.places import ROOT

_TEST = "tests/gpu/test_runtime.py::test_gpu_library_and_driver_are_known"


def run(**switches: str) -> tuple[int, str]:
    """One test of ``tests/gpu`` in a pytest of its own: its exit status and its words."""
    cleared = {name: value for name, value in os.environ.items() if name != "NODE_REQUIRE_GPU"}
    options = ["-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, _TEST],
        cwd=ROOT,
        env=cleared | switches,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout


@pytest.fixture(scope="module")
def reason() -> str:
    """Why no plan runs here."""
    found = probe().reason
    if not found:
        pytest.skip("a plan runs on the GPU of this machine")
    return found


def test_skip_cites_the_reason(reason: str) -> None:
    status, words = run()
    assert status == 0
    assert "1 skipped" in words
    assert reason in words


def test_promised_gpu_turns_the_skip_into_a_failure(reason: str) -> None:
    status, words = run(NODE_REQUIRE_GPU="1")
    assert status == 1
    assert f"NODE_REQUIRE_GPU=1, but {reason}" in words
    assert "skipped" not in words
