"""Verification: a network that answers as its reference passes, and one that does not is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, save

from node import bundle as bundles
from node.bundle import Bundle
from node.domain.errors import VerificationFailed
from node.domain.tensor import Tensors, TensorSpec
from node.domain.volume import Volume
from node.engine import Engine
from node.ensemble import Network
from node.gpu.canvas import Labelled, Labelling
from node.ladder import candidate_of
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.runtimes.openvino import OpenVino
from node.steps.masks import Argmax
from node.verdicts import Records, Verdict
from node.verification import Candidate, Entrant, Reference, verify
from node.windows import Window, predict
from tests.engines.package import PARTS, THRESHOLD, brighter_than, network, package

LEVEL = 0.7
"""What the network finds is brighter: about a quarter of the noise."""


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """A package whose network finds what is brighter than a level."""
    brighter_than(tmp_path / "model.onnx", LEVEL, steepness=4.0)
    return bundles.read(package(tmp_path, *PARTS))


@pytest.fixture
def reference() -> Iterator[Reference]:
    reference = Reference()
    yield reference
    reference.close()


def served_by(bundle: Bundle, session: Session) -> Candidate:
    """A candidate whose network was, or claims to be, made of the package's own."""
    with Engine.load(bundle, Onnx(threads=1)) as engine:
        window = engine.window
    return Candidate(bundle, (Entrant(bundle, bundle.model, Network(session, window)),))


def compiled(bundle: Bundle, write: Callable[[Path], object]) -> Candidate:
    """What another model file answers in place of the package's."""
    other = bundle.folder / "compiled.other"
    write(other)
    return served_by(bundle, Onnx(threads=1).load(other))


def keep_golden(bundle: Bundle, shift: float = 0.0) -> None:
    """Golden files in half precision, as the network answers, or a little off."""
    folder = bundle.folder / "golden"
    folder.mkdir()
    given = np.random.default_rng(1).normal(0, 1, (2, 1, 24, 24)).astype(np.float16)
    session = Onnx(threads=1).load(bundle.model)
    answer = session.infer({"image": given.astype(np.float32)})["probability"]
    np.save(folder / "input.npy", given)
    np.save(folder / "expected.npy", (answer + shift).astype(np.float16))


def failed(verdict: Verdict) -> list[str]:
    return [gate.name for gate in verdict.failures]


def test_the_reference_itself_passes_on_golden_inputs_and_is_asked_nothing_else(
    made: Bundle,
) -> None:
    keep_golden(made)
    with Engine.load(made, Onnx(threads=1)) as engine:
        verdict = verify(candidate_of(engine), None, lambda: 5.0)
    assert verdict.passed
    assert [gate.name for gate in verdict.gates] == [
        "share of finite values",
        "two runs are identical",
        "golden: agreement of labels",
        "golden: Dice of label 1",
    ]
    assert (verdict.engine, verdict.at, verdict.notes) == ("tester", 5.0, ())
    assert verdict.package == made.digest
    assert "ONNX Runtime" in verdict.runtime


def test_openvino_passes_against_the_reference(made: Bundle, reference: Reference) -> None:
    keep_golden(made)
    with Engine.load(made, OpenVino()) as engine:
        verdict = verify(candidate_of(engine), reference)
    assert verdict.passed
    assert "OpenVINO" in verdict.runtime
    (deviation,) = verdict.deviations
    assert deviation.output == "probability"
    assert 0.0 <= deviation.mean <= deviation.largest < 1e-4
    assert "golden: agreement of labels" in [gate.name for gate in verdict.gates]


@pytest.mark.parametrize("by", [0.02, -0.02])
def test_weights_that_are_a_little_different_are_found(
    made: Bundle, reference: Reference, by: float
) -> None:
    candidate = compiled(made, lambda path: brighter_than(path, LEVEL + by, steepness=4.0))
    verdict = verify(candidate, reference)
    assert "agreement of labels" in failed(verdict)
    assert "Dice of label 1" in failed(verdict)
    assert verdict.deviations[0].largest == pytest.approx(0.02, rel=0.1)


def test_weights_that_change_no_decision_pass(made: Bundle, reference: Reference) -> None:
    candidate = compiled(made, lambda path: brighter_than(path, LEVEL, steepness=3.9))
    assert verify(candidate, reference).passed


def test_a_network_that_gives_nan_is_found(made: Bundle, reference: Reference) -> None:
    candidate = compiled(made, lambda path: computing(path, [("Sqrt", "image", "probability")]))
    assert failed(verify(candidate, reference)) == ["share of finite values"]


def test_a_network_that_does_not_repeat_itself_is_found(made: Bundle, reference: Reference) -> None:
    nodes = [
        ("RandomNormalLike", "image", "chance"),
        ("Sigmoid", "chance", "probability"),
    ]
    candidate = compiled(made, lambda path: computing(path, nodes))
    assert "two runs are identical" in failed(verify(candidate, reference))
    assert failed(verify(candidate, None)) == ["two runs are identical"]


def test_an_answer_of_another_shape_is_found(made: Bundle, reference: Reference) -> None:
    candidate = compiled(made, lambda path: network(path, [[1.0], [1.0]], [0.0, 0.0]))
    assert failed(verify(candidate, reference)) == ["same shape as the reference"]


def test_golden_answers_that_the_reference_does_not_give_are_found(
    made: Bundle, reference: Reference
) -> None:
    keep_golden(made, shift=0.1)
    with Engine.load(made, Onnx(threads=1)) as engine:
        assert "golden: agreement of labels" in failed(verify(candidate_of(engine), None))
    with Engine.load(made, OpenVino()) as engine:
        assert "golden: Dice of label 1" in failed(verify(candidate_of(engine), reference))


def test_without_golden_inputs_noise_is_asked_and_the_verdict_says_so(made: Bundle) -> None:
    with Engine.load(made, Onnx(threads=1)) as engine:
        verdict = verify(candidate_of(engine), None)
    assert verdict.passed
    assert verdict.notes == ("tester has no golden input; it was verified on noise alone",)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_golden_file_that_is_none_is_told(made: Bundle, content: bytes) -> None:
    (made.folder / "golden").mkdir()
    (made.folder / "golden/input.npy").write_bytes(content)
    with (
        Engine.load(made, Onnx(threads=1)) as engine,
        pytest.raises(VerificationFailed, match=r"golden/input.npy cannot be read"),
    ):
        verify(candidate_of(engine), None)


def test_golden_files_of_another_network_are_told(made: Bundle) -> None:
    (made.folder / "golden").mkdir()
    np.save(made.folder / "golden/input.npy", np.zeros((1, 3, 8, 8), np.float32))
    with (
        Engine.load(made, Onnx(threads=1)) as engine,
        pytest.raises(VerificationFailed, match="make it again for this network"),
    ):
        verify(candidate_of(engine), None)


@pytest.mark.parametrize("answer", [False, True], ids=["input", "expected"])
def test_golden_files_of_words_are_told(made: Bundle, answer: bool) -> None:
    keep_golden(made)
    path = made.folder / "golden" / ("expected.npy" if answer else "input.npy")
    np.save(path, np.full(np.load(path).shape, "word"))
    with (
        Engine.load(made, Onnx(threads=1)) as engine,
        pytest.raises(VerificationFailed, match="for this network"),
    ):
        verify(candidate_of(engine), None)


def test_a_golden_archive_that_is_damaged_is_told(made: Bundle) -> None:
    keep_golden(made)
    folder = made.folder / "golden"
    path = folder / "input.npz"
    np.savez_compressed(path, image=np.load(folder / "input.npy"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = b"\xff" * 64
    path.write_bytes(content[:40] + b"\xff" * 16 + content[56:])
    with (
        Engine.load(made, Onnx(threads=1)) as engine,
        pytest.raises(VerificationFailed, match=r"golden/input.npz cannot be read"),
    ):
        verify(candidate_of(engine), None)


def test_a_network_whose_outputs_have_other_names_is_told(
    made: Bundle, reference: Reference
) -> None:
    @dataclass
    class Renamed(Sweeping):
        sweep: Any = None

        def infer(self, feeds: Tensors) -> Tensors:
            return {**self.inner.infer(feeds), "other": np.zeros(1, np.float32)}

    candidate = served_by(made, Renamed(Onnx(threads=1).load(made.model)))  # type: ignore[arg-type]
    with pytest.raises(VerificationFailed, match="the network gives 'other'"):
        verify(candidate, reference)


@dataclass
class Sweeping:
    """A session that takes the whole window at once, and may be off by one voxel in doing so."""

    inner: Session
    shift: int = 0

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.outputs

    def infer(self, feeds: Tensors) -> Tensors:
        return self.inner.infer(feeds)

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: object = None,
    ) -> NDArray[np.float32]:
        answer = predict(self.inner.infer, volumes, window, output)
        return np.roll(answer, self.shift, axis=-1)

    def close(self) -> None:
        self.inner.close()


def test_a_window_that_is_swept_on_a_device_is_compared_with_ours(
    made: Bundle, reference: Reference
) -> None:
    session = Onnx(threads=1).load(made.model)
    right = verify(served_by(made, Sweeping(session)), reference)  # type: ignore[arg-type]
    wrong = verify(served_by(made, Sweeping(session, shift=1)), reference)  # type: ignore[arg-type]
    assert right.passed
    assert {one.output for one in right.deviations} == {"probability", "probability over a volume"}
    assert "agreement of labels" in failed(wrong)


@dataclass
class Labels(Sweeping):
    """One that makes labels of it, too, and may be off by one voxel in that alone."""

    beside: int = 0

    def labels(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        rule: Labelling,
        progress: object = None,
    ) -> Labelled:
        answer = predict(self.inner.infer, volumes, window, output)
        found = Argmax(rule.labels).apply(Volume(answer, np.eye(4))).voxels
        return Labelled(np.roll(found, self.beside, axis=-1), answer.max(axis=0))


def test_labels_that_are_made_on_a_device_are_compared_with_ours(
    tmp_path: Path, reference: Reference
) -> None:
    network(tmp_path / "model.onnx", [[0.0], [4.0]], [0.0, -4.0 * LEVEL], "Softmax")
    parts = [one if one != THRESHOLD else '\n[[post]]\nkind = "argmax"\n' for one in PARTS]
    made = bundles.read(package(tmp_path, *parts))
    session = Onnx(threads=1).load(made.model)
    right = verify(served_by(made, Labels(session)), reference)  # type: ignore[arg-type]
    wrong = verify(served_by(made, Labels(session, beside=1)), reference)  # type: ignore[arg-type]
    assert right.passed
    assert "agreement of labels" in failed(wrong)


def test_the_digest_tells_what_was_found_and_not_when(made: Bundle, reference: Reference) -> None:
    with Engine.load(made, Onnx(threads=1)) as engine:
        first = verify(candidate_of(engine), reference, lambda: 1.0)
        second = verify(candidate_of(engine), reference, lambda: 2.0)
    assert first.digest == second.digest
    assert replace(first, runtime="another").digest != first.digest


def test_a_verdict_that_passed_is_kept_until_it_is_too_old(made: Bundle, tmp_path: Path) -> None:
    records = Records(tmp_path / "verified")
    with Engine.load(made, Onnx(threads=1)) as engine:
        candidate = candidate_of(engine)
        verdict = verify(candidate, None, lambda: 100.0)
    assert records.find(candidate.key) is None
    records.keep(candidate.key, verdict)
    assert records.find(candidate.key) == verdict
    assert list(records.all()) == [verdict]
    (path,) = (tmp_path / "verified").iterdir()
    kept = json.loads(path.read_text())
    assert kept["passed"] is True
    assert kept["digest"] == verdict.digest
    assert {"name", "value", "limit", "passed"} <= set(kept["gates"][0])


def test_a_verdict_that_failed_or_was_changed_lets_nobody_through(
    made: Bundle, reference: Reference, tmp_path: Path
) -> None:
    records = Records(tmp_path / "verified")
    candidate = compiled(made, lambda path: brighter_than(path, LEVEL + 1))
    verdict = verify(candidate, reference)
    records.keep(candidate.key, verdict)
    assert not verdict.passed
    assert records.find(candidate.key) is None
    (path,) = (tmp_path / "verified").iterdir()
    path.write_text(path.read_text().replace('"limit": 0.99', '"limit": 0.0'))
    assert records.find(candidate.key) is None
    assert list(records.all()) == [], "`engine enable --live` asks here"
    records.keep(candidate.key, replace(verdict, gates=()))
    assert records.find(candidate.key) is None
    path.write_text("{")
    assert records.find(candidate.key) is None
    assert list(records.all()) == []


def test_another_package_golden_file_or_runtime_has_another_key(made: Bundle) -> None:
    session = Onnx(threads=1).load(made.model)
    keys = [served_by(made, session).key, served_by(made, Sweeping(session)).key]  # type: ignore[arg-type]
    keys.append(served_by(replace(made, digest="other"), session).key)
    keep_golden(made)
    keys.append(served_by(made, session).key)
    assert len(set(keys)) == 4


def computing(path: Path, nodes: list[tuple[str, str, str]]) -> None:
    """A model of operators in a row, from ``image`` to ``probability``."""
    axes: list[str | int | None] = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node(kind, [given], [gives]) for kind, given, gives in nodes],
        "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, axes)],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
