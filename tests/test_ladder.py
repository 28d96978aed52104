"""The ladder: the highest rung that passes computes, and every step down is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from node import bundle as bundles
from node.bundle import Bundle
from node.domain.errors import (
    DeviceLost,
    DeviceMemoryFull,
    InferenceError,
    RuntimeUnavailable,
)
from node.domain.event import EventKind
from node.domain.volume import Volume
from node.ladder import Footing, Ladder, Losses, NoRung, Rung
from node.residency import Need
from node.runtimes import Runtime
from node.runtimes.onnx import Onnx
from node.runtimes.openvino import OpenVino
from node.verdicts import Records
from tests.conftest import Clock
from tests.engines.package import PARTS, brighter_than, package
from tests.rungs import Device, Fate

WORKING = 2
"""Questions of a verification on noise alone that the ladder asks a network."""


@dataclass
class Books:
    """What the event log was told."""

    told: list[tuple[EventKind, str]] = field(default_factory=list)

    def notice(self, kind: EventKind, words: str) -> None:
        self.told.append((kind, words))

    def of(self, kind: EventKind) -> list[str]:
        return [words for one, words in self.told if one is kind]

    @property
    def alarms(self) -> list[str]:
        return self.of(EventKind.ALARM)


@dataclass
class Place:
    """A package, and where its ladders keep what they know."""

    bundle: Bundle
    state: Path
    clock: Clock
    books: Books = field(default_factory=Books)
    relieve: Callable[[], bool] = bool

    def ladder(self, every_s: float = 0.0, **rungs: Runtime) -> Ladder:
        folder = self.state / "verified"
        footing = Footing(
            Records(folder),
            Losses(folder / "losses"),
            self.books.notice,
            every_s,
            self.clock,
            self.relieve,
        )
        return Ladder(self.bundle, [Rung(kind, one) for kind, one in rungs.items()], footing)


@pytest.fixture
def place(tmp_path: Path, clock: Clock) -> Place:
    brighter_than(tmp_path / "model.onnx", 0.7, steepness=4.0)
    return Place(bundles.read(package(tmp_path, *PARTS)), tmp_path / "state", clock)


@pytest.fixture
def volumes() -> Mapping[str, Volume]:
    voxels = np.zeros((3, 16, 16), np.float32)
    voxels[1, 4:8, 4:8] = 5.0
    return {"flair": Volume(voxels, np.eye(4), "1.2")}


@pytest.fixture
def altered(place: Place) -> Iterator[Fate]:
    """A device whose plan is of another network."""
    yield Fate(model=brighter_than(place.state.parent / "other", 1.0, steepness=4.0))


def runs(ladder: Ladder) -> str:
    return ladder.computation.runtime


def test_the_first_rung_that_passes_computes(place: Place, volumes: Mapping[str, Volume]) -> None:
    ladder = place.ladder(gpu=Device("GPU"), onnx=Onnx(threads=1))
    assert len(ladder.examine(volumes, "job").findings) == 1
    assert runs(ladder) == "GPU"
    assert len(ladder.computation.verification) == 64
    assert place.books.alarms == []
    ladder.close()


def test_openvino_stands_beside_the_reference(place: Place) -> None:
    ladder = place.ladder(openvino=OpenVino(), onnx=Onnx(threads=1))
    ladder.stand()
    assert "OpenVINO" in runs(ladder)
    ladder.close()


def test_a_rung_that_is_missing_is_stepped_over_with_an_alarm(place: Place) -> None:
    gone = Fate(loading=[RuntimeUnavailable("libcuda.so.1 is missing: install the driver")])
    ladder = place.ladder(tensorrt=Device("GPU", gone), onnx=Onnx(threads=1))
    ladder.stand()
    assert "ONNX Runtime" in runs(ladder)
    (alarm,) = place.books.alarms
    assert "tester steps down from tensorrt: libcuda.so.1 is missing" in alarm
    assert "onnx is next" in alarm
    ladder.close()


def test_a_rung_that_answers_otherwise_is_stepped_over_with_gate_value_and_limit(
    place: Place, altered: Fate
) -> None:
    ladder = place.ladder(tensorrt=Device("FP16", altered), onnx=Onnx(threads=1))
    ladder.stand()
    assert "ONNX Runtime" in runs(ladder)
    (alarm,) = place.books.alarms
    assert "from tensorrt: agreement of labels is 0." in alarm
    assert "at least 0.999 is wanted" in alarm
    assert "Dice of label 1 is 0." in alarm
    assert "`ai-node engine verify tester`" in alarm
    assert altered.closed == altered.loads == 1
    ladder.close()


def test_an_answer_without_numbers_is_stepped_over(place: Place) -> None:
    ladder = place.ladder(fp16=Device("FP16", Fate(nan=True)), fp32=Device("FP32"))
    ladder.stand()
    assert runs(ladder) == "FP32"
    assert "share of finite values is 0" in place.books.alarms[0]
    ladder.close()


def test_where_nothing_passes_the_engine_does_not_start_and_says_why_of_each_rung(
    place: Place, altered: Fate, volumes: Mapping[str, Volume]
) -> None:
    gone = Fate(loading=[RuntimeUnavailable("no device")] * 9)
    ladder = place.ladder(tensorrt=Device("FP16", altered), openvino=Device("CPU", gone))
    with pytest.raises(NoRung) as caught:
        ladder.stand()
    words = str(caught.value)
    assert words.startswith("nothing can compute the engine tester: tensorrt: agreement of labels")
    assert words.endswith("openvino: no device")
    assert "no rung is left" in place.books.alarms[-1]
    # Its studies wait, and ask nobody to try each time.
    with pytest.raises(NoRung):
        ladder.examine(volumes, "job")
    assert gone.loads == 1
    place.clock.advance(1000.0)
    gone.loading.clear()
    assert len(ladder.examine(volumes, "job").findings) == 1
    ladder.close()


def test_a_restart_with_everything_the_same_verifies_nothing_again(place: Place) -> None:
    for _ in range(2):
        ladder = place.ladder(gpu=Device("GPU driver 1"))
        ladder.stand()
        ladder.close()
    assert len(place.books.of(EventKind.ENGINE)) == 1


@pytest.mark.parametrize("what", ["driver", "package", "golden"])
def test_a_change_of_driver_package_or_golden_input_verifies_again(place: Place, what: str) -> None:
    place.ladder(gpu=Device("GPU driver 1")).stand()
    folder = place.bundle.folder
    if what == "package":
        brighter_than(folder / "model.onnx", 0.6, steepness=4.0)
        place.bundle = bundles.read(package(folder, *PARTS))
    elif what == "golden":
        (folder / "golden").mkdir()
        np.save(folder / "golden/input.npy", np.zeros((1, 1, 8, 8), np.float32))
    place.ladder(gpu=Device("GPU driver 2" if what == "driver" else "GPU driver 1")).stand()
    assert len(place.books.of(EventKind.ENGINE)) == 2


def test_a_network_that_serves_is_verified_again_after_a_while(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate()
    ladder = place.ladder(every_s=3600.0, gpu=Device("GPU", fate), onnx=Onnx(threads=1))
    ladder.examine(volumes, "job")
    place.clock.advance(3599.0)
    ladder.examine(volumes, "job")
    assert len(place.books.of(EventKind.ENGINE)) == 1
    place.clock.advance(2.0)
    fate.nan = True
    assert len(ladder.examine(volumes, "job").findings) == 1
    assert "ONNX Runtime" in runs(ladder)
    assert "share of finite values" in place.books.alarms[0]
    ladder.close()


@pytest.mark.parametrize("kept", [False, True], ids=["it serves", "it was kept"])
def test_a_verdict_from_the_future_is_not_believed(place: Place, kept: bool) -> None:
    """The clock was a year ahead, and was set right."""
    ladder = place.ladder(every_s=3600.0, gpu=Device("GPU"))
    place.clock.advance(365 * 86_400.0)
    ladder.stand()
    place.clock.advance(-365 * 86_400.0)
    if kept:
        ladder.close()
        ladder = place.ladder(every_s=3600.0, gpu=Device("GPU"))
    ladder.stand()
    assert len(place.books.of(EventKind.ENGINE)) == 2
    ladder.close()


def test_a_full_device_has_this_study_computed_one_rung_lower_and_the_next_at_the_top(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    full = Fate(inferring=[None] * WORKING + [DeviceMemoryFull("4.2 GB do not fit")])
    ladder = place.ladder(gpu=Device("GPU", full), onnx=Onnx(threads=1))
    assert len(ladder.examine(volumes, "job").findings) == 1
    assert "ONNX Runtime" in runs(ladder)
    (alarm,) = place.books.alarms
    assert "from gpu: network: 4.2 GB do not fit; onnx is next" in alarm
    ladder.examine(volumes, "next")
    assert runs(ladder) == "GPU"
    assert len(place.books.alarms) == 1
    ladder.close()


@pytest.mark.parametrize("computing", [False, True], ids=["loading", "computing"])
def test_on_a_full_device_others_make_room_before_it_steps_down(
    place: Place, volumes: Mapping[str, Volume], computing: bool
) -> None:
    full: list[InferenceError | None] = [DeviceMemoryFull("full"), DeviceMemoryFull("full")]
    works: list[InferenceError | None] = [None] * WORKING
    fate = Fate(inferring=works + full) if computing else Fate(loading=full)
    others = ["second", "first"]

    def relieve() -> bool:
        return bool(others) and bool(others.pop())

    place.relieve = relieve
    ladder = place.ladder(gpu=Device("GPU", fate), onnx=Onnx(threads=1))
    ladder.examine(volumes, "job")
    assert runs(ladder) == "GPU"
    assert (others, place.books.alarms) == ([], [])
    ladder.close()


def test_an_engine_needs_of_the_device_what_its_network_uses_there(place: Place) -> None:
    gpu = place.ladder(gpu=Device("GPU", Fate(used=700)))
    assert gpu.need == Need()
    gpu.stand()
    assert gpu.need == Need(700)
    gpu.rest()
    assert gpu.need == Need()
    cpu = place.ladder(onnx=Onnx(threads=1))
    cpu.stand()
    assert cpu.need == Need()
    cpu.close()


def test_a_plan_that_fails_on_a_study_is_verified_anew_and_left_out_after_three(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate()
    ladder = place.ladder(every_s=3600.0, gpu=Device("GPU", fate), onnx=Onnx(threads=1))
    for study in range(3):
        fate.inferring = [None] * WORKING + [InferenceError("the plan does not run")]
        assert len(ladder.examine(volumes, f"job {study}").findings) == 1
        assert "ONNX Runtime" in runs(ladder)
    assert fate.loads == 3
    ladder.examine(volumes, "job")
    assert fate.loads == 3
    assert len(place.books.alarms) == 3
    place.clock.advance(3601.0)
    ladder.examine(volumes, "job")
    assert runs(ladder) == "GPU", "the next verification lets it try again"
    ladder.close()


def test_a_study_that_fails_on_the_only_rung_that_loads_does_not_make_the_others_wait(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate, gone = Fate(), Fate(loading=[RuntimeUnavailable("no library")] * 99)
    ladder = place.ladder(gpu=Device("GPU", fate), openvino=Device("CPU", gone))
    for attempt in range(4):
        working = [None] * (0 if attempt else WORKING)
        fate.inferring = [*working, InferenceError("the plan does not run")]
        with pytest.raises(InferenceError, match="the plan does not run") as caught:
            ladder.examine(volumes, f"bad {attempt}")
        assert not isinstance(caught.value, NoRung), "such an attempt has to count"
        fate.inferring = []
        assert len(ladder.examine(volumes, "good").findings) == 1
        assert runs(ladder) == "GPU"
    ladder.close()


def test_one_study_that_fails_at_every_attempt_does_not_have_a_rung_left_out(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate()
    ladder = place.ladder(gpu=Device("GPU", fate), onnx=Onnx(threads=1))
    for _ in range(4):
        fate.inferring = [None] * WORKING + [InferenceError("the plan does not run")]
        ladder.examine(volumes, "job")
    fate.inferring = []
    ladder.examine(volumes, "next")
    assert runs(ladder) == "GPU"
    ladder.close()


def test_studies_that_no_rung_computes_have_none_left_out(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    upper, lower = Fate(), Fate()
    ladder = place.ladder(gpu=Device("GPU", upper), cpu=Device("CPU", lower))
    for study in range(4):
        for fate in (upper, lower):
            fate.inferring = [None] * WORKING + [InferenceError("infinity")]
            if fate is lower and study:
                fate.inferring = [InferenceError("infinity")]
        with pytest.raises(InferenceError, match="infinity"):
            ladder.examine(volumes, f"bad {study}")
    upper.inferring, lower.inferring = [], []
    ladder.examine(volumes, "good")
    assert runs(ladder) == "GPU"
    ladder.close()


def test_a_study_that_does_not_fit_the_engine_is_no_fault_of_the_rung(place: Place) -> None:
    ladder = place.ladder(gpu=Device("GPU"), onnx=Onnx(threads=1))
    with pytest.raises(InferenceError, match="no volume was given"):
        ladder.examine({}, "job")
    assert place.books.alarms == []
    ladder.close()


def test_a_lost_device_ends_it_at_once_and_the_rung_is_left_out_after_the_second(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    for _ in range(2):
        lost = Fate()
        ladder = place.ladder(gpu=Device("GPU", lost), onnx=Onnx(threads=1))
        ladder.stand()
        lost.inferring = [DeviceLost("CUDA error 700")]
        with pytest.raises(DeviceLost):
            ladder.examine(volumes, "job")
        ladder.close()
        assert lost.closed == 0, "nothing may touch a device that is lost"
    assert "the device of gpu is lost: network: CUDA error 700" in place.books.alarms[-1]
    # The next process.
    ladder = place.ladder(gpu=Device("GPU"), onnx=Onnx(threads=1))
    ladder.examine(volumes, "job")
    assert "ONNX Runtime" in runs(ladder)
    assert "its device was lost 2 times within an hour" in place.books.alarms[-1]
    ladder.close()
    place.clock.advance(3601.0)
    ladder = place.ladder(gpu=Device("GPU"), onnx=Onnx(threads=1))
    ladder.stand()
    assert runs(ladder) == "GPU"
    ladder.close()


def test_a_rung_whose_plan_is_being_built_is_waited_for_on_a_lower_one_without_an_alarm(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate(plan="its plan is being built: 40 % done")
    ladder = place.ladder(tensorrt=Device("GPU", fate), onnx=Onnx(threads=1))
    ladder.examine(volumes, "job")
    assert "ONNX Runtime" in runs(ladder)
    assert place.books.alarms == []
    waits = place.books.of(EventKind.ENGINE)[0]
    assert "tensorrt cannot serve yet: its plan is being built: 40 % done; until then onnx" in waits
    fate.plan = ""
    ladder.examine(volumes, "job")
    assert runs(ladder) == "GPU"
    ladder.close()


def test_a_former_plan_serves_until_the_new_one_is_there(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate(plan="its plan is being built", former=True)
    ladder = place.ladder(tensorrt=Device("GPU", fate))
    ladder.examine(volumes, "job")
    ladder.examine(volumes, "job")
    assert fate.loads == 1
    fate.plan = ""
    ladder.examine(volumes, "job")
    ladder.examine(volumes, "job")
    assert fate.loads == 2
    ladder.close()


def test_an_engine_that_rests_is_loaded_again_when_it_is_wanted(
    place: Place, volumes: Mapping[str, Volume]
) -> None:
    fate = Fate()
    ladder = place.ladder(gpu=Device("GPU", fate))
    ladder.stand()
    ladder.rest()
    assert fate.closed == 1
    assert runs(ladder) == "GPU", "what computed the last study is known still"
    ladder.examine(volumes, "job")
    assert (fate.loads, len(place.books.of(EventKind.ENGINE))) == (2, 1)
    ladder.close()


def test_of_an_ensemble_every_network_is_verified(place: Place, altered: Fate) -> None:
    folder = place.bundle.folder
    second = brighter_than(folder / "second.onnx", 0.5, steepness=4.0)
    member = f'[[member]]\nmodel = "second.onnx"\nsha256 = "{bundles.file_digest(second)}"\n'
    place.bundle = bundles.read(package(folder, *PARTS, member))
    # The device computes both networks from one plan.
    ladder = place.ladder(gpu=Device("GPU", altered), onnx=Onnx(threads=1))
    ladder.stand()
    (alarm,) = place.books.alarms
    assert "tester model.onnx: Dice of label 1" in alarm
    assert "tester second.onnx: Dice of label 1" in alarm
    ladder.close()
