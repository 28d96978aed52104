"""What every runtime promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from node.domain.errors import InferenceError
from node.domain.tensor import TensorSpec
from node.runtimes import RUNTIMES, Runtime
from tests.runtimes.test_onnx import doubling

MODELS: dict[str, Callable[[Path], Path]] = {"onnx": lambda folder: doubling(folder / "model.onnx")}
"""A network for each runtime that doubles its input (any, 1, 4, 4); a new one needs an entry."""


@pytest.fixture(params=sorted(RUNTIMES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def runtime(name: str) -> Runtime:
    return TypeAdapter(RUNTIMES[name]).validate_python({})


def test_member_is_frozen_has_defaults_and_refuses_unknown_keys(name: str) -> None:
    made = runtime(name)
    assert is_dataclass(made)
    for field in fields(made):
        with pytest.raises(AttributeError):
            setattr(made, field.name, None)
    with pytest.raises(ValidationError):
        TypeAdapter(RUNTIMES[name]).validate_python({"no_such_option": 1})


def test_session_tells_its_tensors_and_computes(name: str, tmp_path: Path) -> None:
    session = runtime(name).load(MODELS[name](tmp_path))
    (spec,) = session.inputs
    assert spec == TensorSpec("image", (-1, 1, 4, 4), "float32")
    image = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)
    found = session.infer({"image": image})
    assert found.keys() == {spec.name for spec in session.outputs}
    assert np.array_equal(found["twice"], image * 2)
    session.close()


def test_computing_twice_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    session = runtime(name).load(MODELS[name](tmp_path))
    image = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)
    first, second = (session.infer({"image": image})["twice"] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first is not second


def test_wrong_feeds_are_inference_errors_that_name_the_tensor(name: str, tmp_path: Path) -> None:
    session = runtime(name).load(MODELS[name](tmp_path))
    good = np.zeros((1, 1, 4, 4), np.float32)
    for feeds in ({}, {"image": good, "more": good}, {"image": good[0]}, {"image": good > 0}):
        with pytest.raises(InferenceError, match="image"):
            session.infer(feeds)


def test_model_that_cannot_be_loaded_is_an_inference_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(InferenceError):
        runtime(name).load(tmp_path / "absent")
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(InferenceError):
        runtime(name).load(tmp_path / "text")


def test_closed_session_refuses_to_compute(name: str, tmp_path: Path) -> None:
    session = runtime(name).load(MODELS[name](tmp_path))
    session.close()
    with pytest.raises(InferenceError):
        session.infer({"image": np.zeros((1, 1, 4, 4), np.float32)})
