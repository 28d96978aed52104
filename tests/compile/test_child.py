"""The builder's own process: one order in, lines of JSON out, SIGTERM cancels."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.domain.errors import InferenceError
from node.gpu.anew import BuiltAnew
from node.gpu.building import build
from node.gpu.libraries import Library
from tests.compile.models import recipe
from tests.compile.networks import cubic, deep, unet

_COMMAND = [sys.executable, "-m", "node.gpu.building"]


def ordered(order: str) -> tuple[int, list[dict[str, Any]]]:
    """The child's exit status and every line that it said."""
    ended = subprocess.run(_COMMAND, input=order, capture_output=True, text=True, check=False)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


def test_order_is_fulfilled_with_progress_and_a_plan(library: Library, tmp_path: Path) -> None:
    wanted = recipe(unet(tmp_path / "model.onnx"))
    out = tmp_path / "plans" / "plan"
    status, lines = ordered(json.dumps(wanted.order(out)))
    assert status == 0
    assert all(line.keys() == {"progress", "phase"} for line in lines[:-1])
    assert [line["progress"] for line in lines[:-1]] == sorted(
        line["progress"] for line in lines[:-1]
    )
    done = lines[-1]["done"]
    plan = out.read_bytes()
    assert done["out"] == str(out)
    assert done["size"] == len(plan)
    assert done["digest"] == hashlib.sha256(plan).hexdigest()
    assert done["version"] == library.version
    assert done["activation"] > 0
    assert plan == build(library, wanted).plan
    assert out.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("order", "reason"),
    [("{", "no JSON"), ("[]", "no JSON object"), ("{}", "the order to build a plan is wrong")],
)
def test_order_that_cannot_be_read_fails_with_words(order: str, reason: str) -> None:
    status, lines = ordered(order)
    assert status == 1
    assert lines[-1]["failed"]["error"] == "InferenceError"
    assert reason in lines[-1]["failed"]["reason"]


@pytest.mark.usefixtures("library")
def test_network_that_cannot_be_compiled_fails_with_the_node(tmp_path: Path) -> None:
    wanted = recipe(cubic(tmp_path / "model.onnx"))
    status, lines = ordered(json.dumps(wanted.order(tmp_path / "plan")))
    assert status == 1
    assert lines[-1]["failed"]["error"] == "InferenceError"
    assert "(Resize)" in lines[-1]["failed"]["reason"]
    assert not (tmp_path / "plan").exists()


@pytest.mark.usefixtures("library")
def test_termination_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    wanted = recipe(deep(tmp_path / "model.onnx", layers=200))
    out = tmp_path / "plans" / "plan"
    child = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdout:
        child.stdin.write(json.dumps(wanted.order(out)))
        child.stdin.close()
        lines = []
        for line in child.stdout:
            lines.append(json.loads(line))
            if lines[-1].get("progress", 0) > 0 and len(lines) == 2:
                child.send_signal(signal.SIGTERM)
    assert child.returncode == 1
    assert lines[-1]["failed"]["error"] == "JobCancelled"
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_plan_without_a_cache_is_built_each_time(library: Library, tmp_path: Path) -> None:
    wanted = recipe(unet(tmp_path / "model.onnx"))
    assert BuiltAnew().fetch(wanted) == build(library, wanted).plan


@pytest.mark.usefixtures("library")
def test_error_of_the_builder_is_raised_again(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="Resize"):
        BuiltAnew().fetch(recipe(cubic(tmp_path / "model.onnx")))


def test_missing_library_is_raised_again(tmp_path: Path) -> None:
    from dataclasses import replace

    from node.domain.errors import RuntimeUnavailable
    from node.gpu.libraries import load_library

    try:
        load_library("tensorrt")
    except RuntimeUnavailable as error:
        wanted = replace(recipe(unet(tmp_path / "model.onnx")), flavour="tensorrt")
        with pytest.raises(RuntimeUnavailable) as raised:
            BuiltAnew().fetch(wanted)
        assert str(raised.value) == str(error)
    else:
        pytest.skip("TensorRT is installed here")
