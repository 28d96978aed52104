"""Plans on a GPU compute what the network says, and what goes wrong is told in words."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from node.domain.errors import DeviceMemoryFull, InferenceError
from node.domain.tensor import Tensors
from node.gpu.device import Device
from node.runtimes import Sweeper
from node.runtimes.tolerances import TOLERANCES
from node.windows import Window, predict
from tests.compile.networks import halved, quantised, unet
from tests.gpu.conftest import Gpu, Record
from tests.places import ROOT
from tests.runtimes.networks import SAMPLES, image

Make = Callable[[Path], Path]

_PRECISIONS: dict[str, tuple[Make, str]] = {
    "fp32": (unet, "model.onnx"),
    "fp16": (halved, "model.fp16.onnx"),
    "int8": (quantised, "model.int8.onnx"),
}


def reference(model: Path, feeds: Tensors) -> Tensors:
    """What ONNX Runtime computes on the CPU."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def test_gpu_library_and_driver_are_known(gpu: Gpu, record: Record) -> None:
    assert gpu.card.name
    assert gpu.card.capability >= (7, 5)
    assert gpu.card.memory > 1 << 30
    record("probe", memory=gpu.card.memory)


@pytest.mark.parametrize("precision", sorted(_PRECISIONS))
def test_plan_of_every_precision_agrees_with_the_cpu(
    precision: str, gpu: Gpu, record: Record, tmp_path: Path
) -> None:
    make, name = _PRECISIONS[precision]
    truth = unet(tmp_path / "model.onnx")
    network = make(tmp_path / name)
    feeds = {"image": image(1, 1, 8, 8, 8)}
    # INT8 has other weights; it is compared with itself on the CPU.
    wanted = reference(network if precision == "int8" else truth, feeds)
    session = gpu.runtime(precision=precision).load(truth)
    try:
        first, second = (session.infer(feeds)["probability"] for _ in range(2))
        assert f" {precision.upper()} plan " in session.words
        assert session.words.endswith(gpu.card.name)
    finally:
        session.close()
    tolerance = TOLERANCES["tensorrt", precision]
    distance = tolerance.distance(first, wanted["probability"])
    record("agreement", precision=precision, share_of_tolerance=round(distance, 4))
    assert first.tobytes() == second.tobytes()
    assert distance <= 1


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_tensors_of_every_kind_pass(sample: str, gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    feeds = SAMPLES[sample](path)
    session = gpu.runtime().load(path)
    try:
        found = session.infer(feeds)
    finally:
        session.close()
    for name, wanted in reference(path, feeds).items():
        assert found[name].dtype == wanted.dtype
        assert TOLERANCES["tensorrt", "fp32"].admits(found[name], wanted), name


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 9])
def test_any_batch_is_computed_in_parts_of_the_plan_s(batch: int, gpu: Gpu, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx", batch="n")
    feeds = {"image": image(batch, 1, 8, 8, 8)}
    session = gpu.runtime(batch=4).load(path)
    try:
        assert session.inputs[0].shape == (-1, 1, 8, 8, 8)
        found = session.infer(feeds)["probability"]
    finally:
        session.close()
    assert TOLERANCES["tensorrt", "fp32"].admits(found, reference(path, feeds)["probability"])


def test_shipped_engine_gives_the_same_mask(gpu: Gpu, record: Record) -> None:
    folder = ROOT / "engines" / "mr-brain-lesion"
    feeds = {"image": np.load(folder / "golden" / "input.npy").astype(np.float32)}
    wanted = reference(folder / "model.onnx", feeds)["probability"]
    session = gpu.runtime().load(folder / "model.onnx")
    try:
        found = session.infer(feeds)["probability"]
    finally:
        session.close()
    agreement = float(((found > 0.5) == (wanted > 0.5)).mean())
    record("shipped engine", agreement=agreement, largest=float(np.abs(found - wanted).max()))
    assert agreement >= 0.999


def test_window_on_the_device_is_the_window_on_the_host(gpu: Gpu, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx", batch="n")
    volumes = {"image": image(1, 20, 21, 22)}
    window = Window(mode="patch", patch=(8, 8, 8), batch=4)
    session = gpu.runtime(batch=4).load(path)
    try:
        assert isinstance(session, Sweeper)
        swept = session.sweep(volumes, window, "probability")
        host = predict(session.infer, volumes, window, "probability")
    finally:
        session.close()
    assert np.abs(swept - host).max() < 1e-5


def test_memory_that_is_not_there_is_refused_and_the_device_lives_on(device: Device) -> None:
    free, _ = device.memory()
    with pytest.raises(DeviceMemoryFull):
        device.allocate(free + (1 << 30))
    block = device.allocate(1 << 20)
    sent = np.arange(1 << 18, dtype=np.float32)
    back = np.zeros_like(sent)
    device.upload(block, sent)
    device.download(back, block)
    device.synchronise()
    assert np.array_equal(sent, back)


def test_device_belongs_to_the_thread_that_opened_it(device: Device) -> None:
    raised: list[InferenceError] = []

    def elsewhere() -> None:
        try:
            device.synchronise()
        except InferenceError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "belongs to the thread that opened it" in str(raised[0])


_POKE = """
.version 6.3
.target sm_75
.address_size 64
.visible .entry poke()
{
    .reg .u64 %p;
    .reg .u32 %v;
    mov.u64 %p, 16;
    mov.u32 %v, 1;
    st.global.u32 [%p], %v;
    ret;
}
"""

_LOSE = f"""
import sys
from node.domain.errors import DeviceLost
from node.gpu.cuda import open_device
device = open_device(int(sys.argv[1]))
kernels = device.kernels({_POKE.encode()!r})
kernels.launch("poke", (1, 1, 1), (1, 1, 1))
for _ in range(2):
    try:
        device.synchronise()
    except DeviceLost as error:
        print("lost:", error)
"""


def test_illegal_address_loses_the_device_for_the_whole_process(gpu: Gpu) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LOSE, str(gpu.card.index)],
        capture_output=True,
        text=True,
        check=False,
    )
    lost = [line for line in ended.stdout.splitlines() if line.startswith("lost:")]
    assert len(lost) == 2, ended.stderr[-2000:]
    assert "has to be started again" in lost[0]


def test_context_is_shared_with_torch(gpu: Gpu, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    path = unet(tmp_path / "model.onnx")
    feeds = {"image": image(1, 1, 8, 8, 8)}
    session = gpu.runtime().load(path)
    try:
        before = session.infer(feeds)["probability"]
        ones = torch.ones(1000, device=f"cuda:{gpu.card.index}")
        assert float((ones @ ones).cpu()) == 1000
        assert session.infer(feeds)["probability"].tobytes() == before.tobytes()
    finally:
        session.close()
    assert float((ones @ ones).cpu()) == 1000
