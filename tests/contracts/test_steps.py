"""What every step promises, whatever it does."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from node.domain.errors import InferenceError
from node.domain.volume import Affine, Volume
from node.steps import MASKS, STEPS, MaskStep, Step
from tests.steps.volumes import affine, affines, blob, centroid, dice, noise, patient, sources

OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"centre": 400, "width": 1500},
    "clip": {"low": -100, "high": 900},
    "rescale": {"low": 0, "high": 1000, "onto": [-1, 1]},
    "percentile": {"foreground": "positive"},
    "zscore": {"foreground": 0.15, "clip": 5},
    "standardise": {"over": "nonzero"},
    "cast": {"dtype": "int16"},
    "orient": {"axes": "LPS"},
    "resample": {"spacing": [0, 0.8, 1.3]},
    "crop_or_pad": {"shape": [0, 64, 18]},
    "pad_to_multiple": {"multiple": [1, 16, 16]},
    "crop_foreground": {"threshold": 100, "margin_mm": 2},
    "transpose": {"order": [2, 1, 0]},
    "resize": {"shape": [0, 24, 26]},
    "extent": {"at_least": [18, 0, 0], "at_most": [0, 0, 38]},
    "nnunet_crop": {},
    "nnunet_normalise": {"schemes": ["zscore"]},
    "nnunet_resample": {"spacing": [0, 0.8, 1.3]},
}
"""Options of a typical use; a new step needs an entry here."""

MASK_OPTIONS: dict[str, dict[str, Any]] = {
    "threshold": {"value": 0.5},
    "argmax": {},
    "largest_component": {},
    "remove_small": {"minimum_ml": 0.01},
    "fill_holes": {},
    "closing": {"radius_mm": 2},
    "opening": {"radius_mm": 2},
    "regions": {"labels": [1, 2]},
}

THINNING: dict[str, list[dict[str, Any]]] = {
    "largest_component": [
        {"together": True, "connectivity": 6},
        {"labels": [1, 3], "together": True, "count": 2},
    ],
    "remove_small": [{"minimum_voxels": 3, "together": True}, {"minimum_voxels": 2}],
    "opening": [{"radius_mm": 1}],
}
"""Further options of the steps that only take labels away."""

SHAPE = (15, 20, 22)
LARGE = (30, 36, 40)
FROM_PROBABILITIES = {"threshold", "argmax", "regions"}


@pytest.fixture(params=sorted(STEPS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(MASKS))
def mask_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def step(name: str) -> Step:
    return TypeAdapter(STEPS[name]).validate_python(OPTIONS[name])


def mask_step(name: str) -> MaskStep:
    return TypeAdapter(MASKS[name]).validate_python(MASK_OPTIONS[name])


def labels_for(name: str, prediction: Volume) -> Volume:
    if name in FROM_PROBABILITIES:
        return prediction
    return prediction.with_voxels((prediction.voxels[0] >= 0.5).astype(np.uint8))


@settings(max_examples=12, deadline=None)
@given(place=affines(), spread=st.tuples(*[st.floats(-1.5, 1.5)] * 3))
@pytest.mark.parametrize("name", sorted(STEPS))
def test_point_in_the_patient_stays_where_it_is(
    name: str, place: Affine, spread: tuple[float, float, float]
) -> None:
    middle = (np.array(SHAPE) - 1) / 2 + spread
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    volume = blob(place, SHAPE, patient(place, middle), 3.0 * float(spacing.max()))
    after = step(name).forward(volume)
    assert np.linalg.norm(centroid(after) - centroid(volume)) < 0.5 * spacing.min()


EXACT = sorted(name for name, member in STEPS.items() if member.exact)
THIN = sorted(name for name, member in MASKS.items() if member.thins)


@settings(max_examples=25, deadline=None)
@given(place=affines(), shape=st.tuples(*[st.integers(1, 9)] * 3), lengths=st.integers(0, 12))
@pytest.mark.parametrize("name", EXACT)
def test_exact_step_brings_every_value_back_as_it_is_to_its_place(
    name: str, place: Affine, shape: tuple[int, int, int], lengths: int
) -> None:
    own = {"crop_or_pad": {"shape": [lengths, 3, 0]}, "pad_to_multiple": {"multiple": [1, 4, 3]}}
    chosen = TypeAdapter(STEPS[name]).validate_python(own.get(name, OPTIONS[name]))
    before = noise(shape, place)
    before.voxels[before.voxels < 500] = 0
    after = chosen.forward(before)
    # No two values are the same, none is 0, and what lies between two is none of them.
    count = int(np.prod(after.grid.shape))
    values = 1 / np.arange(1, count + 1, dtype=np.float32).reshape(1, *after.grid.shape)
    back = chosen.backward(after.with_voxels(values), before.grid)
    assert np.array_equal(back.affine, place)
    into = np.linalg.inv(after.affine) @ place
    for index in np.ndindex(*shape):
        k, j, i = np.rint(into @ [*index, 1])[:3].astype(int)
        inside = all(0 <= n < m for n, m in zip((k, j, i), after.grid.shape, strict=True))
        assert back.voxels[0][index] == (values[0, k, j, i] if inside else 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999), levels=st.integers(2, 4), shape=st.tuples(*[st.integers(1, 8)] * 3)
)
@pytest.mark.parametrize("mask_name", THIN)
def test_thinning_step_gives_no_voxel_another_label(
    mask_name: str, seed: int, levels: int, shape: tuple[int, int, int]
) -> None:
    labels = np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)
    for options in (MASK_OPTIONS[mask_name], *THINNING.get(mask_name, ())):
        chosen = TypeAdapter(MASKS[mask_name]).validate_python(options)
        after = chosen.apply(Volume(labels, affine((1.0, 1.2, 0.9)))).voxels
        assert ((after == labels) | (after == 0)).all()


@settings(max_examples=12, deadline=None)
@given(place=affines())
@pytest.mark.parametrize("name", sorted(STEPS))
def test_mask_drawn_after_a_step_comes_back_to_its_place(name: str, place: Affine) -> None:
    middle = patient(place, (np.array(LARGE) - 1) / 2)
    radius = 8.0 * float(np.linalg.norm(place[:3, :3], axis=0).max())
    volume = blob(place, LARGE, middle, radius)
    there = step(name).forward(volume)
    drawn = blob(there.affine, there.grid.shape, middle, radius)
    prediction = drawn.with_voxels((drawn.voxels[None] / 1000).astype(np.float32))
    back = step(name).backward(prediction, volume.grid)
    assert back.voxels.shape == (1, *LARGE)
    assert np.array_equal(back.affine, place)
    kept = step(name).backward(there.with_voxels(np.ones((1, *there.grid.shape))), volume.grid)
    inside = kept.voxels[0] > 0.5
    # Interpolated twice, some voxels of the border of this small blob fall on the other side.
    assert dice(back.voxels[0] > 0.5, (volume.voxels > 500) & inside) > 0.96


def test_backward_keeps_every_channel_and_stays_float32(name: str) -> None:
    volume = noise(SHAPE)
    there = step(name).forward(volume)
    prediction = noise((3, *there.grid.shape), there.affine, seed=1)
    back = step(name).backward(prediction, volume.grid)
    assert back.voxels.shape == (3, *SHAPE)
    assert back.voxels.dtype == np.float32


def test_step_gives_float32_whatever_comes_in(name: str) -> None:
    rng = np.random.default_rng(3)
    for dtype in (np.int16, np.uint16, np.int32, np.float32, np.float64):
        voxels = rng.integers(0, 1000, SHAPE).astype(dtype)
        after = step(name).forward(Volume(voxels, affine()))
        assert after.voxels.dtype == (np.int16 if name == "cast" else np.float32)


def test_step_takes_channels(name: str) -> None:
    volume = noise((2, *SHAPE))
    after = step(name).forward(volume)
    assert after.voxels.shape[0] == 2
    assert after.voxels.ndim == 4


@pytest.mark.parametrize("value", [-1000, 0, 7])
def test_constant_volume_passes_without_a_warning(name: str, value: int) -> None:
    after = step(name).forward(Volume(np.full(SHAPE, value, np.int16), affine()))
    assert np.isfinite(after.voxels).all()


@pytest.mark.parametrize("shape", [(1, 20, 22), (15, 1, 22), (15, 20, 1), (1, 1, 1)])
def test_axis_of_one_voxel_passes_and_comes_back(name: str, shape: tuple[int, int, int]) -> None:
    volume = noise(shape)
    there = step(name).forward(volume)
    prediction = there.with_voxels(np.ones((1, *there.grid.shape), np.float32))
    assert step(name).backward(prediction, volume.grid).voxels.shape == (1, *shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxel_that_is_no_number_is_refused(name: str, bad: float) -> None:
    volume = noise(SHAPE)
    volume.voxels[3, 2, 1] = bad
    with pytest.raises(InferenceError, match="NaN or infinite"):
        step(name).forward(volume)


def test_step_leaves_its_input_alone(name: str) -> None:
    volume = noise(SHAPE)
    kept, place = volume.voxels.copy(), volume.affine.copy()
    step(name).forward(volume)
    assert np.array_equal(volume.voxels, kept)
    assert np.array_equal(volume.affine, place)


def test_sources_are_kept_exactly_when_the_slices_are(name: str) -> None:
    for signs in [(1, 1, 1), (-1, 1, 1)]:
        place = affine(signs=signs)
        volume = replace(noise(SHAPE, place), sources=sources(SHAPE[0]))
        after = step(name).forward(volume)
        first, last = np.array([0, 0, 0]), np.array([SHAPE[0] - 1, 0, 0])
        normal = place[:3, 0] / np.linalg.norm(place[:3, 0])
        same = after.grid.shape[0] == SHAPE[0] and all(
            np.isclose((patient(after.affine, p) - patient(place, p)) @ normal, 0, atol=1e-6)
            for p in (first, last)
        )
        assert bool(after.sources) == same


def test_frame_of_reference_stays(name: str) -> None:
    volume = replace(noise(SHAPE), frame_of_reference_uid="1.2.3")
    assert step(name).forward(volume).frame_of_reference_uid == "1.2.3"


@pytest.mark.parametrize("family", [STEPS, MASKS], ids=["steps", "masks"])
def test_members_are_frozen_and_refuse_unknown_keys(family: dict[str, type[Any]]) -> None:
    for name, member in family.items():
        chosen = {**OPTIONS, **MASK_OPTIONS}[name]
        made = TypeAdapter(member).validate_python(chosen)
        assert is_dataclass(made)
        for field in fields(made):
            with pytest.raises(FrozenInstanceError):
                setattr(made, field.name, None)
        with pytest.raises(ValidationError, match="[Uu]nexpected"):
            TypeAdapter(member).validate_python({**chosen, "no_such_option": 1})


def test_options_survive_toml(name: str) -> None:
    lines = [f"{key} = {value!r}" for key, value in OPTIONS[name].items()]
    table = tomllib.loads("\n".join(lines))
    assert TypeAdapter(STEPS[name]).validate_python(table) == step(name)


def test_mask_step_gives_labels_on_the_same_grid(mask_name: str) -> None:
    prediction = Volume(np.random.default_rng(5).random((2, *SHAPE), np.float32), affine())
    before = labels_for(mask_name, prediction)
    kept = before.voxels.copy()
    after = mask_step(mask_name).apply(before)
    assert after.voxels.dtype == np.uint8
    assert after.voxels.shape == SHAPE
    assert after.affine is prediction.affine
    assert np.array_equal(before.voxels, kept)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 1, 9), (1, 1, 1)])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_mask_step_takes_thin_empty_and_full_volumes(
    mask_name: str, shape: tuple[int, int, int], level: float
) -> None:
    voxels = np.stack([np.full(shape, 0.5), np.full(shape, level)]).astype(np.float32)
    after = mask_step(mask_name).apply(labels_for(mask_name, Volume(voxels, affine())))
    assert after.voxels.shape == shape


def test_mask_step_says_which_input_it_needs(mask_name: str) -> None:
    probabilities = Volume(np.zeros((1, *SHAPE), np.float32), affine())
    labels = Volume(np.zeros(SHAPE, np.uint8), affine())
    wrong = labels if mask_name in FROM_PROBABILITIES else probabilities
    with pytest.raises(InferenceError, match="threshold or argmax"):
        mask_step(mask_name).apply(wrong)
