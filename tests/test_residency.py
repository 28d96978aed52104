"""Engines share a device's memory: who is loaded, who stays, and who goes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.errors import DeviceLost, DeviceMemoryFull, InferenceError
from node.residency import Need, Residency, Resident, need_of

MIB = 1 << 20
NAMES = "abcd"


@dataclass
class Engine:
    """Something loaded that must be closed once."""

    name: str
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class Device:
    """Loads engines, as long as it likes to."""

    made: list[Engine] = field(default_factory=list)
    refusals: int = 0

    def load(self, name: str) -> Engine:
        if self.refusals:
            self.refusals -= 1
            raise DeviceMemoryFull("another process has it")
        self.made.append(Engine(name))
        return self.made[-1]

    def resident(self, name: str, need: Need) -> Resident[Engine]:
        return Resident(name, need, lambda: self.load(name))

    @property
    def open(self) -> list[str]:
        return sorted(engine.name for engine in self.made if not engine.closed)


def residency(
    device: Device, needs: dict[str, Need], capacity: int, context: int = 0
) -> Residency[Engine]:
    return admitted(
        [device.resident(name, need) for name, need in needs.items()], capacity, context
    )


def admitted(
    residents: Iterable[Resident[Engine]],
    capacity: int,
    context: int = 0,
) -> Residency[Engine]:
    engines = Residency[Engine](capacity, context)
    for resident in residents:
        engines.admit(resident)
    return engines


def use(engines: Residency[Engine], *names: str) -> None:
    for name in names:
        with engines.hold(name) as engine:
            assert (engine.name, engine.closed) == (name, 0)


def test_engine_is_loaded_when_it_is_wanted_and_stays() -> None:
    device = Device()
    engines = residency(device, {"a": Need(10), "b": Need(10)}, 20)
    assert not engines.loaded
    use(engines, "a", "a", "b", "a")
    assert [engine.name for engine in device.made] == ["a", "b"]
    assert engines.loaded == ("b", "a")
    engines.close()
    assert [engine.closed for engine in device.made] == [1, 1]


def test_the_one_used_longest_ago_goes_first_and_comes_back() -> None:
    device = Device()
    engines = residency(device, {name: Need(10) for name in "abc"}, 20)
    use(engines, "a", "b", "a", "c")
    assert engines.loaded == ("a", "c")
    use(engines, "b")
    assert engines.loaded == ("c", "b")
    assert device.open == ["b", "c"]


def test_scratch_is_shared_and_context_counted() -> None:
    device = Device()
    needs = {"a": Need(10, 5, 40), "b": Need(10, 5, 30), "c": Need(0, 0, 41)}
    engines = residency(device, needs, 170, context=100)
    use(engines, "a", "b")
    assert engines.taken == 100 + 15 + 15 + 40
    use(engines, "c")
    assert engines.loaded == ("b", "c")
    assert engines.taken == 100 + 15 + 41


def test_what_is_in_use_never_goes() -> None:
    device = Device()
    engines = residency(device, {name: Need(10 * MIB) for name in "abc"}, 20 * MIB)
    with engines.hold("a"), engines.hold("b"):
        words = r"engine c needs 10 MiB of device memory, and of 20 MiB only 0 are free"
        with pytest.raises(DeviceMemoryFull, match=words), engines.hold("c"):
            pytest.fail("there is no room")
        assert not engines.unload("a")
        assert not engines.relieve()
        assert device.open == ["a", "b"]
    use(engines, "c")
    assert engines.loaded == ("b", "c")


def test_engine_that_seems_larger_than_the_device_may_try_it_alone() -> None:
    device = Device()
    engines = residency(device, {"a": Need(30), "b": Need(1)}, 20)
    use(engines, "b", "a")
    assert engines.loaded == ("a",)
    use(engines, "b")
    assert device.open == ["b"]
    with engines.hold("b"), pytest.raises(DeviceMemoryFull, match="smaller batch"):
        use(engines, "a")


def test_memory_that_other_processes_took_is_made_up_for() -> None:
    device = Device()
    engines = residency(device, {name: Need(1) for name in "abc"}, 100)
    use(engines, "a", "b")
    device.refusals = 1
    use(engines, "c")
    assert engines.loaded == ("b", "c")
    use(engines, "a")
    device.refusals = 3
    with pytest.raises(DeviceMemoryFull, match="another process"):
        use(residency(device, {"d": Need(1)}, 100), "d")


def test_what_an_engine_takes_indeed_counts_from_then_on() -> None:
    device, actual = Device(), {"a": Need(10), "b": Need(10)}
    residents = [
        replace(device.resident(name, Need(1)), measure=lambda engine: actual[engine.name])
        for name in actual
    ]
    engines = admitted(residents, 25)
    use(engines, "a", "b")
    assert engines.taken == 20
    with engines.hold("b"):
        actual["b"] = Need(10, 0, 6)
    assert engines.loaded == ("b",)
    assert device.open == ["b"]
    use(engines, "a")
    assert engines.loaded == ("a",), "by now both are known not to fit"


def test_a_session_tells_what_is_its_own_and_what_is_shared() -> None:
    used = {"device bytes": 100, "scratch bytes": 40, "host bytes": 7}
    assert need_of(used) == Need(weights=60, scratch=40)
    assert need_of({}) == Need(0)


def test_lost_device_passes_and_nothing_is_thought_to_be_loaded() -> None:
    def lost() -> Engine:
        raise DeviceLost("illegal address")

    engines = admitted([Resident("a", Need(1), lost)], 10)
    with pytest.raises(DeviceLost), engines.hold("a"):
        pytest.fail("it cannot be loaded")
    assert engines.loaded == ()


def test_second_thread_is_refused() -> None:
    engines = residency(Device(), {"a": Need(1)}, 10)
    use(engines, "a")
    raised: list[BaseException] = []

    def intrude() -> None:
        try:
            use(engines, "a")
        except InferenceError as error:
            raised.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join(30)
    assert "belongs to one thread" in str(raised[0])


SIZE = st.integers(0, 12)
NEED = st.builds(Need, SIZE, SIZE, SIZE)
STEP = st.tuples(
    st.sampled_from(["use", "use", "take", "give", "unload", "relieve"]), st.sampled_from(NAMES)
)


class Model:
    """Who should be loaded, in the order of use, and who is held."""

    def __init__(self, needs: dict[str, Need], capacity: int, context: int) -> None:
        self.needs, self.capacity, self.context = needs, capacity, context
        self.loaded: list[str] = []
        self.held: list[str] = []

    def total(self, names: list[str]) -> int:
        needs = [self.needs[name] for name in names]
        scratch = [need.scratch for need in needs]
        return self.context + sum(n.weights + n.buffers for n in needs) + max([0, *scratch])

    def idle(self) -> list[str]:
        return [name for name in self.loaded if name not in self.held]

    def want(self, name: str) -> bool:
        """Whether it can be had."""
        while (
            self.loaded
            and name not in self.loaded
            and self.total([*self.loaded, name]) > self.capacity
        ):
            if not self.idle():
                return False
            self.loaded.remove(self.idle()[0])
        if name in self.loaded:
            self.loaded.remove(name)
        self.loaded.append(name)
        return True


@given(
    needs=st.tuples(NEED, NEED, NEED, NEED),
    capacity=st.integers(10, 60),
    steps=st.lists(STEP, min_size=5, max_size=30),
)
def test_any_history_is_that_of_the_model(
    needs: tuple[Need, ...], capacity: int, steps: list[tuple[str, str]]
) -> None:
    device, context = Device(), 5
    named = dict(zip(NAMES, needs, strict=True))
    engines = residency(device, named, capacity, context)
    model = Model(named, capacity, context)
    held: list[tuple[str, ExitStack]] = []
    for step, name in steps:
        if step in {"use", "take"}:
            wanted = model.want(name)
            stack = ExitStack()
            try:
                assert stack.enter_context(engines.hold(name)).closed == 0
                had = True
            except DeviceMemoryFull:
                had = False
            assert had is wanted
            if had and step == "take":
                held.append((name, stack))
                model.held.append(name)
            stack.close() if step == "use" else None
        elif step == "give" and held:
            given_back, stack = held.pop()
            model.held.remove(given_back)
            stack.close()
        elif step == "unload":
            gone = name in model.idle()
            assert engines.unload(name) is gone
            model.loaded = [one for one in model.loaded if one != name or not gone]
        elif step == "relieve":
            idle = model.idle()
            assert engines.relieve() is bool(idle)
            model.loaded = [one for one in model.loaded if one not in idle[:1]]
        assert list(engines.loaded) == model.loaded
        assert engines.taken == model.total(model.loaded)
        assert engines.taken <= capacity or len(model.loaded) < 2
        assert device.open == sorted(model.loaded)
    assert all(engine.closed <= 1 for engine in device.made)
