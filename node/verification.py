"""Verification before traffic: a network as compiled must answer as the one that was validated.

The reference is the package's own ONNX file in FP32 by ONNX Runtime on the CPU. What serves there
is the reference itself; then its golden answers are checked, and that it answers the same twice.

What comes out is a verdict (``node.verdicts``), which is kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from node import __version__, gates
from node.bundle import Bundle
from node.domain.errors import VerificationFailed
from node.domain.tensor import Tensors
from node.domain.volume import Volume
from node.ensemble import Network
from node.gates import Gate
from node.labelling import labelling
from node.probes import Probe, golden, golden_digest, noise, noise_volumes
from node.runtimes import Named, Session, Sweeper
from node.runtimes.onnx import Onnx
from node.verdicts import FOLDER as FOLDER
from node.verdicts import Deviation as Deviation
from node.verdicts import Records as Records
from node.verdicts import Verdict as Verdict
from node.windows import Window, predict

_GOLDEN = "golden: "

Stopwatch = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """One loaded network of an engine that wants to serve.

    ``model`` is its file, ``called`` tells several networks of one engine apart ("" where there is
    one). Of an ensemble the first network is the ``main`` one, whose answers the package may know.
    """

    bundle: Bundle
    model: Path
    network: Network
    called: str = ""
    main: bool = True

    @property
    def session(self) -> Session:
        """The network itself."""
        return self.network.session

    @property
    def window(self) -> Window:
        """The window through which it looks."""
        return self.network.window

    @property
    def output(self) -> str:
        """The output tensor that counts."""
        return self.bundle.manifest.output.tensor

    @property
    def words(self) -> str:
        """What precisely computes; another library, driver or plan has other words."""
        if isinstance(self.session, Named):
            return self.session.words
        return type(self.session).__name__


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An engine that wants to serve: its package, and all of its networks."""

    bundle: Bundle
    entrants: tuple[Entrant, ...]

    @property
    def words(self) -> str:
        """What precisely computes, each kind once."""
        return "; ".join(dict.fromkeys(one.words for one in self.entrants))

    @property
    def key(self) -> str:
        """sha256 over all that a verdict depends on, hexadecimal."""
        packages = {one.bundle.folder: one.bundle for one in self.entrants}
        known = (golden_digest(bundle) for bundle in packages.values())
        parts = (self.bundle.digest, *known, self.words, __version__)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Reference:
    """A package's networks in FP32 on the CPU, each loaded when it is first asked.

    One may serve the candidates of a whole ladder: it answers the same probe only once.
    """

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._sessions: dict[Path, Session] = {}
        self._answers: dict[tuple[Path, str], Tensors] = {}

    def answer(self, model: Path, probe: Probe) -> Tensors:
        """All outputs of a network by name. Raises InferenceError."""
        if (model, probe.name) not in self._answers:
            self._answers[model, probe.name] = self.session(model).infer(probe.feeds)
        return self._answers[model, probe.name]

    def session(self, model: Path) -> Session:
        """A network by its file. Raises InferenceError."""
        if model not in self._sessions:
            self._sessions[model] = Onnx().load(model)
        return self._sessions[model]

    def close(self) -> None:
        """Give the memory back; a later question loads the network again."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._answers.clear()


def verify(
    candidate: Candidate,
    reference: Reference | None,
    clock: Callable[[], float] = time.time,
    stopwatch: Stopwatch = time.perf_counter,
    further: Sequence[Probe] = (),
) -> Verdict:
    """Ask every network all probes, each twice. ``reference`` None: it is the reference itself.

    ``further`` are probes for the candidate's own networks, beside golden inputs and noise. Raises
    InferenceError where a network gives no answer at all.
    """
    begun = stopwatch()
    trials = [
        _tried(one, reference, further if one.bundle is candidate.bundle else ())
        for one in candidate.entrants
    ]
    return Verdict(
        engine=candidate.bundle.manifest.engine.name,
        package=candidate.bundle.digest,
        runtime=candidate.words,
        version=__version__,
        gates=tuple(gate for trial in trials for gate in trial.gates()),
        deviations=tuple(one for trial in trials for one in trial.deviations()),
        notes=tuple(dict.fromkeys(note for trial in trials for note in trial.notes)),
        seconds=round(stopwatch() - begun, 3),
        at=clock(),
    )


def _tried(entrant: Entrant, reference: Reference | None, further: Sequence[Probe]) -> _Trial:
    """One network, asked everything."""
    trial = _Trial(entrant, reference)
    session, inputs = entrant.session, entrant.session.inputs
    known = golden(entrant.bundle, inputs)
    for probe in (*known, *further):
        trial.ask(probe)
    if reference is not None or not known:
        trial.ask(noise(entrant.bundle, inputs, entrant.window))
    if reference is not None and isinstance(session, Sweeper) and entrant.network.sweeps:
        trial.sweep(session, reference)
    if not known:
        name = entrant.bundle.manifest.engine.name
        trial.notes.append(f"{name} has no golden input; it was verified on noise alone")
    return trial


@dataclass
class _Trial:
    """Gathers the answers of one candidate."""

    entrant: Entrant
    reference: Reference | None
    sound: list[Gate] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    """(reference, candidate) as the task reads them: labels or probabilities."""
    golden_pairs: list[tuple[Any, Any]] = field(default_factory=list)
    apart: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ask(self, probe: Probe) -> None:
        """One probe, twice."""
        entrant, output = self.entrant, self.entrant.output
        # Copied, for a device may hand out the same buffer twice.
        first = {name: np.array(one) for name, one in entrant.session.infer(probe.feeds).items()}
        second = entrant.session.infer(probe.feeds)
        answer = self.reference.answer(entrant.model, probe) if self.reference else None
        fit = [self._compare(name, one, second, answer) for name, one in first.items()]
        if output not in first:
            raise VerificationFailed(f"the network gives {sorted(first)}, and no {output!r}")
        if not all(fit):
            return
        truth = first if answer is None else answer
        if answer is not None:
            self.pairs.append((self._read(answer[output]), self._read(first[output])))
        if probe.expected is not None and entrant.main:
            expected = self._expected(probe, truth[output])
            self.golden_pairs.append((self._read(expected), self._read(truth[output])))

    def sweep(self, session: Sweeper, reference: Reference) -> None:
        """The whole sliding window on the candidate's device, against ours on the CPU."""
        entrant, output, window = self.entrant, self.entrant.output, self.entrant.window
        volumes = noise_volumes(entrant.bundle, entrant.session.inputs, window)
        first = np.array(session.sweep(volumes, window, output))
        second = session.sweep(volumes, window, output)
        wanted = predict(reference.session(entrant.model).infer, volumes, window, output)
        swept = f"{output} over a volume"
        if self._compare(swept, first, {swept: second}, {swept: wanted}):
            pair = [one if window.logits else self._likely(one, 0) for one in (wanted, first)]
            self.pairs.append((self._labels(pair[0]), self._labels(pair[1])))
            self._label(volumes, pair[0])

    def _label(self, volumes: Tensors, wanted: NDArray[np.float32]) -> None:
        """The labels that the candidate's device makes, where it will make them for studies."""
        rule = labelling(self.entrant.bundle.manifest, len(wanted))
        if rule is None:
            return
        made = self.entrant.network.label(volumes, self.entrant.output, rule, None)
        if made is not None:
            self.pairs.append((self._labels(wanted), made.labels))

    def gates(self) -> tuple[Gate, ...]:
        """Every gate, of equal ones the worst."""
        worst: dict[str, Gate] = {}
        of_task = (*self._of_task(self.pairs), *self._of_task(self.golden_pairs, _GOLDEN))
        for gate in (*self.sound, *of_task):
            known = worst.get(gate.name, gate)
            worst[gate.name] = gate if gate.worse_than(known) else known
        return tuple(replace(gate, name=self._named(gate.name)) for gate in worst.values())

    def deviations(self) -> tuple[Deviation, ...]:
        """How far each output was from the reference, over all probes."""
        return tuple(
            Deviation(
                self._named(name),
                float(max(one.max(initial=0.0) for one in parts)),
                float(sum(one.sum() for one in parts) / max(1, sum(one.size for one in parts))),
            )
            for name, parts in self.apart.items()
        )

    def _named(self, name: str) -> str:
        return f"{self.entrant.called}: {name}" if self.entrant.called else name

    def _compare(
        self, name: str, first: NDArray[Any], second: Tensors, answer: Tensors | None
    ) -> bool:
        """The gates of every output; whether the answer can be compared any further."""
        wanted = self._same_output(name, answer) if answer is not None else None
        found = (*gates.soundness(wanted, first), gates.repeated(first, second[name]))
        self.sound.extend(found)
        fits = all(gate.passed for gate in found[:-1])
        if fits and wanted is not None:
            apart = np.abs(first.astype(np.float64) - wanted.astype(np.float64))
            self.apart.setdefault(name, []).append(apart)
        return fits

    def _same_output(self, name: str, answer: Tensors) -> NDArray[Any]:
        if name not in answer:
            raise VerificationFailed(f"the network gives {name!r}, its reference {sorted(answer)}")
        return answer[name]

    def _of_task(self, pairs: Sequence[tuple[Any, Any]], named: str = "") -> tuple[Gate, ...]:
        if not pairs:
            return ()
        manifest = self.entrant.bundle.manifest
        task: str = manifest.engine.task
        if task == "segmentation":
            return gates.segmentation(pairs, named)
        if task == "classification":
            return gates.classification(pairs, manifest.operating_point.threshold, named)
        raise VerificationFailed(f"this node has no gates for engines of task {task!r}")

    def _expected(self, probe: Probe, truth: NDArray[Any]) -> NDArray[Any]:
        expected = (probe.expected or {}).get(self.entrant.output)
        if expected is None or expected.shape != truth.shape or expected.dtype.kind not in "biuf":
            found = "nothing" if expected is None else f"{expected.shape} of {expected.dtype}"
            raise VerificationFailed(
                f"the expected answer to {probe.name} has {found} for {self.entrant.output!r}, the "
                f"network gives {truth.shape}: make the golden files again for this network"
            )
        return expected.astype(np.float32)

    def _read(self, array: NDArray[Any]) -> NDArray[Any]:
        """An answer as its task reads it: labels (k, j, i), or probabilities (n, classes)."""
        axis = -1 if self.entrant.window.channels_last else 1
        likely = np.moveaxis(self._likely(array, axis), axis, -1)
        if self.entrant.bundle.manifest.engine.task != "segmentation":
            return likely
        # The blocks of a batch one behind the other, as the slices of one volume.
        planes = likely.reshape(-1, *likely.shape[-3:])
        return self._labels(np.ascontiguousarray(np.moveaxis(planes, -1, 0)))

    def _likely(self, array: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """Probabilities; the classes lie along ``axis``."""
        values = array.astype(np.float32, copy=False)
        activation = self.entrant.bundle.manifest.output.activation
        if activation == "softmax":
            return np.asarray(special.softmax(values, axis=axis))
        return np.asarray(special.expit(values)) if activation == "sigmoid" else values

    def _labels(self, probabilities: NDArray[np.float32]) -> NDArray[Any]:
        """Labels (k, j, i) at the operating point, before they are cleaned."""
        first = self.entrant.bundle.manifest.post[0]
        try:
            return first.apply(Volume(probabilities, np.eye(4))).voxels
        except ValueError as error:
            raise VerificationFailed(f"labels cannot be made of the answer: {error}") from error
