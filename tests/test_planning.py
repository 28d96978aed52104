"""Plans of a worker: missed, built when there is time, and taken up by the ladder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from node import bundle as bundles
from node.compiling import Bounds, BuildOrder, Built, Cancelled, compile
from node.domain.errors import InferenceError, JobCancelled, RuntimeUnavailable
from node.domain.event import EventKind
from node.domain.plan import Key
from node.domain.quiet import QuietHours
from node.domain.volume import Volume
from node.gpu.recipe import Recipe, digest
from node.ladder import Footing, Ladder, Losses, Rung
from node.planning import Circumstances, Planned, Planner, tailored
from node.plans import Plans
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.runtimes.tensorrt import TensorRt
from node.verdicts import Records
from tests.conftest import Clock
from tests.engines.package import PARTS, SLICES, brighter_than, package

BUILDS = """
import json, sys
order = json.loads(sys.stdin.readline())
open(order["out"], "wb").write(b"plan of " + order["precision"].encode())
print(json.dumps({"done": {"layers": 3}}), flush=True)
"""
FAILS = """
import json
print(json.dumps({"failed": {"error": "InferenceError", "reason": "NonZero is no layer"}}))
"""


def child(words: str, order: BuildOrder, bounds: Bounds, cancelled: Cancelled) -> Built:
    """A builder in a process of its own."""
    return compile(order, bounds, cancelled=cancelled, command=[sys.executable, "-c", words])


@dataclass
class Yard:
    """A planner and what it told."""

    root: Path
    clock: Clock
    told: list[tuple[EventKind, str]] = field(default_factory=list)

    def planner(
        self, words: str = BUILDS, hours: QuietHours | None = None, seconds: float = 60.0
    ) -> Planner:
        return Planner(
            Plans(self.root / "plans", 10**9, self.clock),
            Circumstances(
                hours, lambda *event: self.told.append(event), self.clock, Bounds(seconds),
                partial(child, words),
            ),
        )  # fmt: skip

    def recipe(self) -> Recipe:
        model = self.root / "model.onnx"
        if not model.exists():
            brighter_than(model, 0.7, steepness=4.0)
        return Recipe(model, digest(model), "tensorrt", "11.4.0.106", "fp16", device="NVIDIA L4")

    def hours_in(self, minutes: int) -> QuietHours:
        """Quiet hours that begin in so many minutes and last for one hour."""
        now = datetime.fromtimestamp(self.clock.now).astimezone()
        begin = (now.hour * 60 + now.minute + minutes) % 1440
        return QuietHours(begin, (begin + 60) % 1440)


@pytest.fixture
def yard(tmp_path: Path, clock: Clock) -> Yard:
    return Yard(tmp_path, clock)


def test_a_plan_that_is_missing_waits_for_quiet_hours_and_is_then_built(yard: Yard) -> None:
    planner = yard.planner(hours=yard.hours_in(minutes=30))
    words = "the plan of model.onnx for NVIDIA L4 is not built yet; that happens between"
    with pytest.raises(RuntimeUnavailable, match=words):
        planner.fetch(yard.recipe(), alone=False)
    assert not planner.step()
    yard.clock.advance(40 * 60)
    assert planner.step()
    assert planner.fetch(yard.recipe(), alone=False) == b"plan of fp16"
    assert not planner.waits
    assert not planner.step()
    ((kind, told),) = yard.told
    assert kind is EventKind.ENGINE
    assert "the plan of model.onnx for NVIDIA L4 was built in" in told


def test_where_nothing_else_serves_a_plan_is_built_at_once(yard: Yard) -> None:
    planner = yard.planner(hours=yard.hours_in(minutes=30))
    assert planner.fetch(yard.recipe(), alone=True) == b"plan of fp16"
    again = yard.planner(FAILS)
    assert again.fetch(yard.recipe(), alone=True) == b"plan of fp16"


def test_kernels_are_kept_beside_the_plans_and_count_as_none(yard: Yard) -> None:
    planner = yard.planner()
    planner.fetch(yard.recipe(), alone=True)
    kept = planner.kernels / "kernels-1"
    kept.write_bytes(b"cubin")
    plans = Plans(yard.root / "plans", 1, yard.clock)
    assert len(plans.kept()) == 1
    plans.evict()
    assert kept.read_bytes() == b"cubin"


@pytest.mark.parametrize("key", ['"words"', "[1]", '{"weights": 1}', "null"])
def test_a_plan_whose_description_is_damaged_is_no_former_plan_and_no_hindrance(
    yard: Yard, key: str
) -> None:
    old = replace(yard.recipe(), driver="580.1")
    planner = yard.planner()
    planner.fetch(old, alone=True)
    (kept,) = Plans(yard.root / "plans", 10**9, yard.clock).kept()
    (kept.folder / "meta.json").write_text(f'{{"key": {key}, "told": {key}}}')
    assert planner.fetch(replace(yard.recipe(), driver="590.2"), alone=True) == b"plan of fp16"


def test_where_no_recipe_can_be_made_no_plan_is_waited_for(yard: Yard) -> None:
    planner = yard.planner(hours=yard.hours_in(minutes=30))
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(yard.recipe(), alone=False)
    # Of an engine beside that one: the package has no network of this precision, and here no card.
    bundle = bundles.read(package(yard.root, *PARTS))
    beside = Planned(TensorRt(precision="int8"), bundle, planner, alone=False)
    with pytest.raises(InferenceError):
        beside.load(bundle.model)
    assert beside.pending(bundle.model) == ""


def test_a_plan_that_another_process_builds_is_waited_for_no_longer_than_a_build_may_take(
    yard: Yard,
) -> None:
    plans, key = Plans(yard.root / "plans", 10**9, yard.clock), Key.of(yard.recipe().identity())
    planner = yard.planner(seconds=0.3)
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(yard.recipe(), alone=False)

    def build(folder: Path) -> dict[str, str]:
        assert not planner.step(), "it looks again at its next turn"
        with pytest.raises(RuntimeUnavailable, match="another process builds"):
            planner.fetch(yard.recipe(), alone=True)
        (folder / "plan").write_bytes(b"plan of another process")
        return {}

    plans.obtain(key, build)
    assert planner.fetch(yard.recipe(), alone=False) == b"plan of another process"
    assert yard.told == []


def test_a_plan_that_cannot_be_built_is_an_alarm_and_tried_again_a_day_later(yard: Yard) -> None:
    planner = yard.planner(FAILS)
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(yard.recipe(), alone=False)
    assert planner.step()
    assert [kind for kind, _ in yard.told] == [EventKind.ALARM]
    with pytest.raises(InferenceError, match="NonZero is no layer"):
        planner.fetch(yard.recipe(), alone=False)
    assert not planner.waits
    yard.clock.advance(86_401.0)
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(yard.recipe(), alone=False)


def test_after_an_update_of_the_driver_the_former_plan_serves_until_the_new_one_is_built(
    yard: Yard,
) -> None:
    old = replace(yard.recipe(), driver="580.1")
    new = replace(yard.recipe(), driver="590.2")
    yard.planner().fetch(old, alone=True)
    planner = yard.planner(BUILDS.replace("plan of", "new plan of"))
    assert planner.fetch(new, alone=False) == b"plan of fp16"
    assert planner.fetch(new, alone=True) == b"plan of fp16"
    assert planner.waits
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(replace(new, version="12.0.0.1"), alone=False)
    assert planner.step()
    assert planner.fetch(new, alone=False) == b"new plan of fp16"


def test_a_former_plan_that_does_not_load_is_not_given_again(yard: Yard) -> None:
    planner = yard.planner()
    planner.fetch(replace(yard.recipe(), driver="580.1"), alone=True)
    new = replace(yard.recipe(), driver="590.2")
    planner.fetch(new, alone=False)
    planner.reject(new, "it is of another version")
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(new, alone=False)


def test_a_plan_that_does_not_load_is_put_aside_and_built_anew(yard: Yard) -> None:
    planner = yard.planner()
    planner.fetch(yard.recipe(), alone=True)
    planner.reject(yard.recipe(), "it is of another card")
    with pytest.raises(RuntimeUnavailable):
        planner.fetch(yard.recipe(), alone=False)


def test_a_worker_that_stops_gives_up_what_it_builds(yard: Yard) -> None:
    planner = yard.planner("import signal; signal.pause()")
    planner.stop()
    with pytest.raises(JobCancelled):
        planner.fetch(yard.recipe(), alone=True)


@dataclass(frozen=True)
class Compiled:
    """A runtime whose plans come from a planner, and whose networks ONNX Runtime computes."""

    planner: Planner
    recipe: Callable[[], Recipe]

    def load(self, model: Path) -> Session:
        assert self.planner.fetch(self.recipe(), alone=False)
        return Onnx(threads=1).load(model)

    def pending(self, model: Path) -> str:
        return "it is not built yet" if self.planner.waits else ""


def test_an_engine_serves_from_a_lower_rung_until_its_plan_is_built(yard: Yard) -> None:
    yard.recipe()
    bundle = bundles.read(package(yard.root, *PARTS))
    planner = yard.planner()
    rungs = [Rung("gpu", Compiled(planner, yard.recipe)), Rung("cpu", Onnx(threads=1))]
    folder = yard.root / "verified"
    footing = Footing(
        Records(folder), Losses(folder / "losses"), lambda *event: yard.told.append(event),
        clock=yard.clock,
    )  # fmt: skip
    ladder = Ladder(bundle, rungs, footing)
    volumes = {"flair": Volume(np.zeros((2, 8, 8), np.float32), np.eye(4), "1.2")}
    ladder.examine(volumes, "first")
    assert [words for _, words in yard.told if "gpu cannot serve yet" in words]
    assert planner.step()
    ladder.examine(volumes, "second")
    assert EventKind.ALARM not in {kind for kind, _ in yard.told}
    assert not [words for _, words in yard.told if "steps down" in words]
    assert ladder.stand() is ladder.stand()
    ladder.close()


def test_free_axes_get_profiles_and_what_window_or_network_fixes_gets_one_length(
    tmp_path: Path,
) -> None:
    brighter_than(tmp_path / "model.onnx", 0.7)
    free = tailored(TensorRt(batch=6), bundles.read(package(tmp_path, *PARTS)))
    assert free.profiles == {"image": ((1, 1, 32, 32), (6, 1, 256, 256), (6, 1, 1024, 1024))}
    patch = SLICES.replace("batch = 4", "batch = 4\npatch = [96, 0]\nmultiple = 48")
    parts = [patch if part == SLICES else part for part in PARTS]
    half = tailored(TensorRt(batch=2), bundles.read(package(tmp_path, *parts)))
    assert half.profiles == {"image": ((1, 1, 96, 48), (2, 1, 96, 288), (2, 1, 96, 1056))}
    given = TensorRt(profiles={"image": ((1, 1, 8, 8),) * 3})
    assert tailored(given, bundles.read(package(tmp_path, *PARTS))) is given
    assert replace(free, profiles={}) == TensorRt(batch=6)
