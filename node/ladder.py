"""The ladder of an engine: what computes its network, and what does where that cannot.

The configuration declares the rungs (``runtime``, then ``fallback``). An engine stands on the
highest one that loads and passes its verification. Every step down is an alarm that says from
where, why and to what; nothing is ever computed by something else in silence.

While a study is computed, what fails on the device (its memory is full, the plan does not run, the
answer is not finite) is computed again one rung lower, in the same attempt. The next study begins
at the top again. A device that is lost can be used by no rung of this process: the process ends,
and after two such ends within an hour the rung is left out.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from node.bundle import Bundle
from node.domain.computation import Computation
from node.domain.errors import (
    DeviceLost,
    DeviceMemoryFull,
    InferenceError,
    RuntimeUnavailable,
    VerificationFailed,
)
from node.domain.event import EventKind
from node.domain.volume import Volume
from node.engine import Engine, Progress
from node.findings import Found
from node.residency import Need, need_of
from node.runtimes import Measured, Runtime
from node.runtimes.onnx import Onnx
from node.verdicts import Records, Verdict
from node.verification import Candidate, Entrant, Reference, verify

_log = structlog.get_logger()

_STRIKES = 3
"""Studies that a rung may fail on, where a lower one computes them, before it is left out until it
is verified anew."""
_LOSSES = 2
"""Lost devices within ``_LOSS_S`` seconds after which a rung is left out."""
_LOSS_S = 3600.0
_AGAIN_S = 900.0
"""Seconds after which an engine that stands nowhere is tried again."""

_IN_NETWORK = re.compile(r"(?:cascade, [^:]+: )*network\b[^:]*: ")
"""How the words of an error begin that the network itself has raised; see ``node.engine``."""

Notice = Callable[[EventKind, str], None]
"""Tells the event log; raises nothing."""


class NoRung(InferenceError):
    """Nothing that the configuration names can compute an engine; its studies wait."""

    retryable = True


@runtime_checkable
class Patient(Protocol):
    """What a runtime may be besides: one whose networks are compiled before they can be loaded."""

    def pending(self, model: Path) -> str:
        """Why a network cannot be loaded yet, in words, while that is being changed; else ""."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A runtime, and the key of the registry by which the configuration calls it."""

    kind: str
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Losses:
    """When devices were lost, by rung; kept in a file, for each loss ends the process."""

    path: Path

    def note(self, rung: str, now: float) -> None:
        """The device of a rung was lost."""
        times = self._times(now)
        times.setdefault(rung, []).append(now)
        with suppress(OSError):  # then it is tried once more than it should be
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(times), encoding="utf-8")

    def recent(self, rung: str, now: float) -> int:
        """How often that was lately."""
        return len(self._times(now).get(rung, []))

    def _times(self, now: float) -> dict[str, list[float]]:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                str(rung): [float(at) for at in times if now - _LOSS_S < at <= now]
                for rung, times in found.items()
            }
        return {}


@dataclass(frozen=True, slots=True)
class Footing:
    """What a ladder stands on: the verdicts that are kept, the losses, and whom it tells.

    ``every_s``: seconds after which a network that serves is verified again; 0: never.
    """

    records: Records
    losses: Losses
    notice: Notice
    every_s: float = 0.0
    clock: Callable[[], float] = time.time
    relieve: Callable[[], bool] = bool
    """Unloads an engine that is not in use from the device; whether there was one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Standing:
    """An engine on a rung. ``makeshift``: for one study only; the next begins at the top."""

    number: int
    engine: Engine
    verdict: Verdict
    makeshift: bool = False


class Ladder:
    """An engine on the highest of its rungs that passes. Not shared between threads.

    This is the one place where an engine is loaded: when it is first wanted, and again after
    ``rest``.
    """

    def __init__(self, bundle: Bundle, rungs: Sequence[Rung], footing: Footing) -> None:
        """Name the rungs, the highest first. Nothing is loaded yet."""
        self.bundle = bundle
        self._rungs = tuple(rungs)
        self._footing = footing
        self._standing: _Standing | None = None
        self._strikes: defaultdict[int, set[str]] = defaultdict(set)
        self._suspects: set[int] = set()
        self._waiting: set[int] = set()
        self._refused: tuple[float, str] | None = None
        self._computation = Computation()

    @property
    def computation(self) -> Computation:
        """What computes now, or has computed the last study; empty before the first."""
        if self._standing is not None:
            verdict = self._standing.verdict
            self._computation = Computation(verdict.runtime, verdict.digest)
        return self._computation

    @property
    def need(self) -> Need:
        """What is loaded takes of the device; nothing for what computes on the CPU."""
        sessions = self._standing.engine.sessions if self._standing is not None else ()
        needs = [need_of(one.used) for one in sessions if isinstance(one, Measured)]
        scratch = max((one.scratch for one in needs), default=0)
        return Need(sum(one.own for one in needs), scratch=scratch)

    def stand(self) -> Engine:
        """The engine on the highest rung that passes, loaded now if it is not.

        Raises NoRung, which says for each rung why not, and DeviceLost.
        """
        now = self._footing.clock()
        if self._refused and now - self._refused[0] < _AGAIN_S:
            raise NoRung(self._refused[1])
        if self._standing is None or self._to_climb(self._standing, now):
            self.rest()
            self._standing = self._climb(0)
        return self._standing.engine

    def examine(
        self, volumes: Mapping[str, Volume], job_id: str, progress: Progress | None = None
    ) -> Found:
        """The findings, as ``Engine.examine`` gives them, of the highest rung that computes them.

        Raises InferenceError; DeviceLost, after which this process must end.
        """
        engine = self.stand()
        while True:
            try:
                return engine.examine(volumes, job_id, progress)
            except DeviceLost as error:
                assert self._standing is not None  # noqa: S101 - stand() has returned
                raise self._lost(self._standing.number, error) from error
            except InferenceError as error:
                if isinstance(error, DeviceMemoryFull) and self._footing.relieve():
                    continue
                if not _of_device(error):
                    raise
                if not self._lower_rungs():
                    self._acquit(job_id)
                    raise
                engine = self._descend(error, job_id)

    def rest(self) -> None:
        """Give back what the network holds, for another engine that needs the room."""
        if self._standing is not None:
            self._computation = self.computation
            self._standing.engine.close()
        self._standing = None

    def close(self) -> None:
        """The same, for good."""
        self.rest()

    def _to_climb(self, standing: _Standing, now: float) -> bool:
        """Whether to begin at the top again."""
        if self._stale(standing.verdict, now):
            self._strikes.clear()
            return True
        return standing.makeshift or any(not self._pending(n) for n in self._waiting)

    def _stale(self, verdict: Verdict, now: float) -> bool:
        """Whether a verdict is too old, in both directions: a clock may have been set back."""
        every_s = self._footing.every_s
        return every_s > 0 and abs(now - verdict.at) > every_s

    def _climb(self, start: int, makeshift: bool = False) -> _Standing:
        """The first rung from ``start`` that passes. Raises NoRung and DeviceLost."""
        reasons: list[str] = []
        reference = Reference()
        self._waiting -= set(range(start, len(self._rungs)))
        try:
            for number, rung in enumerate(self._rungs[start:], start):
                try:
                    return self._tried(number, reference, makeshift)
                except DeviceLost as error:
                    raise self._lost(number, error) from error
                except InferenceError as error:
                    reasons.append(f"{rung.kind}: {error}")
                    self._tell_step(number, str(error))
        finally:
            reference.close()
        raise self._refuse(reasons)

    def _tried(self, number: int, reference: Reference, makeshift: bool) -> _Standing:
        """The engine on one rung. Raises InferenceError with the reason where it cannot stand."""
        rung = self._rungs[number]
        self._refuse_barred(number)
        engine = self._loaded(rung)
        try:
            itself = isinstance(rung.runtime, Onnx)
            verdict = self._verdict(number, engine, None if itself else reference)
            if not verdict.passed:
                raise VerificationFailed("; ".join(str(gate) for gate in verdict.failures))
        except InferenceError as error:
            if not isinstance(error, DeviceLost):
                engine.close()
            raise
        self._suspects.discard(number)
        self._refused = None
        if self._pending(number):
            self._waiting.add(number)  # an older plan serves until the new one is there
        return _Standing(number, engine, verdict, makeshift)

    def _loaded(self, rung: Rung) -> Engine:
        """The engine as a rung computes it; others make room for it where the device is full."""
        while True:
            try:
                return Engine.load(self.bundle, rung.runtime)
            except DeviceMemoryFull:
                if not self._footing.relieve():
                    raise

    def _refuse_barred(self, number: int) -> None:
        if len(self._strikes[number]) >= _STRIKES:
            raise RuntimeUnavailable(f"it has failed on {len(self._strikes[number])} studies")
        lost = self._footing.losses.recent(self._called(number), self._footing.clock())
        if lost >= _LOSSES:
            raise RuntimeUnavailable(f"its device was lost {lost} times within an hour")

    def _verdict(self, number: int, engine: Engine, reference: Reference | None) -> Verdict:
        """The verdict that is kept, or a new one."""
        footing, name = self._footing, self.bundle.manifest.engine.name
        candidate = candidate_of(engine)
        now = footing.clock()
        known = footing.records.find(candidate.key)
        if known is not None and number not in self._suspects and not self._stale(known, now):
            return known
        verdict = verify(candidate, reference, footing.clock)
        footing.records.keep(candidate.key, verdict)
        state = "passed" if verdict.passed else "failed"
        _log.info("verification", engine=name, runtime=verdict.runtime, seconds=verdict.seconds)
        words = f"{name}: {verdict.runtime} {state} its verification {verdict.digest[:16]}"
        told = (f"{words} in {verdict.seconds:.1f} s", *verdict.notes)
        footing.notice(EventKind.ENGINE, "; ".join(told))
        return verdict

    def _descend(self, error: InferenceError, job_id: str) -> Engine:
        """This study on the next rung that passes. Raises ``error`` itself where there is none, for
        others may still be computed above; and DeviceLost."""
        assert self._standing is not None  # noqa: S101 - an engine has just failed on it
        number = self._standing.number
        self.rest()
        strikes = self._strikes[number]
        strikes.add(job_id)
        if not isinstance(error, DeviceMemoryFull):
            self._suspects.add(number)
        self._tell_step(number, str(error))
        try:
            self._standing = self._climb(number + 1, makeshift=len(strikes) < _STRIKES)
        except NoRung:
            self._refused = None
            self._acquit(job_id)
            raise error from None
        return self._standing.engine

    def _acquit(self, job_id: str) -> None:
        """A study that no rung computes is held against none; the next begins at the top."""
        struck = [strikes for strikes in self._strikes.values() if job_id in strikes]
        for strikes in struck:
            strikes.remove(job_id)
        if struck:
            self.rest()

    def _lower_rungs(self) -> bool:
        return self._standing is not None and self._standing.number + 1 < len(self._rungs)

    def _tell_step(self, number: int, reason: str) -> None:
        """A step down, loudly; one that waits for its plan is no fault, and is told softly."""
        name, rung = self.bundle.manifest.engine.name, self._rungs[number].kind
        lower = self._rungs[number + 1].kind if number + 1 < len(self._rungs) else ""
        if self._pending(number):
            self._waiting.add(number)
            words = f"{name}: {rung} cannot serve yet: {reason}; until then {lower or 'nothing'}"
            _log.warning("engine waits for a rung", engine=name, rung=rung, reason=reason)
            self._footing.notice(EventKind.ENGINE, words)
            return
        following = f"{lower} is next" if lower else "no rung is left, its studies wait"
        _log.error("engine steps down", engine=name, rung=rung, reason=reason, next=lower)
        words = f"{name} steps down from {rung}: {reason}; {following}"
        self._footing.notice(
            EventKind.ALARM, f"{words}; `ai-node engine verify {name}` shows every gate"
        )

    def _refuse(self, reasons: Sequence[str]) -> NoRung:
        name = self.bundle.manifest.engine.name
        words = f"nothing can compute the engine {name}: " + "; ".join(reasons or ["no rung"])
        self._refused = (self._footing.clock(), words)
        return NoRung(words)

    def _lost(self, number: int, error: DeviceLost) -> DeviceLost:
        """The device is gone; what was loaded there is left as it is, for nothing can free it."""
        name, rung = self.bundle.manifest.engine.name, self._rungs[number].kind
        self._standing = None
        self._footing.losses.note(self._called(number), self._footing.clock())
        _log.error("device lost", engine=name, rung=rung, reason=str(error))
        self._footing.notice(
            EventKind.ALARM,
            f"{name}: the device of {rung} is lost: {error}; the worker ends and starts anew",
        )
        return error

    def _pending(self, number: int) -> str:
        runtime = self._rungs[number].runtime
        return runtime.pending(self.bundle.model) if isinstance(runtime, Patient) else ""

    def _called(self, number: int) -> str:
        return f"{self.bundle.manifest.engine.name} {number} {self._rungs[number].kind}"


def _of_device(error: InferenceError) -> bool:
    """Whether the rung is at fault, or may be, and not the study."""
    kinds = (DeviceMemoryFull, RuntimeUnavailable, VerificationFailed)
    return isinstance(error, kinds) or _IN_NETWORK.match(str(error)) is not None


def candidate_of(engine: Engine) -> Candidate:
    """A loaded engine as the verification asks it."""
    return Candidate(engine.bundle, tuple(_entrants(engine)))


def _entrants(engine: Engine, several: bool = False) -> Iterator[Entrant]:
    """Every network of an engine, and of those that look before it."""
    several = several or len(engine.sessions) > 1
    if engine.first is not None:
        yield from _entrants(engine.first, several)
    bundle = engine.bundle
    for number, (model, network) in enumerate(zip(bundle.models, engine.networks, strict=True)):
        called = f"{bundle.manifest.engine.name} {model.name}" if several else ""
        yield Entrant(bundle, model, network, called, main=number == 0)
