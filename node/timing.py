"""How long an engine takes, stage by stage, alone and beside another runtime.

Machines get warm, and others work on them too: so both sides run in turn, a few runs are not
counted, and what is told is the median with its quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.answers import channels, labelled
from node.bundle import Bundle
from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors, TensorSpec
from node.domain.volume import Volume
from node.engine import Engine
from node.findings import Segmented, find
from node.runtimes import Named, Runtime, Session, Sweeper
from node.testing.phantom import make as phantom
from node.windows import Activation, Progress, Window

WARM_UP = 2
"""Runs that are not counted: libraries choose their kernels in them."""
NETWORK = "network"
STEPS = "steps and window"
FINDINGS = "findings"
TOTAL = "total"
STAGES = (STEPS, NETWORK, FINDINGS, TOTAL)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of several runs: median, quartiles, and how many there were."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """The spread of some times."""
        low, median, high = (float(one) for one in np.percentile(seconds, (25, 50, 75)))
        return cls(median, low, high, len(seconds))


@dataclass(frozen=True, slots=True)
class Timed:
    """One side: what computed it, seconds to load it, and every stage's spread."""

    words: str
    loading: float
    stages: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Side:
    """A runtime under the name by which it was asked for."""

    name: str
    runtime: Runtime


def bench(
    bundle: Bundle,
    sides: Sequence[Side],
    volumes: Mapping[str, Volume],
    runs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Timed, ...]:
    """Each side's times over the same volumes, the sides in turn. Raises InferenceError."""
    with ExitStack() as held:
        benches = [held.enter_context(_bench(bundle, side)) for side in sides]
        every = runs + WARM_UP
        for number in range(every):
            for one in benches:
                one.run(volumes, counted=number >= WARM_UP)
            progress(number + 1, every)
        return tuple(one.timed() for one in benches)


def phantom_volumes(
    bundle: Bundle, shape: tuple[int, int, int] = (24, 240, 240)
) -> dict[str, Volume]:
    """A generated head (k, j, i) as the volume of every role; about 1 mm in the plane."""
    spacing, dz = 240.0 / shape[2], 144.0 / shape[0]
    voxels, _ = phantom(1, slices=shape[0], size=shape[2], spacing=spacing, dz=dz)
    volume = Volume(_rows(voxels, shape[1]), np.diag([dz, spacing, spacing, 1.0]), "1.2.3")
    return {role: volume for role in bundle.manifest.roles}


def ratio(one: Timed, other: Timed, stage: str) -> tuple[float, float, float]:
    """How many times longer the other takes: of the medians, and the least and the most that the
    quartiles allow."""
    mine, its = one.stages[stage], other.stages[stage]
    least = its.low / mine.high if mine.high else float("nan")
    most = its.high / mine.low if mine.low else float("nan")
    return its.median / mine.median if mine.median else float("nan"), least, most


@dataclass(frozen=True)
class Torch:
    """A module of torch from a file, beside which a network is timed. It is no runtime of the node.

    Loading it runs what its maker has put into it: only files that you made yourself.
    """

    module: Path
    """A program of ``torch.export`` (.pt2), or TorchScript (.pt)."""
    half: bool = False
    """Whether it runs under automatic mixed precision."""

    def load(self, model: Path) -> Session:
        """The module as a session that takes and gives the tensors of the ONNX file ``model``.

        Raises RuntimeUnavailable without torch; InferenceError when the file is not one of both.
        """
        try:
            import torch
        except ImportError as error:
            raise RuntimeUnavailable(
                "torch is not installed here, and the node never needs it: to compare with it, run "
                "`ai-node engine bench` in an environment that has both (pip install torch)"
            ) from error
        from node.runtimes.onnx import Onnx

        own = Onnx(threads=1).load(model)
        shapes = own.inputs, own.outputs
        own.close()
        try:
            if self.module.suffix == ".pt2":
                network = torch.export.load(str(self.module)).module()
            else:
                network = torch.jit.load(str(self.module)).eval()
        except (RuntimeError, ValueError, OSError, TypeError, KeyError) as error:
            raise InferenceError(
                f"{self.module.name} is neither a program of torch.export (.pt2) nor TorchScript "
                f"(.pt): {str(error).splitlines()[0]}"
            ) from error
        return _TorchSession(torch, network, shapes, self.half)


class _TorchSession:
    """A torch module behind the interface of a session."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(
        self,
        torch: Any,
        network: Any,
        shapes: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        half: bool,
    ) -> None:
        self.inputs, self.outputs = shapes
        self._torch, self._half = torch, half
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(self._device)
        precision = "mixed precision" if half else "FP32"
        self.words = f"torch {torch.__version__} {precision} on {self._device}"

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name, on the host."""
        torch = self._torch
        with torch.inference_mode(), torch.autocast(self._device, enabled=self._half):
            tensors = [torch.from_numpy(feeds[spec.name]).to(self._device) for spec in self.inputs]
            answers = self._network(*tensors)
        listed = answers if isinstance(answers, (tuple, list)) else (answers,)
        names = [spec.name for spec in self.outputs]
        found = {name: one.float().cpu().numpy() for name, one in zip(names, listed, strict=False)}
        return found

    def close(self) -> None:
        """Give back the memory."""
        self._network = None


@dataclass
class _Clocked:
    """A session whose time is counted."""

    session: Session
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    seconds: float = 0.0

    def infer(self, feeds: Tensors) -> Tensors:
        begun = time.perf_counter()
        answers = self.session.infer(feeds)
        self.seconds += time.perf_counter() - begun
        return answers

    def close(self) -> None:
        self.session.close()


@dataclass
class _ClockedSweep(_Clocked):
    """One that takes a whole sliding window: that counts as the network."""

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: Activation = "none",
    ) -> NDArray[np.float32]:
        assert isinstance(self.session, Sweeper)  # noqa: S101 - made for such ones only
        begun = time.perf_counter()
        answer = self.session.sweep(volumes, window, output, progress, after)
        self.seconds += time.perf_counter() - begun
        return answer


@dataclass(frozen=True)
class _ClockedRuntime:
    """A runtime whose sessions are counted; ``made`` gets them."""

    runtime: Runtime
    made: list[_Clocked]

    def load(self, model: Path) -> Session:
        session = self.runtime.load(model)
        kind = _ClockedSweep if isinstance(session, Sweeper) else _Clocked
        self.made.append(kind(session, session.inputs, session.outputs))
        return self.made[-1]


@dataclass
class _Bench:
    """A loaded engine and its times so far."""

    name: str
    engine: Engine
    sessions: list[_Clocked]
    loading: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {one: [] for one in STAGES})

    def run(self, volumes: Mapping[str, Volume], counted: bool) -> None:
        """Once over the volumes."""
        for session in self.sessions:
            session.seconds = 0.0
        begun = time.perf_counter()
        prediction = self.engine.predict(volumes)
        predicted = time.perf_counter() - begun
        network = sum(session.seconds for session in self.sessions)
        self._find(prediction)
        total = time.perf_counter() - begun
        parts = (predicted - network, network, total - predicted, total)
        for stage, value in zip(STAGES, parts, strict=True):
            if counted:
                self.seconds[stage].append(value)

    def _find(self, prediction: Volume) -> None:
        manifest = self.engine.bundle.manifest
        segmented = Segmented(
            labels=labelled(manifest.post, prediction),
            probability=prediction.voxels,
            grid=prediction.grid,
            channels=channels(manifest.post[0], len(prediction.voxels)),
        )
        find(segmented, manifest.findings, manifest.engine.name, "bench")

    def timed(self) -> Timed:
        """The times so far."""
        session = self.sessions[0].session
        words = session.words if isinstance(session, Named) else self.name
        stages = {stage: Spread.of(seconds) for stage, seconds in self.seconds.items()}
        return Timed(words, self.loading, stages)


@contextmanager
def _bench(bundle: Bundle, side: Side) -> Iterator[_Bench]:
    made: list[_Clocked] = []
    begun = time.perf_counter()
    with Engine.load(bundle, _ClockedRuntime(side.runtime, made)) as engine:
        yield _Bench(side.name, engine, made, time.perf_counter() - begun)


def _rows(voxels: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The square slices cut or repeated to a number of rows."""
    have = voxels.shape[1]
    return np.take(voxels, np.arange(rows) * have // rows, axis=1) if rows != have else voxels
