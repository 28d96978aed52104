"""What every runtime that is installed here does alike; the truth is numpy's, not another's.

A runtime whose library or device is missing is skipped with its own words; with NODE_REQUIRE_GPU=1
in the environment that of the GPU fails instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from pydantic import TypeAdapter, ValidationError

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.volume import Volume
from node.gpu.canvas import Labelling
from node.runtimes import RUNTIMES, Labeller, Named, Runtime, Session, Sweeper
from node.runtimes.tolerances import TOLERANCES
from node.steps.masks import Threshold
from node.windows import Activation, Window, predict
from tests.runtimes.networks import SAMPLES, Feeds, doubling, mismatching, planar, spatial


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A runtime that works here."""
    chosen = str(request.param)
    try:
        RUNTIMES[chosen]().load(doubling(tmp_path_factory.mktemp("probe") / "m.onnx")).close()
    except RuntimeUnavailable as error:
        if chosen == "tensorrt" and os.environ.get("NODE_REQUIRE_GPU") == "1":
            pytest.fail(f"NODE_REQUIRE_GPU=1, but {error}")
        pytest.skip(str(error))
    return chosen


class Closing:
    """A runtime whose networks are closed after the test: on a device they hold it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.loaded: list[Session] = []

    def load(self, model: Path) -> Session:
        """Load a network, and remember it."""
        self.loaded.append(self.runtime.load(model))
        return self.loaded[-1]


@pytest.fixture
def runtime(kind: str) -> Iterator[Runtime]:
    made = Closing(RUNTIMES[kind]())
    yield made
    for session in made.loaded:
        session.close()


@pytest.fixture(params=sorted(SAMPLES))
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Feeds]:
    """A network and what it can be fed."""
    path = tmp_path / "model.onnx"
    return path, SAMPLES[request.param](path)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_member_is_frozen_has_defaults_and_refuses_unknown_keys(name: str) -> None:
    made = TypeAdapter(RUNTIMES[name]).validate_python({})
    assert is_dataclass(made)
    for field in fields(made):
        with pytest.raises(AttributeError):
            setattr(made, field.name, None)
    with pytest.raises(ValidationError):
        TypeAdapter(RUNTIMES[name]).validate_python({"no_such_option": 1})


def answer(path: Path, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """What numpy makes of a network."""
    reference = ReferenceEvaluator(str(path))
    return dict(zip(reference.output_names, reference.run(None, dict(feeds)), strict=True))


def test_numbers_are_those_of_numpy(
    runtime: Runtime, kind: str, sample: tuple[Path, Feeds]
) -> None:
    path, feeds = sample
    tolerance = TOLERANCES[kind, "fp32"]
    found, wanted = runtime.load(path).infer(feeds), answer(path, feeds)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert tolerance.admits(found[name], array), tolerance.distance(found[name], array)


def test_tensors_are_called_and_shaped_as_the_file_says(
    runtime: Runtime, sample: tuple[Path, Feeds]
) -> None:
    path, _ = sample
    session, graph = runtime.load(path), onnx.load(path).graph
    for specs, declared in ((session.inputs, graph.input), (session.outputs, graph.output)):
        for spec, one in zip(specs, declared, strict=True):
            shape = tuple(axis.dim_value or -1 for axis in one.type.tensor_type.shape.dim)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
            assert (spec.name, spec.shape, spec.dtype) == (one.name, shape, dtype.name)


def test_same_input_gives_the_same_bits(runtime: Runtime, sample: tuple[Path, Feeds]) -> None:
    path, feeds = sample
    session = runtime.load(path)
    found = [session.infer(feeds), session.infer(feeds), runtime.load(path).infer(feeds)]
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in found[0])


def test_any_batch_means_any(runtime: Runtime, kind: str, tmp_path: Path) -> None:
    whole = planar(tmp_path / "m.onnx")["image"]
    session, tolerance = runtime.load(tmp_path / "m.onnx"), TOLERANCES[kind, "fp32"]
    reference = session.infer({"image": whole})["probability"]
    for count in (1, 2, 3, 1):
        found = session.infer({"image": whole[:count]})["probability"]
        assert tolerance.admits(found, reference[:count])


def test_result_is_the_callers_own(runtime: Runtime, tmp_path: Path) -> None:
    feeds = planar(tmp_path / "m.onnx")
    session = runtime.load(tmp_path / "m.onnx")
    first = session.infer(feeds)["probability"]
    kept = first.copy()
    session.infer({"image": feeds["image"] + 1})
    session.close()
    assert np.array_equal(first, kept)


def test_feeds_may_be_views_and_are_not_changed(runtime: Runtime, tmp_path: Path) -> None:
    image = planar(tmp_path / "m.onnx")["image"]
    session = runtime.load(tmp_path / "m.onnx")
    wanted = session.infer({"image": image})["probability"]
    view = np.asfortranarray(image)
    view.flags.writeable = False
    assert np.array_equal(session.infer({"image": view})["probability"], wanted)
    assert np.array_equal(view, image)


def test_weights_may_lie_beside_the_model(runtime: Runtime, tmp_path: Path) -> None:
    feeds = planar(tmp_path / "m.onnx")
    wanted = runtime.load(tmp_path / "m.onnx").infer(feeds)["probability"]
    loaded = onnx.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").unlink()
    onnx.save(
        loaded,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=0,
    )
    assert (tmp_path / "m.onnx.data").stat().st_size > 0
    found = runtime.load(tmp_path / "m.onnx").infer(feeds)["probability"]
    assert np.array_equal(found, wanted)


def test_networks_do_not_disturb_one_another(runtime: Runtime, tmp_path: Path) -> None:
    flat, deep = planar(tmp_path / "flat.onnx"), spatial(tmp_path / "deep.onnx")
    first, second = runtime.load(tmp_path / "flat.onnx"), runtime.load(tmp_path / "deep.onnx")
    wanted = [first.infer(flat), second.infer(deep)]
    again = [first.infer(flat), second.infer(deep), first.infer(flat)]
    second.close()
    again.append(first.infer(flat))
    for found, number in zip(again, (0, 1, 0, 0), strict=True):
        assert np.array_equal(found["probability"], wanted[number]["probability"])


@pytest.mark.parametrize(
    "feeds",
    [
        {"image": np.zeros((1, 3, 4, 4), np.float32)},
        {"image": np.zeros((1, 1, 4), np.float32)},
        {"image": np.zeros((1, 1, 4, 4), np.float64)},
        {"picture": np.zeros((1, 1, 4, 4), np.float32)},
        {},
        {name: np.zeros((1, 1, 4, 4), np.float32) for name in ("image", "picture")},
    ],
    ids=["channels", "axes", "type", "name", "nothing", "too much"],
)
def test_other_tensors_are_refused_and_named(
    runtime: Runtime, tmp_path: Path, feeds: dict[str, NDArray[Any]]
) -> None:
    session = runtime.load(doubling(tmp_path / "m.onnx"))
    with pytest.raises(InferenceError, match=r"m\.onnx (wants|takes) the tensor.*image"):
        session.infer(feeds)
    assert session.infer({"image": np.ones((1, 1, 4, 4), np.float32)})["twice"].sum() == 32


def test_absent_model_is_named(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"no model file .*absent\.onnx"):
        runtime.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "text"])
def test_broken_model_is_refused_in_one_line(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "broken.onnx"
    planar(path)
    half = path.read_bytes()[: path.stat().st_size // 2]
    noise = np.random.default_rng(0).bytes(500)
    path.write_bytes(
        {"empty": b"", "half": half, "noise": noise, "text": b"<html>404</html>"}[damage]
    )
    with pytest.raises(InferenceError, match=r"broken\.onnx.*(Export it again|check)") as caught:
        runtime.load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_network_that_fails_while_running_says_so(runtime: Runtime, tmp_path: Path) -> None:
    try:
        session = runtime.load(mismatching(tmp_path / "m.onnx"))
    except InferenceError:
        return  # a runtime that needs shapes beforehand refuses it at once
    with pytest.raises(InferenceError, match=r"m\.onnx failed: "):
        session.infer({"a": np.zeros((2, 3), np.float32), "b": np.zeros((4, 5), np.float32)})


def test_closed_network_says_so_and_closes_twice(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(doubling(tmp_path / "m.onnx"))
    session.close()
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.infer({"image": np.zeros((1, 1, 4, 4), np.float32)})


def in_a_thread(work: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What some work gives in a thread that does nothing else."""
    given: list[NDArray[Any]] = []
    thread = threading.Thread(target=lambda: given.append(work()))
    thread.start()
    thread.join(60)
    return given[0]


def test_network_can_live_in_any_one_thread(runtime: Runtime, tmp_path: Path) -> None:
    feeds = planar(tmp_path / "m.onnx")

    def life() -> NDArray[Any]:
        session = runtime.load(tmp_path / "m.onnx")
        found = session.infer(feeds)["probability"]
        session.close()
        return found

    assert np.array_equal(in_a_thread(life), in_a_thread(life))


def test_session_says_what_computes(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(doubling(tmp_path / "m.onnx"))
    assert isinstance(session, Named)
    assert any(letter.isdigit() for letter in session.words), "a version"
    assert "\n" not in session.words


def test_sweep_of_its_own_means_what_the_window_means(
    runtime: Runtime, kind: str, tmp_path: Path
) -> None:
    spatial(tmp_path / "m.onnx")
    session: Session = runtime.load(tmp_path / "m.onnx")
    if not isinstance(session, Sweeper):
        pytest.skip(f"{kind} computes block by block: it has no sweep of its own")
    volume = {"image": np.random.default_rng(1).random((1, 20, 17, 9), np.float32)}
    window = Window("patch", patch=(8, 8, 8), fixed_batch=True)
    found = session.sweep(volume, window, "probability")
    wanted = predict(session.infer, volume, window, "probability")
    assert TOLERANCES[kind, "fp32"].admits(found, wanted)


def test_labels_of_its_own_are_those_of_its_sweep(
    runtime: Runtime, kind: str, tmp_path: Path
) -> None:
    spatial(tmp_path / "m.onnx")
    session: Session = runtime.load(tmp_path / "m.onnx")
    if not isinstance(session, Labeller) or not isinstance(session, Sweeper):
        pytest.skip(f"{kind} leaves labels to the host")
    volume = {"image": np.random.default_rng(1).random((1, 20, 17, 9), np.float32)}
    window = Window("patch", patch=(8, 8, 8), fixed_batch=True)
    activations: tuple[Activation, ...] = ("none", "sigmoid")
    for after in activations:
        swept = session.sweep(volume, window, "probability", None, after)
        value = float(np.median(swept))
        rule = Labelling(values=(value,) * len(swept), certainty=True, after=after)
        made = session.labels(volume, window, "probability", rule)
        wanted = Threshold(rule.values).apply(Volume(swept, np.eye(4))).voxels
        assert np.array_equal(made.labels, wanted)
        assert made.certainty is not None
        highest = np.where(swept >= np.float32(value), swept, 0).max(axis=0)
        assert np.array_equal(made.certainty, highest)


def test_every_runtime_has_a_tolerance() -> None:
    assert {name for name, precision in TOLERANCES if precision == "fp32"} >= set(RUNTIMES)
    for tolerance in TOLERANCES.values():
        assert tolerance.absolute > 0
        assert tolerance.relative > 0
        assert tolerance.why


def test_what_is_not_finite_or_of_another_shape_is_never_close() -> None:
    tolerance, one = TOLERANCES["onnx", "fp32"], np.ones(3, np.float32)
    assert tolerance.admits(one + 9e-5, one)
    assert not tolerance.admits(one + 2e-4, one)
    assert not tolerance.admits(np.array([1, np.nan, 1], np.float32), one)
    assert not tolerance.admits(np.ones((1, 3), np.float32), one)
