"""OpenVINO: what it must not do by itself, and the words when it cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from onnx import TensorProto
from pydantic import ValidationError

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.runtimes.onnx import Onnx
from node.runtimes.openvino import OpenVino
from node.runtimes.tolerances import TOLERANCES
from tests.chaos.tracing import strace
from tests.places import ROOT, tool
from tests.runtimes.networks import doubling, mismatching, spatial

installed = pytest.mark.skipif(
    not any((Path(place) / "openvino").is_dir() for place in sys.path),
    reason="OpenVINO is not installed: pip install 'dicom-ai-node[openvino]'",
)

RUN = """
import sys
from pathlib import Path
import numpy as np
from node.domain.errors import InferenceError
from node.runtimes.openvino import OpenVino
session = OpenVino().load(Path(sys.argv[1]))
session.infer({"image": np.zeros((1, 1, 8, 8, 8), np.float32)})
session.close()
for broken in sys.argv[2:]:
    try:
        OpenVino().load(Path(broken)).infer(
            {name: np.zeros((2, 3), np.float32) for name in "ab"}
        )
    except InferenceError:
        continue
    sys.exit(f"{broken} was not refused")
if hasattr(sys.modules.get("openvino_telemetry"), "Telemetry"):
    sys.exit("what reports is loaded")
"""


def run(model: Path, *broken: Path, before: tuple[str, ...] = (), home: Path) -> bytes:
    """Load and compute in a process of its own; what it has printed."""
    done = subprocess.run(
        [*before, sys.executable, "-c", RUN, str(model), *map(str, broken)],
        cwd=ROOT,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout


@installed
def test_nothing_is_reported_to_the_makers_of_the_runtime(tmp_path: Path) -> None:
    """Its reporting package would note its use in the home directory and call out over HTTPS."""
    spatial(tmp_path / "m.onnx")
    (tmp_path / "bad.onnx").write_text("no model")
    calls, home = tmp_path / "calls", tmp_path / "home"
    home.mkdir()
    traced = (strace(), "-f", "-qq", "-e", "trace=network", "-o", str(calls))
    run(tmp_path / "m.onnx", tmp_path / "bad.onnx", before=traced, home=home)
    assert [line for line in calls.read_text().splitlines() if "AF_INET" in line] == []
    assert list(home.rglob("*")) == []


@installed
def test_nothing_is_said_on_standard_error(tmp_path: Path) -> None:
    spatial(tmp_path / "m.onnx")
    (tmp_path / "bad.onnx").write_text("<html>404</html>")
    failing = mismatching(tmp_path / "failing.onnx")
    assert run(tmp_path / "m.onnx", tmp_path / "bad.onnx", failing, home=tmp_path) == b""


def test_absent_library_is_one_sentence_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        OpenVino().load(doubling(tmp_path / "m.onnx"))
    words = str(caught.value)
    assert "pip install 'dicom-ai-node[openvino]'" in words
    assert "\n" not in words


@installed
def test_service_that_forbids_written_code_is_told_which_directive(tmp_path: Path) -> None:
    tool("systemd-analyze")
    unit = (ROOT / "systemd" / "ai-node-worker-gpu@.service").read_text()
    spatial(tmp_path / "m.onnx")
    for allowed in ("no", "yes"):
        confining = tmp_path / f"{allowed}.service"
        confining.write_text(
            unit.replace("MemoryDenyWriteExecute=no", f"MemoryDenyWriteExecute={allowed}")
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.confined", str(confining)]
            + [sys.executable, "-c", RUN, str(tmp_path / "m.onnx")],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        refused = b"MemoryDenyWriteExecute=yes forbids this service" in done.stderr
        assert (done.returncode == 0, refused) == (allowed == "no", allowed == "yes")


@installed
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precision_is_what_was_asked_or_refused(
    tmp_path: Path, precision: Literal["bf16", "fp16"]
) -> None:
    feeds = spatial(tmp_path / "m.onnx")
    try:
        session = OpenVino(precision=precision).load(tmp_path / "m.onnx")
    except RuntimeUnavailable as error:
        assert f"does not compute in {precision}" in str(error)
        return
    assert precision in session.words
    found = session.infer(feeds)["probability"]
    wanted = Onnx().load(tmp_path / "m.onnx").infer(feeds)["probability"]
    assert TOLERANCES["openvino", precision].admits(found, wanted)
    assert not TOLERANCES["openvino", "fp32"].admits(found, wanted)


@installed
def test_threads_are_not_bound_to_cores_and_change_little(tmp_path: Path) -> None:
    feeds, before = spatial(tmp_path / "m.onnx"), os.sched_getaffinity(0)
    found = [
        OpenVino(threads).load(tmp_path / "m.onnx").infer(feeds)["probability"]
        for threads in (1, 2, 2)
    ]
    assert os.sched_getaffinity(0) == before
    assert np.array_equal(found[1], found[2])
    assert TOLERANCES["openvino", "fp32"].admits(found[0], found[1])


@installed
def test_whole_numbers_that_it_cannot_hold_are_refused(tmp_path: Path) -> None:
    session = OpenVino().load(doubling(tmp_path / "m.onnx", (2,), TensorProto.INT64))
    assert session.infer({"image": np.array([-3, 2**30 - 1])})["twice"].tolist() == [-6, 2**31 - 2]
    with pytest.raises(InferenceError, match="32 bits, and image holds larger ones"):
        session.infer({"image": np.array([0, 2**31])})


@installed
def test_types_that_numpy_lacks_are_refused_by_name(tmp_path: Path) -> None:
    path = doubling(tmp_path / "m.onnx", (2,), TensorProto.BFLOAT16)
    with pytest.raises(InferenceError, match="image has the type bf16"):
        OpenVino().load(path)


@installed
def test_compiled_networks_are_kept_where_the_option_says(tmp_path: Path) -> None:
    feeds = spatial(tmp_path / "m.onnx")
    options = OpenVino(cache=str(tmp_path / "cache"))
    found = [options.load(tmp_path / "m.onnx").infer(feeds)["probability"] for _ in range(2)]
    assert list((tmp_path / "cache").iterdir())
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    "table", [{"threads": -1}, {"precision": "fp64"}, {"performance": "most"}, {"device": "GPU"}]
)
def test_options_that_make_no_sense_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OpenVino(**table)  # type: ignore[arg-type]
