"""How fast: the FP16 plan against torch with automatic mixed precision, which is the honest rival.

The same network with the same weights (``unets.py``), the same patches, the same blending. Figures
are medians with the spread of the middle half, after warm-up. Without torch these are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node.gpu.canvas import Labelling
from node.gpu.device import Device
from node.gpu.plan import Plan
from node.gpu.workplace import enter, leave
from node.runtimes.tensorrt import TensorRtSession
from node.windows import Window, tile
from tests.gpu.conftest import Gpu, Record, absent
from tests.gpu.unets import PATCH, Torch, unet, write

_BATCH = 4
_OVERLAP = 0.5
_VOLUME = (300, 512, 512)
_GOAL = 3.0
"""Times torch AMP, end to end."""
_SHARE = 0.8
"""Of the time, the network's own."""


@pytest.fixture(scope="module")
def torch(gpu: Gpu) -> Any:
    """torch with this GPU."""
    made = pytest.importorskip("torch", reason="torch is not installed")
    if not made.cuda.is_available():
        absent("torch has no CUDA here")
    made.cuda.set_device(gpu.card.index)
    made.backends.cudnn.benchmark = True
    return made


@dataclass(frozen=True)
class Bench:
    """The FP16 plan, loaded for use through the runtime and, beside that, bare."""

    session: TensorRtSession
    plan: Plan
    device: Device

    def bare(self) -> Callable[[], None]:
        """One batch from device memory to device memory, nothing else."""
        shapes = {"image": (_BATCH, 1, PATCH, PATCH, PATCH)}
        lengths = {**shapes, **self.plan.shapes(shapes)}
        blocks = {name: self.device.allocate(4 * prod(shape)) for name, shape in lengths.items()}
        for block in blocks.values():
            self.device.clear(block)
        addresses = {name: block.address for name, block in blocks.items()}

        def once() -> None:
            self.plan.run(addresses, shapes)
            self.device.synchronise()

        return once


@pytest.fixture(scope="module")
def bench(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The FP16 plan of the U-Net."""
    path = write(tmp_path_factory.mktemp("unet"))
    runtime = gpu.runtime(precision="fp16", batch=_BATCH)
    session = runtime.load(path)
    place = enter(gpu.library, gpu.card.index)
    plan = place.plan(gpu.plans.fetch(runtime.options.recipe(path)))
    yield Bench(session, plan, place.device)
    plan.close()
    session.close()
    leave(place)


def timed(once: Callable[[], object], warm: int, count: int) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    for _ in range(warm):
        once()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        once()
        found.append(1000 * (time.perf_counter() - began))
    low, middle, high = np.percentile(found, [25, 50, 75])
    return {
        "median_ms": round(float(middle), 3),
        "q1": round(float(low), 3),
        "q3": round(float(high), 3),
    }


def network(torch: Any) -> Callable[[Any], Any]:
    """The network in torch, under AMP."""
    say = Torch(torch)

    def compute(x: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            return unet(say, x)

    return compute


def test_network_alone_against_torch(bench: Bench, torch: Any, record: Record) -> None:
    patches = np.random.default_rng(0).standard_normal((_BATCH, 1, *[PATCH] * 3), np.float32)
    found = bench.session.infer({"image": patches})["logits"]
    compute, x = network(torch), torch.from_numpy(patches).cuda()

    def theirs() -> Any:
        y = compute(x)
        torch.cuda.synchronize()
        return y

    wanted = theirs().float().cpu().numpy()
    agreement = float((found.argmax(1) == wanted.argmax(1)).mean())
    plan_ms, torch_ms = timed(bench.bare(), 10, 50), timed(theirs, 10, 50)
    ratio = torch_ms["median_ms"] / plan_ms["median_ms"]
    record(
        "network", batch=_BATCH, plan=plan_ms, amp=torch_ms, times=round(ratio, 2), agree=agreement
    )
    assert agreement >= 0.99
    assert ratio >= 1.0


def blended(torch: Any, volume: NDArray[np.int16]) -> NDArray[np.uint8]:
    """A sliding window as MONAI's: volume, sum and argmax on the device, batches of patches."""
    window = Window(mode="patch", patch=(PATCH, PATCH, PATCH), overlap=_OVERLAP, batch=_BATCH)
    tiling = tile(_VOLUME, window)
    regions = [tiling.region(place) for place in tiling.places()]
    compute = network(torch)
    axis = (torch.arange(PATCH, device="cuda") - (PATCH - 1) / 2) / (0.125 * PATCH)
    bell = torch.exp(-0.5 * axis**2)
    importance = bell[:, None, None] * bell[:, None] * bell
    with torch.inference_mode():
        x = torch.from_numpy(volume).cuda().float()
        total = torch.zeros((2, *_VOLUME), device="cuda")
        count = torch.zeros(_VOLUME, device="cuda")
        for start in range(0, len(regions), _BATCH):
            part = regions[start : start + _BATCH]
            logits = compute(torch.stack([x[region][None] for region in part]))
            probabilities = logits.float().softmax(1)
            for region, block in zip(part, probabilities, strict=True):
                total[(slice(None), *region)] += block * importance
                count[region] += importance
        labels: NDArray[np.uint8] = (total / count).argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def test_whole_volume_against_torch(bench: Bench, torch: Any, record: Record) -> None:
    volume = np.random.default_rng(1).integers(-3, 4, _VOLUME).astype(np.int16)
    window = Window(
        mode="patch",
        patch=(PATCH, PATCH, PATCH),
        overlap=_OVERLAP,
        batch=_BATCH,
        logits=True,
        exclusive=True,
    )
    found: list[NDArray[np.uint8]] = []

    def ours() -> None:
        feeds = {"image": volume[None]}
        found.append(bench.session.labels(feeds, window, "logits", Labelling()).labels)

    def theirs() -> NDArray[np.uint8]:
        return blended(torch, volume)

    wanted = theirs()
    plan_ms, torch_ms = timed(ours, 1, 5), timed(theirs, 1, 5)
    batches = -(-len(tile(_VOLUME, window).places()) // _BATCH)
    share = batches * timed(bench.bare(), 5, 20)["median_ms"] / plan_ms["median_ms"]
    ratio = torch_ms["median_ms"] / plan_ms["median_ms"]
    agreement = float((found[0] == wanted).mean())
    record(
        "whole volume",
        volume=_VOLUME,
        plan=plan_ms,
        amp=torch_ms,
        times=round(ratio, 2),
        network_share=round(share, 3),
        goal_met=ratio >= _GOAL and share >= _SHARE,
        agree=agreement,
    )
    assert all(np.array_equal(found[0], other) for other in found[1:])
    assert agreement >= 0.99
    assert ratio >= 1.0
