"""Which engines are loaded on a device: a ledger of its memory admits them, and lets some go.

A device computes one network at a time, so scratch memory is shared: the ledger holds the device's
own context, what each engine keeps for itself, and the largest scratch. An engine is loaded when it
is wanted; for its sake those go that were used longest ago, never one in use.

What happens to a study when the memory is not enough all the same is decided elsewhere: the sliding
window takes smaller portions (``node.gpu.sweep``), and then the engine steps down its ladder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import structlog

from node.domain.errors import DeviceMemoryFull, InferenceError

_log = structlog.get_logger()

CONTEXT = 500 << 20
"""Bytes that a driver's context and its kernels take before the first engine is loaded."""


class Closable(Protocol):
    """What is loaded: a session, or an engine around one."""

    def close(self) -> None:
        """Give back its memory."""


T_co = TypeVar("T_co", bound=Closable, covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of device memory that an engine takes."""

    weights: int = 0
    """Kept for as long as it is loaded."""
    buffers: int = 0
    """For its inputs and outputs, kept as well."""
    scratch: int = 0
    """While it computes; engines share it, for one computes at a time."""

    @property
    def own(self) -> int:
        """Bytes that go back when it is unloaded."""
        return self.weights + self.buffers


def unmeasured(engine: object) -> Need | None:
    """Nobody knows what an engine takes."""
    return None


@dataclass(frozen=True, slots=True)
class Resident(Generic[T_co]):
    """An engine that may be loaded: what it needs, and how."""

    name: str
    need: Need
    load: Callable[[], T_co]
    """Raises InferenceError; DeviceMemoryFull when other processes have the memory."""
    measure: Callable[[T_co], Need | None] = unmeasured
    """What it takes indeed, once it is loaded and whenever it has computed; None: not known."""


def need_of(used: Mapping[str, int]) -> Need:
    """What a session says that it uses (``node.runtimes.Measured``) as a need."""
    scratch = used.get("scratch bytes", 0)
    return Need(weights=max(0, used.get("device bytes", 0) - scratch), scratch=scratch)


@dataclass(slots=True)
class _Loaded(Generic[T]):
    engine: T
    need: Need
    used: int
    holders: int = 0


class Residency(Generic[T_co]):
    """The engines on one device. Belongs to the thread that uses it first."""

    def __init__(self, capacity: int, context: int = CONTEXT) -> None:
        """Nothing is loaded yet. ``capacity`` is what the node may take of the device, in bytes."""
        self._residents: dict[str, Resident[T_co]] = {}
        self._capacity = capacity
        self._context = context
        self._loaded: dict[str, _Loaded[T_co]] = {}
        self._turn = 0
        self._owner: int | None = None

    def admit(self, resident: Resident[T_co]) -> None:
        """From now on an engine may be held; it is not loaded yet."""
        self._residents[resident.name] = resident

    @contextmanager
    def hold(self, name: str) -> Iterator[T_co]:
        """An engine, loaded if need be, that stays for as long as the block runs.

        One that is larger than the device, as it seems, may try it when it is alone there. Raises
        KeyError for a name that nobody gave; DeviceMemoryFull when there is no room beside what is
        in use; what its loading raises; and InferenceError in a second thread.
        """
        self._refuse_other_thread()
        resident = self._residents[name]
        loaded = self._loaded.get(name) or self._load(resident)
        self._turn += 1
        loaded.used = self._turn
        loaded.holders += 1
        try:
            yield loaded.engine
        finally:
            self._measure(resident, loaded)
            loaded.holders -= 1

    @property
    def loaded(self) -> tuple[str, ...]:
        """The engines on the device, the one used longest ago first."""
        return tuple(sorted(self._loaded, key=lambda name: self._loaded[name].used))

    @property
    def taken(self) -> int:
        """Bytes of the device that are spoken for."""
        return self._sum([one.need for one in self._loaded.values()])

    def relieve(self) -> bool:
        """Unload the engine used longest ago that is not in use; whether there was one.

        For whoever is refused memory by the device although the ledger had some left.
        """
        self._refuse_other_thread()
        idle = self._idle()
        if idle:
            self._drop(idle[0], "the device has no room left")
        return bool(idle)

    def unload(self, name: str) -> bool:
        """Unload an engine that is not in use; whether it was loaded and is not any more."""
        self._refuse_other_thread()
        loaded = self._loaded.get(name)
        if loaded is None or loaded.holders:
            return False
        self._drop(name, "it is not wanted any more")
        return True

    def close(self) -> None:
        """Unload everything that is not in use."""
        for name in self.loaded:
            self.unload(name)

    def _load(self, resident: Resident[T_co]) -> _Loaded[T_co]:
        self._make_room(resident)
        while True:
            try:
                engine = resident.load()
                break
            except DeviceMemoryFull:
                # The ledger knows nothing of other processes: what they took shows only here.
                if not self.relieve():
                    raise
        loaded = _Loaded(engine, resident.need, self._turn, holders=1)
        self._loaded[resident.name] = loaded
        self._measure(resident, loaded)
        loaded.holders = 0
        _log.info("engine loaded", engine=resident.name, device_mib=loaded.need.own >> 20)
        return loaded

    def _measure(self, resident: Resident[T_co], loaded: _Loaded[T_co]) -> None:
        """Enter what an engine takes indeed; where that is more than there was, others go."""
        need = resident.measure(loaded.engine)
        if need is None or need == loaded.need:
            return
        loaded.need = need
        self._residents[resident.name] = replace(resident, need=need)
        while self.taken > self._capacity and self.relieve():
            pass

    def _make_room(self, resident: Resident[T_co]) -> None:
        while self._loaded and self._with(resident) > self._capacity:
            idle = self._idle()
            if not idle:
                raise DeviceMemoryFull(self._too_much(resident))
            self._drop(idle[0], f"to make room for {resident.name}")

    def _too_much(self, resident: Resident[T_co]) -> str:
        wanted = self._with(resident) - self.taken
        return (
            f"engine {resident.name} needs {wanted >> 20} MiB of device memory, and of "
            f"{self._capacity >> 20} MiB only {max(0, self._capacity - self.taken) >> 20} are "
            f"free: give its runtime a smaller batch, or the device fewer engines"
        )

    def _drop(self, name: str, why: str) -> None:
        # Out of the ledger first: whatever closing raises, it is not to be used again.
        loaded = self._loaded.pop(name)
        _log.info("engine unloaded", engine=name, why=why)
        loaded.engine.close()

    def _idle(self) -> list[str]:
        return [name for name in self.loaded if not self._loaded[name].holders]

    def _with(self, resident: Resident[T_co]) -> int:
        return self._sum([resident.need, *(one.need for one in self._loaded.values())])

    def _sum(self, needs: list[Need]) -> int:
        own = sum(need.own for need in needs)
        return self._context + own + max((need.scratch for need in needs), default=0)

    def _refuse_other_thread(self) -> None:
        if self._owner is None:
            self._owner = threading.get_ident()
        elif self._owner != threading.get_ident():
            raise InferenceError("a device belongs to one thread, and another one has it")
