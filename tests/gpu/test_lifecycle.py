"""Plans come and go: memory stays flat, networks share, and what is broken is built anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from node.domain.errors import InferenceError
from node.gpu.device import Device
from node.gpu.recipe import Recipe, Settings, digest
from node.gpu.workplace import enter, leave
from tests.compile.networks import deep, unet
from tests.gpu.conftest import Gpu, Record
from tests.gpu.shelf import Shelf
from tests.gpu.unets import write
from tests.runtimes.networks import image

_CYCLES = 200
_SETTLED = 20
"""Cycles after which caches of library and driver are filled."""
_MIB = 1 << 20


def resident() -> int:
    """Bytes of host memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_200_loads_and_unloads(
    gpu: Gpu, record: Record, tmp_path: Path
) -> None:
    path = write(tmp_path, size=32, channels=(8, 16, 32))
    feeds = {"image": image(2, 1, 32, 32, 32)}
    runtime = gpu.runtime(batch=2)
    place = enter(gpu.library, gpu.card.index)  # the context stays, as in a worker
    free, host, first = [], [], b""
    try:
        for _ in range(_CYCLES):
            session = runtime.load(path)
            found = session.infer(feeds)["logits"].tobytes()
            session.close()
            first = first or found
            assert found == first
            free.append(place.device.memory()[0])
            host.append(resident())
        assert place.device.used == place.scratch.size
    finally:
        leave(place)
    lost = free[_SETTLED] - free[-1]
    grown = host[-1] - host[_SETTLED]
    record("200 loads", device_mib=round(lost / _MIB, 1), host_mib=round(grown / _MIB, 1))
    assert lost < 16 * _MIB
    assert grown < 64 * _MIB


def test_device_is_given_back_after_the_last_network(gpu: Gpu, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx")
    first, second = (gpu.runtime().load(path) for _ in range(2))
    place = enter(gpu.library, gpu.card.index)
    assert place.networks == 3
    first.close()
    first.close()
    leave(place)
    assert place.networks == 1
    second.close()
    assert place.networks == 0
    again = gpu.runtime().load(path)
    again.infer({"image": image(1, 1, 8, 8, 8)})
    again.close()


def test_two_engines_share_device_and_scratch_and_do_not_disturb_each_other(
    gpu: Gpu, record: Record, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("small", "large")]
    sizes = (32, 64)
    for folder, size in zip(folders, sizes, strict=True):
        folder.mkdir()
        write(folder, size=size, channels=(8, 16, 32))
    feeds = [{"image": image(1, 1, size, size, size)} for size in sizes]
    runtime = gpu.runtime(batch=1)
    alone = []
    for folder, fed in zip(folders, feeds, strict=True):
        session = runtime.load(folder / "model.onnx")
        alone.append(session.infer(fed)["logits"])
        session.close()
    sessions = [runtime.load(folder / "model.onnx") for folder in folders]
    place = enter(gpu.library, gpu.card.index)
    try:
        for _ in range(5):
            for session, fed, wanted in zip(sessions, feeds, alone, strict=True):
                assert np.array_equal(session.infer(fed)["logits"], wanted)
        wants = [session.used["device bytes"] for session in sessions]
        record("two engines", wanted=wants, scratch=place.scratch.size)
        assert place.scratch.size < sum(wants)
        sessions[0].close()
        assert np.array_equal(sessions[1].infer(feeds[1])["logits"], alone[1])
    finally:
        for session in sessions:
            session.close()
        leave(place)


def test_builder_killed_in_the_middle_leaves_no_plan_and_no_memory(
    gpu: Gpu, device: Device, tmp_path: Path
) -> None:
    path = deep(tmp_path / "model.onnx", layers=100)
    out = tmp_path / "plans" / "plan"
    capability = ".".join(map(str, gpu.card.capability))
    order = Recipe(
        model=path,
        weights=digest(path),
        flavour=gpu.library.flavour,
        version=gpu.library.version,
        precision="fp32",
        settings=Settings(capability=capability, device=gpu.card.index),
    )
    before, _ = device.memory()
    command = [sys.executable, "-m", "node.gpu.building"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with child, child.stdout:
        child.stdin.write(json.dumps(order.order(out)))
        child.stdin.close()
        for line in child.stdout:
            if json.loads(line).get("progress", 0) > 0:
                child.kill()
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    assert device.memory()[0] > before - 64 * _MIB
    assert Shelf().fetch(order)


_LOAD = """
import sys
from pathlib import Path
from node.domain.errors import InferenceError
from node.gpu.libraries import load_library
from node.gpu.workplace import enter
place = enter(load_library(sys.argv[1]), int(sys.argv[2]))
try:
    place.plan(Path(sys.argv[3]).read_bytes())
except InferenceError as error:
    print(type(error).__name__, error)
else:
    print("loaded")
"""


def loaded(gpu: Gpu, plan: Path) -> str:
    """What comes of loading a file as a plan, in a process that may crash."""
    ended = subprocess.run(
        [sys.executable, "-c", _LOAD, gpu.library.flavour, str(gpu.card.index), str(plan)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        return f"ended with {ended.returncode}: {ended.stderr[-1000:]}"
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("harm", ["truncated", "another file", "empty", "head changed"])
def test_corrupt_plan_is_an_error_and_no_crash(harm: str, gpu: Gpu, tmp_path: Path) -> None:
    recipe = gpu.runtime().options.recipe(unet(tmp_path / "model.onnx"))
    plan = gpu.plans.fetch(recipe)
    changed = {
        "truncated": plan[: len(plan) // 2],
        "another file": b"no plan at all" * 1000,
        "empty": b"",
        "head changed": bytes(255 - byte for byte in plan[:64]) + plan[64:],
    }[harm]
    path = tmp_path / "plan"
    path.write_bytes(changed)
    assert loaded(gpu, path).startswith("InferenceError TensorRT")
    path.write_bytes(plan)
    assert loaded(gpu, path) == "loaded"


def test_plan_that_does_not_load_is_put_aside_and_built_anew(gpu: Gpu, tmp_path: Path) -> None:
    shelf = Shelf()
    options = gpu.runtime().options
    path = unet(tmp_path / "model.onnx")
    options.kept(shelf).load(path).close()
    for name in shelf.plans:
        shelf.plans[name] = b"not a plan" * 1000
    session = options.kept(shelf).load(path)
    session.infer({"image": image(1, 1, 8, 8, 8)})
    session.close()
    assert shelf.built == 2
    assert len(shelf.rejected) == 1


def test_plan_for_another_capability_is_refused_in_words(gpu: Gpu, tmp_path: Path) -> None:
    if not gpu.library.rtx:
        pytest.skip("only TensorRT-RTX builds for a device that is not here")
    other = "12.0" if gpu.card.capability != (12, 0) else "8.9"
    path = unet(tmp_path / "model.onnx")
    recipe = Recipe(
        model=path,
        weights=digest(path),
        flavour=gpu.library.flavour,
        version=gpu.library.version,
        precision="fp32",
        settings=Settings(capability=other),
    )
    (tmp_path / "plan").write_bytes(Shelf().fetch(recipe))
    said = loaded(gpu, tmp_path / "plan")
    assert said.split()[0] in {"InferenceError", "RuntimeUnavailable"}, said
    assert "TensorRT-RTX" in said


def test_closed_network_refuses_to_compute(gpu: Gpu, tmp_path: Path) -> None:
    session = gpu.runtime().load(unet(tmp_path / "model.onnx"))
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.infer({"image": image(1, 1, 8, 8, 8)})
