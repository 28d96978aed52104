"""The real TensorRT-RTX compiler: what becomes a plan, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.domain.errors import InferenceError, JobCancelled, RuntimeUnavailable
from node.gpu.building import build
from node.gpu.libraries import Library
from node.gpu.recipe import Precision, Profile, Settings
from tests.compile.models import recipe
from tests.compile.networks import (
    anywhere,
    cubic,
    deep,
    foreign,
    halved,
    quantised,
    short_integers,
    unet,
)

Make = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("make", "name"),
    [(unet, "model.onnx"), (halved, "model.fp16.onnx"), (quantised, "model.int8.onnx")],
)
def test_every_precision_of_a_network_compiles(
    make: Make, name: str, library: Library, tmp_path: Path
) -> None:
    built = build(library, recipe(make(tmp_path / name)))
    assert built.version == library.version
    assert built.activation > 0
    assert built.layers > 5


def test_predicted_memory_of_weights_is_theirs(library: Library, tmp_path: Path) -> None:
    full = build(library, recipe(unet(tmp_path / "model.onnx")))
    half = build(library, recipe(halved(tmp_path / "model.fp16.onnx")))
    values = 4 * 27 + 8 * 4 * 27 + 8 * 4 * 8 + 3 * 8 * 27
    assert 4 * values <= full.weights <= 4 * values + 4096
    assert 2 * values <= half.weights < full.weights


def test_two_builds_of_fixed_lengths_give_the_same_bytes(library: Library, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx")
    first, second = (build(library, recipe(path)) for _ in range(2))
    assert first.digest == second.digest
    assert first.plan == second.plan


def test_any_batch_becomes_a_profile_up_to_the_largest(library: Library, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx", batch="n")
    small, large = (build(library, recipe(path, (), Settings(batch=size))) for size in (1, 65))
    one_block = 4 * 4 * 8**3
    assert large.activation - small.activation > 64 * one_block


def test_free_lengths_compile_with_a_profile(library: Library, tmp_path: Path) -> None:
    profile = Profile("image", (1, 1, 16, 16), (2, 1, 64, 64), (4, 1, 128, 96))
    built = build(library, recipe(anywhere(tmp_path / "model.onnx"), (profile,)))
    assert built.activation >= 0
    assert built.digest


def test_plan_can_be_built_for_another_capability_than_this_machines(
    library: Library, tmp_path: Path
) -> None:
    path = unet(tmp_path / "model.onnx")
    orders = [recipe(path, (), Settings(capability=one)) for one in ("8.9", "12.0", "")]
    assert len({build(library, order).digest for order in orders}) == 3


def test_settings_reach_the_builder_and_tf32_is_off_unless_asked_for(
    library: Library, tmp_path: Path
) -> None:
    path = unet(tmp_path / "model.onnx")
    plain = build(library, recipe(path, (), Settings()))
    others = (Settings(tf32=True), Settings(workspace=1 << 24))
    assert build(library, recipe(path, (), Settings(tf32=False))).digest == plain.digest
    for settings in others:
        assert build(library, recipe(path, (), settings)).digest != plain.digest


def test_capability_that_the_library_does_not_build_for_is_refused(
    library: Library, tmp_path: Path
) -> None:
    order = recipe(unet(tmp_path / "model.onnx"), (), Settings(capability="9.0"))
    with pytest.raises(InferenceError, match="TensorRT-RTX"):
        build(library, order)


def test_layer_that_a_card_cannot_compute_is_named(library: Library, tmp_path: Path) -> None:
    order = recipe(unet(tmp_path / "model.onnx"), (), Settings(capability="7.5"))
    with pytest.raises(InferenceError, match=r"'the Conv of a' for Turing \(SM75\): FP32 3D"):
        build(library, order)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (cubic, r"node 'the Resize of out' \(Resize\): .*cubic"),
        (short_integers, r"the input 'image' has a number type that it lacks"),
        (foreign, r"node 'secret sauce' \(Blur\): it does not know this operator"),
        (anywhere, r"'image' has free axes .* beside its batch: .*profiles.image"),
    ],
)
def test_what_it_cannot_take_is_refused_with_node_and_reason(
    make: Make, reason: str, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(InferenceError, match=reason):
        build(library, recipe(make(tmp_path / "model.onnx")))


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (Profile("picture", (1,), (1,), (1,)), r"profiles for \['picture'\].*\['image'\]"),
        (Profile("image", (1, 1, 8), (1, 1, 8), (1, 1, 8)), "every row needs all axes"),
        (Profile("image", (1, 1, 8, 8), (1, 1, 4, 8), (1, 1, 16, 8)), "smallest <= usual"),
        (Profile("image", (1, 2, 8, 8), (1, 2, 8, 8), (1, 2, 8, 8)), "the fixed lengths"),
    ],
)
def test_profile_that_does_not_fit_is_refused(
    profile: Profile, reason: str, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(InferenceError, match=reason):
        build(library, recipe(anywhere(tmp_path / "model.onnx"), (profile,)))


@pytest.mark.parametrize(
    ("make", "found", "asked"),
    [(unet, "fp32", "fp16"), (halved, "fp16", "fp32"), (quantised, "int8", "fp16")],
)
def test_network_of_another_precision_is_refused(
    make: Make, found: str, asked: Precision, library: Library, tmp_path: Path
) -> None:
    order = replace(recipe(make(tmp_path / "model.onnx")), precision=asked)
    with pytest.raises(InferenceError, match=f"of precision {found}, not {asked}"):
        build(library, order)


@pytest.mark.parametrize("damage", ["text", "noise", "half"])
def test_file_that_is_no_network_is_refused(damage: str, library: Library, tmp_path: Path) -> None:
    path = unet(tmp_path / "model.onnx")
    content = path.read_bytes()
    noise = np.random.default_rng(0).bytes(500)
    damaged = {"text": b"<html>404</html>", "noise": noise, "half": content[: len(content) // 2]}
    path.write_bytes(damaged[damage])
    with pytest.raises(InferenceError, match=r"model\.onnx.*check that the file is complete"):
        build(library, recipe(path))


def test_file_that_is_absent_is_named(library: Library, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"there is no model file .*model\.onnx"):
        build(library, recipe(tmp_path / "model.onnx"))


def test_progress_only_grows_and_names_its_phases(library: Library, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    build(library, recipe(unet(tmp_path / "model.onnx")), lambda *words: told.append(words))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.5 < shares[-1] <= 1.0
    assert len({phase for _, phase in told}) > 2


def test_cancelled_build_stops_at_the_next_step(library: Library, tmp_path: Path) -> None:
    steps: list[float] = []

    def cancelled() -> bool:
        steps.append(1.0)
        return len(steps) > 3

    with pytest.raises(JobCancelled, match=r"model\.onnx was cancelled"):
        build(library, recipe(deep(tmp_path / "model.onnx")), cancelled=cancelled)
    assert len(steps) < 20


def test_plan_does_not_load_without_a_driver_and_says_so(library: Library, tmp_path: Path) -> None:
    try:
        np.ctypeslib.load_library("libcuda.so.1", ".")
    except OSError:
        built = build(library, recipe(unet(tmp_path / "model.onnx")))
    else:
        pytest.skip("there is an NVIDIA driver here")
    with library.calls("starting the runtime"):
        runtime = library.api.Runtime(library.logger)
    with library.calls("loading a plan"):
        assert runtime.deserialize_cuda_engine(built.plan) is None
        error = library.failure("loading a plan")
    assert isinstance(error, RuntimeUnavailable)
    assert str(error).startswith(f"no usable NVIDIA driver for TensorRT-RTX {library.version}")
