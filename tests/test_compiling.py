"""A build is a child: what it says is heard, and what becomes of it harms nobody."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.compiling import Bounds, BuildOrder, Built, compile
from node.domain.errors import (
    DeviceLost,
    DeviceMemoryFull,
    InferenceError,
    JobCancelled,
    NodeError,
    RuntimeUnavailable,
)
from node.gpu.libraries import load_library
from node.gpu.recipe import Recipe, Settings, digest
from tests.places import ROOT
from tests.runtimes.networks import spatial

CHILD = """
import ctypes, json, os, signal, subprocess, sys, time
order, mode = json.loads(sys.stdin.readline()), sys.argv[1]
def say(**words):
    print(json.dumps(words), flush=True)
def wait():
    while True:
        signal.pause()
def build(**told):
    open(order["out"], "wb").write(b"a plan")
    say(done=told)
if mode == "builds":
    print("[I] the library talks", flush=True)
    say(progress=0.25, phase="reading")
    print('"no object"\\n[1]\\n{"half', flush=True)
    say(progress=7, phase="timing")
    build(order=order)
elif mode == "looks":
    libc = ctypes.CDLL(None)
    number = {"x86_64": 252, "aarch64": 31}.get(os.uname().machine)
    build(
        nice=os.getpriority(os.PRIO_PROCESS, 0), leads=os.getsid(0) == os.getpid(),
        idle=libc.syscall(number, 1, 0) >> 13 if number else 3,
        environment=sorted(os.environ),
    )
elif mode == "crashes":
    print("about to read nothing", file=sys.stderr, flush=True)
    ctypes.string_at(0)
elif mode == "silent":
    print("the last straw", file=sys.stderr, flush=True)
    sys.exit(3)
elif mode == "lies":
    say(done={})
elif mode == "obeys":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    say(progress=0.5, phase="waiting")
    wait()
elif mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(progress=0.5, phase=str(os.getpid()))
    wait()
elif mode == "family":
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    say(progress=0.5, phase=str(child.pid))
    build()
elif mode == "hungry":
    try:
        bytearray(1 << 40)
    except MemoryError:
        say(failed={"error": "DeviceMemoryFull", "reason": "no more"})
else:
    say(failed={"error": mode, "reason": "for want of a nail"})
    sys.exit(1)
"""


def order(folder: Path) -> BuildOrder:
    recipe = Recipe(Path("/models/model.onnx"), "", "tensorrt_rtx", "1.7.1.116", "fp32")
    return BuildOrder(recipe, folder / "plan")


def command(mode: str) -> list[str]:
    return [sys.executable, "-c", CHILD, mode]


def run(folder: Path, mode: str, **options: Any) -> Built:
    bounds = options.pop("bounds", Bounds(timeout_s=60, grace_s=10))
    return compile(order(folder), bounds, command=command(mode), **options)


def test_plan_is_built_and_progress_told_whatever_the_library_prints(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    built = run(tmp_path, "builds", on_progress=lambda *words: heard.append(words))
    assert built.out.read_bytes() == b"a plan"
    assert heard == [(0.25, "reading"), (1.0, "timing")]
    assert built.told["order"]["model"] == "/models/model.onnx"
    assert built.told["order"]["out"] == str(tmp_path / "plan")


def test_builder_gives_way_to_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/tensorrt")
    told = run(tmp_path, "looks").told
    assert (told["nice"], told["idle"], told["leads"]) == (19, 3, True)
    assert "LD_LIBRARY_PATH" in told["environment"]
    assert "NOTIFY_SOCKET" not in told["environment"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("DeviceMemoryFull", DeviceMemoryFull),
        ("DeviceLost", InferenceError),
        ("InferenceError", InferenceError),
        ("RuntimeUnavailable", RuntimeUnavailable),
        ("JobCancelled", JobCancelled),
        ("SystemExit", InferenceError),
        ("ConfigError", InferenceError),
    ],
)
def test_failure_is_of_the_class_that_the_child_names(
    tmp_path: Path, mode: str, kind: type[NodeError]
) -> None:
    with pytest.raises(kind, match="for want of a nail") as caught:
        run(tmp_path, mode)
    assert type(caught.value) is kind
    assert not isinstance(caught.value, DeviceLost)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crashes", r"model\.onnx failed: it crashed with SIGSEGV \(about to read nothing\)"),
        ("silent", r"ended with code 3 and without a word \(the last straw\)"),
        ("lies", r"was built, but there is no plan at"),
    ],
)
def test_builder_that_dies_or_lies_is_an_error_in_words(
    tmp_path: Path, mode: str, words: str
) -> None:
    with pytest.raises(InferenceError, match=words):
        run(tmp_path, mode)


def test_plan_of_an_earlier_build_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"old")
    with pytest.raises(InferenceError, match="there is no plan"):
        run(tmp_path, "lies")


def test_builder_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no-such-builder"):
        compile(order(tmp_path), Bounds(grace_s=10), command=["no-such-builder"])


@pytest.mark.parametrize("mode", ["obeys", "stubborn"])
def test_time_limit_ends_it(tmp_path: Path, mode: str) -> None:
    bounds = Bounds(timeout_s=1.5, grace_s=0.5)
    with pytest.raises(InferenceError, match=r"took more than 1\.5 s and was stopped"):
        run(tmp_path, mode, bounds=bounds)


@pytest.mark.parametrize("mode", ["obeys", "stubborn"])
def test_cancelling_ends_it(tmp_path: Path, mode: str) -> None:
    heard: list[str] = []
    bounds = Bounds(timeout_s=60, grace_s=0.5 if mode == "stubborn" else 30)
    with pytest.raises(JobCancelled):
        run(
            tmp_path,
            mode,
            bounds=bounds,
            on_progress=lambda _, phase: heard.append(phase),
            cancelled=lambda: bool(heard),
        )
    if mode == "stubborn":
        assert gone(int(heard[0]))


def test_listener_that_raises_ends_it_too(tmp_path: Path) -> None:
    heard: list[int] = []

    def listener(_: float, phase: str) -> None:
        heard.append(int(phase))
        raise JobCancelled("the job is another worker's now")

    with pytest.raises(JobCancelled):
        run(tmp_path, "stubborn", on_progress=listener)
    assert gone(heard[0])


def test_whom_it_started_ends_with_it(tmp_path: Path) -> None:
    heard: list[str] = []
    run(tmp_path, "family", on_progress=lambda _, phase: heard.append(phase))
    assert gone(int(heard[0]))


def test_memory_limit_holds(tmp_path: Path) -> None:
    with pytest.raises(DeviceMemoryFull):
        run(tmp_path, "hungry", bounds=Bounds(timeout_s=60, memory=4 << 30))


def gone(process: int) -> bool:
    """Whether a process ends within half a minute."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 30)[0])
    finally:
        os.close(descriptor)


def test_builder_does_not_outlive_a_node_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.test_compiling import run
run(Path({str(tmp_path)!r}), "stubborn", on_progress=lambda _, phase: print(phase, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        builder = int(process.stdout.readline())
        os.kill(builder, 0)  # it lives
        process.send_signal(signal.SIGKILL)
        assert gone(builder)


@pytest.fixture
def rtx(tmp_path: Path) -> BuildOrder:
    """An order for the real TensorRT-RTX, which compiles without a GPU."""
    try:
        library = load_library("tensorrt_rtx")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    spatial(tmp_path / "model.onnx")
    weights = digest(tmp_path / "model.onnx")
    settings = Settings(capability="8.6")
    recipe = Recipe(
        tmp_path / "model.onnx", weights, "tensorrt_rtx", library.version, "fp32", (), settings
    )
    return BuildOrder(recipe, tmp_path / "out" / "plan", tmp_path / "timing.cache")


def test_real_builder_compiles_for_a_gpu_that_is_not_here(rtx: BuildOrder) -> None:
    heard: list[float] = []
    built = compile(rtx, Bounds(timeout_s=300), lambda done, _: heard.append(done))
    plan = built.out.read_bytes()
    assert hashlib.sha256(plan).hexdigest() == built.told["digest"]
    assert built.told["version"] == rtx.recipe.version
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_real_builder_stops_when_it_is_told_to(rtx: BuildOrder) -> None:
    heard: list[float] = []
    with pytest.raises(JobCancelled):
        compile(rtx, None, lambda done, _: heard.append(done), lambda: bool(heard))
    assert not rtx.out.exists()


def test_order_is_what_the_builder_reads(tmp_path: Path) -> None:
    told = run(tmp_path, "builds").told["order"]
    assert told == json.loads(json.dumps(order(tmp_path).recipe.order(tmp_path / "plan")))
