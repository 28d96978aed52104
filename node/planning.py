"""The plans that a worker's engines need: fetched from the cache, and built when there is time.

Where something else can serve meanwhile, a plan that is missing is built in quiet hours, in a
process of its own; where nothing can, it is built at once. The runtime that the ladder is given
says so itself (``Planned.pending``), so that an engine on its way to its plan raises no alarm.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import structlog

from node.bundle import Bundle
from node.compiling import Bounds, BuildOrder, Built, Cancelled
from node.compiling import compile as build_apart
from node.domain.errors import InferenceError, JobCancelled, RuntimeUnavailable
from node.domain.event import EventKind
from node.domain.plan import Key
from node.domain.quiet import QuietHours, may_build
from node.domain.tensor import TensorSpec
from node.fitting import fitted
from node.gpu.recipe import Recipe
from node.plans import PLAN, TIMING, Plans
from node.probes import input_shape
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.runtimes.tensorrt import Rows, TensorRt
from node.windows import Window

_log = structlog.get_logger()

_PLANE, _CUBE = (32, 256, 1024), (32, 96, 256)
"""Smallest, usual and largest length of an axis that nothing fixes, in two and three dimensions."""
_AGAIN_S = 86_400.0
"""Seconds after which a plan that could not be built is tried again."""

_BESIDE_S = 5.0
"""Seconds of waiting for another process after which one does not build oneself in the same go."""

_MAY_DIFFER = {"driver", "workspace", "level"}
"""Of a key and of its settings: what only decides how fast a plan is, or when it was built."""

Notice = Callable[[EventKind, str], None]
Builder = Callable[[BuildOrder, Bounds, Cancelled], Built]


class _Elsewhere(RuntimeUnavailable):
    """Another process takes its time to build the plan; it will be there one day."""


def apart(order: BuildOrder, bounds: Bounds, cancelled: Cancelled) -> Built:
    """Build in a process of its own."""
    return build_apart(order, bounds, cancelled=cancelled)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """When a worker builds, how long that may take, and who is told.

    ``hours`` None: at any time. ``clock`` gives seconds since the epoch.
    """

    hours: QuietHours | None
    notice: Notice
    clock: Callable[[], float] = time.time
    bounds: Bounds = Bounds()
    builder: Builder = apart


class Planner:
    """The plans of one worker. Its ``step`` may run in another thread than ``fetch``."""

    def __init__(self, plans: Plans, circumstances: Circumstances) -> None:
        """Nothing is missing yet."""
        self._plans = plans
        self._here = circumstances
        self._missing: dict[str, Recipe] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._rejected: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def kernels(self) -> Path:
        """Where the kernels of the sliding window are kept, compiled for a device."""
        return self._plans.root / "kernels"

    def fetch(self, recipe: Recipe, *, alone: bool) -> bytes:
        """A plan, or one for a former driver while it is not there; where there is neither, and
        nothing else can serve, it is built now.

        Raises RuntimeUnavailable while it waits to be built; InferenceError when that has failed.
        """
        key = Key.of(recipe.identity())
        plan = self._plans.load(key)
        if plan is not None:
            self._settle(key.digest)
            return plan
        at, reason = self._failed.get(key.digest, (0.0, ""))
        if reason and self._here.clock() - at < _AGAIN_S:
            raise InferenceError(reason)
        former = self._former(key)
        if former is None and alone:
            return self._built(key, recipe)
        with self._lock:
            self._missing[key.digest] = recipe
        if former is None:
            raise RuntimeUnavailable(self._words(recipe))
        _log.warning("former plan serves", model=recipe.model.name, why=self._words(recipe))
        return former

    def build(self, recipe: Recipe) -> bytes:
        """The plan, kept or built now, whatever the hour. Raises JobCancelled, InferenceError."""
        return self._built(Key.of(recipe.identity()), recipe)

    def reject(self, recipe: Recipe, reason: str) -> None:
        """The plan that ``fetch`` gave does not load: it is put aside, and built anew."""
        key = Key.of(recipe.identity())
        self._rejected.add(key.digest)
        self._plans.quarantine(key, reason)

    def pending(self, options: TensorRt, model: Path) -> str:
        """In words, what plan of a model waits to be built; "" when none does.

        Raises InferenceError when no plan can be made of it here.
        """
        digest = Key.of(options.recipe(model).identity()).digest
        recipe = self._missing.get(digest)
        return self._words(recipe) if recipe is not None else ""

    @property
    def waits(self) -> bool:
        """Whether any plan is missing."""
        return bool(self._missing)

    def step(self) -> bool:
        """Build one plan, if one is missing and the time is right. Whether one was tried."""
        now = datetime.fromtimestamp(self._here.clock()).astimezone()
        with self._lock:
            missing = dict(self._missing)
        if not missing or not may_build(now, self._here.hours):
            return False
        digest, recipe = next(iter(missing.items()))
        try:
            self._built(Key.of(recipe.identity()), recipe)
        except (JobCancelled, _Elsewhere):
            return False
        except InferenceError as error:
            self._failed[digest] = (self._here.clock(), str(error))
            self._settle(digest)
            _log.error("plan cannot be built", model=recipe.model.name, reason=str(error))
            self._here.notice(EventKind.ALARM, str(error))
        return True

    def stop(self) -> None:
        """What is being built is given up."""
        self._stopping.set()

    def _built(self, key: Key, recipe: Recipe) -> bytes:
        """The plan, kept or built now. Waiting for another process takes no longer than a build
        may, and who has waited does not build as well: whoever watches us counts on that."""
        since = time.monotonic()

        def build(folder: Path) -> Mapping[str, Any]:
            begun = time.monotonic()
            order = BuildOrder(recipe, folder / PLAN, folder / TIMING)
            if begun - since > _BESIDE_S:
                raise _Elsewhere(f"another process has not built the plan of {recipe.model.name}")
            told = self._here.builder(order, self._here.bounds, self._stopping.is_set).told
            seconds = time.monotonic() - begun
            name, device = recipe.model.name, recipe.device
            _log.info("plan built", model=name, plan=key.digest[:12], seconds=round(seconds, 1))
            words = f"the plan of {name} for {device} was built in {seconds:.0f} s"
            self._here.notice(EventKind.ENGINE, words)
            return told

        plan = self._plans.obtain(key, build, partial(self._check, recipe, since))
        self._settle(key.digest)
        return plan

    def _check(self, recipe: Recipe, since: float) -> None:
        """Called while another process builds the plan."""
        if time.monotonic() - since > self._here.bounds.timeout_s:
            raise _Elsewhere(f"another process builds the plan of {recipe.model.name} still")
        if self._stopping.is_set():
            raise JobCancelled(f"building the plan of {recipe.model.name} was cancelled")

    def _former(self, key: Key) -> bytes | None:
        """The plan used last that differs in nothing that changes what it computes."""
        if key.digest in self._rejected:
            return None
        wanted = _lasting(asdict(key))
        alike = (one for one in reversed(self._plans.kept()) if one.key)
        same = next((one for one in alike if _lasting(one.key) == wanted), None)
        return self._plans.load(same.digest) if same is not None else None

    def _settle(self, digest: str) -> None:
        with self._lock:
            self._missing.pop(digest, None)

    def _words(self, recipe: Recipe) -> str:
        hours = self._here.hours
        when = f"that happens between {str(hours).replace('-', ' and ')}" if hours else "it is next"
        return f"the plan of {recipe.model.name} for {recipe.device} is not built yet; {when}"


@dataclass(frozen=True, slots=True)
class _Shelf:
    """A planner as a runtime sees it (``node.gpu.recipe.PlanStore``)."""

    planner: Planner
    alone: bool

    @property
    def kernels(self) -> Path:
        """Where compiled kernels are kept."""
        return self.planner.kernels

    def fetch(self, recipe: Recipe) -> bytes:
        """The plan of a recipe. Raises what ``Planner.fetch`` raises."""
        return self.planner.fetch(recipe, alone=self.alone)

    def reject(self, recipe: Recipe, reason: str) -> None:
        """It does not load."""
        self.planner.reject(recipe, reason)


@dataclass(frozen=True)
class Planned:
    """TensorRT for a package, with the plans of a planner: what a ladder is given.

    ``alone``: nothing else can serve while a plan is built.
    """

    options: TensorRt
    bundle: Bundle
    planner: Planner
    alone: bool

    def load(self, model: Path) -> Session:
        """Load the plan of a model. Raises what ``node.runtimes.tensorrt.Kept.load`` raises."""
        return self._tailored.kept(_Shelf(self.planner, self.alone)).load(model)

    def pending(self, model: Path) -> str:
        """Why it cannot be loaded yet; "" when it can."""
        # That none can be made of it is for ``load`` to say, and nothing that time will change.
        with suppress(InferenceError):
            return self.planner.pending(self._tailored, model) if self.planner.waits else ""
        return ""

    @cached_property
    def _tailored(self) -> TensorRt:
        return tailored(self.options, self.bundle)


def _lasting(key: Mapping[str, Any]) -> str:
    """What a former plan must share with the one that is wanted: all that changes what it computes,
    or whether it loads."""
    lasting = {name: value for name, value in key.items() if name not in _MAY_DIFFER}
    settings = lasting.get("settings", ())
    lasting["settings"] = [one for one in settings if one[0] not in _MAY_DIFFER]
    return json.dumps(lasting, sort_keys=True)


def tailored(options: TensorRt, bundle: Bundle) -> TensorRt:
    """The options with profiles for a package's free axes, where the configuration gives none.

    Raises InferenceError when the network does not fit its manifest.
    """
    if options.profiles:
        return options
    session = Onnx(optimise="none").load(bundle.model)
    try:
        window = fitted(bundle.manifest, session)
        rows = {
            spec.name: _rows(bundle, spec, window, options.batch)
            for spec in session.inputs
            if min(spec.shape[1:]) < 0
        }
    finally:
        session.close()
    return replace(options, profiles=rows) if rows else options


def _rows(bundle: Bundle, spec: TensorSpec, window: Window, batch: int) -> Rows:
    """Smallest, usual and largest lengths: of each axis one where window or network fixes it."""
    usual = input_shape(bundle, spec, window)
    first = spec.shape[0] if spec.shape[0] > 0 else 0
    span = _PLANE if window.planar else _CUBE
    asked = window.patch or (0,) * (2 if window.planar else 3)
    begin = 1 if window.channels_last else 2
    rows = []
    for number, count in enumerate((1, batch, batch)):
        row = [first or count, *usual[1:]]
        for axis, want in enumerate(asked, begin):
            if not want and spec.shape[axis] < 0:
                row[axis] = -(-span[number] // window.multiple) * window.multiple
        rows.append(tuple(row))
    return rows[0], rows[1], rows[2]
