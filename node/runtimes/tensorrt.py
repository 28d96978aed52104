"""TensorRT on an NVIDIA GPU: networks compiled for the very card that computes them.

TensorRT and TensorRT-RTX are one runtime with two flavours. Precision lies in the network: the
package ships ``model.fp16.onnx`` or ``model.int8.onnx`` beside its ``model.onnx``. Plans come from
a ``PlanStore``: the node gives its cache (``TensorRt.kept``); without one every load builds anew.
Nothing of NVIDIA is imported before ``load``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass as plain
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors, TensorSpec, refuse_other
from node.gpu import recipe
from node.gpu.anew import BuiltAnew
from node.gpu.device import Card
from node.gpu.exchange import Exchange
from node.gpu.libraries import Library, load_library
from node.gpu.plan import Plan
from node.gpu.probing import probe
from node.gpu.recipe import PlanStore, Profile, Recipe, Settings
from node.gpu.workplace import Workplace, enter, leave
from node.windows import Activation, Progress, Window, activated, predict

if TYPE_CHECKING:
    from node.gpu.canvas import Labelled, Labelling
    from node.gpu.sweep import Sweep

_log = structlog.get_logger()

Rows = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, config={"extra": "forbid"})
class TensorRt:
    """ONNX models compiled by TensorRT or TensorRT-RTX for one NVIDIA GPU."""

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Which network of the package is compiled: model.onnx, model.fp16.onnx or model.int8.onnx."""
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto"
    """The library; ``auto``: the first of TensorRT and TensorRT-RTX that runs on the device."""
    device: Annotated[int, Field(ge=0)] = 0
    """The number of the GPU, as nvidia-smi counts."""
    batch: Annotated[int, Field(ge=1)] = 4
    """The largest batch for networks that take any; larger ones are computed in parts."""
    profiles: dict[str, Rows] = field(default_factory=dict)
    """For inputs with other free axes than the batch: by the tensor's name its smallest, usual and
    largest lengths, every axis counted."""
    workspace: Annotated[int, Field(ge=16)] = 4096
    """Scratch memory that a single layer may use, in MiB."""
    level: Annotated[int, Field(ge=0, le=5)] = 3
    """How long the builder looks for faster kernels: 0 not at all, 5 for hours."""
    tf32: bool = False
    """Whether FP32 convolutions may round to 10 bits of mantissa: faster, and no longer what the
    CPU computes."""

    def load(self, model: Path) -> TensorRtSession:
        """Build the plan of a network, with nothing kept, and load it.

        Raises what ``Kept.load`` raises.
        """
        return self.kept(BuiltAnew()).load(model)

    def kept(self, plans: PlanStore) -> Kept:
        """The same runtime with a place where its plans are kept."""
        return Kept(self, plans)

    def recipe(self, model: Path) -> Recipe:
        """What the plan of a package's ``model.onnx`` is made of on this machine.

        Raises RuntimeUnavailable without library, driver or device, and InferenceError when the
        package has no network of this precision.
        """
        library, card = self._found()
        network = recipe.variant(model, self.precision)
        capability = f"{card.capability[0]}.{card.capability[1]}"
        return Recipe(
            model=network,
            weights=recipe.digest(network),
            flavour=library.flavour,
            version=library.version,
            precision=self.precision,
            profiles=tuple(Profile(name, *rows) for name, rows in sorted(self.profiles.items())),
            settings=Settings(
                workspace=self.workspace << 20,
                level=self.level,
                tf32=self.tf32,
                batch=self.batch,
                capability=capability,
                device=self.device,
            ),
            driver=card.driver,
            capability=capability,
            device=card.name,
            memory=card.memory,
        )

    def _found(self) -> tuple[Library, Card]:
        """The library that runs on the device, and the device."""
        found = probe(self.device, None if self.flavour == "auto" else self.flavour)
        if found.runs is None:
            raise RuntimeUnavailable(found.reason)
        return load_library(found.runs), found.devices[self.device]


@plain(frozen=True, slots=True)
class Kept:
    """TensorRT with a place for its plans."""

    options: TensorRt
    plans: PlanStore

    def load(self, model: Path) -> TensorRtSession:
        """Load the plan of a package's ``model.onnx``; a plan that does not load is built anew.

        Raises RuntimeUnavailable, which names what is missing; DeviceMemoryFull; DeviceLost; and
        InferenceError when the network cannot be compiled.
        """
        if not model.is_file():
            raise InferenceError(f"there is no model file {model}")
        wanted = self.options.recipe(model)
        content = self.plans.fetch(wanted)
        with ExitStack() as failing:
            place = enter(load_library(wanted.flavour), self.options.device)
            failing.callback(leave, place)
            try:
                plan = place.plan(content)
            except InferenceError as error:
                if type(error) is not InferenceError:
                    raise  # no memory, no driver: the plan is not to blame
                self.plans.reject(wanted, str(error))
                content = self.plans.fetch(wanted)
                plan = place.plan(content)
            words = _words(place, wanted, content)
            kept = self.plans.kernels
            session = TensorRtSession(place, plan, words, wanted.model.name, kept)
            failing.pop_all()
        return session


def _words(place: Workplace, made: Recipe, content: bytes) -> str:
    """What computes: library, precision, plan, device and driver; another one is verified anew."""
    name = hashlib.sha256(content).hexdigest()[:12]
    title, card = place.library.title, place.device.card
    return f"{title} {made.precision.upper()} plan {name} on {card.name}, driver {card.driver}"


class TensorRtSession:
    """A network on a GPU; made by ``TensorRt.load``. Belongs to the thread that loaded it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    words: str
    """What computes, for the results."""

    def __init__(
        self, place: Workplace, plan: Plan, words: str, name: str, kernels: Path | None = None
    ) -> None:
        self._place = place
        self._kernels = kernels
        self._plan: Plan | None = plan
        self._name = name
        self._exchange = Exchange(place.device, plan)
        self._sweep: Sweep | None = None
        self._weights, self._scratch = plan.weights, plan.workspace
        self.words = words
        self.inputs = plan.inputs
        self.outputs = plan.outputs

    @property
    def used(self) -> Mapping[str, int]:
        """Bytes by place.

        "device bytes" are weights, buffers and scratch memory; "scratch bytes" of it are shared by
        all networks of the device.
        """
        size, scratch = self._exchange.size, self._scratch
        device = self._weights + scratch + size
        return {"device bytes": device, "scratch bytes": scratch, "host bytes": size}

    def infer(self, feeds: Tensors) -> Tensors:
        """All outputs by name; a batch that is larger than the plan's is computed in parts.

        Raises InferenceError when a tensor is absent, unknown, or of another type or shape than
        the network's, and after ``close``; DeviceMemoryFull; DeviceLost.
        """
        self._live()
        refuse_other(feeds, self.inputs, self._name)
        return self._exchange.infer(feeds)

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: Activation = "none",
    ) -> NDArray[np.float32]:
        """The whole sliding window on the device: (classes, k, j, i).

        The same as ``node.windows.predict`` with ``infer``, and ``activated`` with ``after``.
        Raises what ``infer`` raises.
        """
        try:
            sweep = self._swept()
        except RuntimeUnavailable as error:
            _log.warning("window is computed on the host", network=self._name, why=str(error))
            return activated(predict(self.infer, volumes, window, output, progress), after)
        return sweep.probability(volumes, window, output, progress, after)

    def labels(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        rule: Labelling,
        progress: Progress | None = None,
    ) -> Labelled:
        """Labels (k, j, i) by a rule; the probabilities never leave the device.

        Raises what ``infer`` raises, and RuntimeUnavailable without NVRTC.
        """
        return self._swept().labels(volumes, window, output, rule, progress)

    def close(self) -> None:
        """Give back the device's memory; closing twice is no error."""
        plan, self._plan = self._plan, None
        if plan is None:
            return
        self._sweep = None
        try:
            with ExitStack() as closing:  # the last first, and each whatever the others do
                closing.callback(leave, self._place)
                closing.callback(self._exchange.close)
                closing.callback(plan.close)
        except InferenceError as error:
            # A device that is lost keeps nothing for this process, which is about to end.
            _log.warning("network could not be closed", network=self._name, why=str(error))

    def _live(self) -> Plan:
        if self._plan is None:
            raise InferenceError(f"{self._name} is closed; load it again")
        return self._plan

    def _swept(self) -> Sweep:
        """The window on the device. Raises RuntimeUnavailable when its kernels cannot be made."""
        from node.gpu.sweep import Sweep

        plan = self._live()
        if self._sweep is None:
            self._sweep = Sweep(self._place.device, self._place.kernels(self._kernels), plan)
        return self._sweep
