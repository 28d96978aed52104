"""An engine gives findings on the source's own voxels, the same every time, or says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from node import bundle
from node.domain.errors import InferenceError
from node.domain.finding import Finding
from node.domain.volume import Affine, Volume
from node.engine import Engine
from node.runtimes.onnx import Onnx
from tests.engines.package import (
    FLAIR,
    IMAGE,
    LESION,
    PARTS,
    PROBABILITY,
    SLICES,
    T1,
    THRESHOLD,
    brighter_than,
    network,
    package,
)

FRAME = "1.2.3"
ORIENT = '\n[[pre]]\nkind = "orient"\n'
PAD = '\n[[pre]]\nkind = "pad_to_multiple"\nmultiple = [1, 8, 8]\n'
BOTH = IMAGE.replace('["flair"]', '["flair", "t1"]')
ORDERS = list(product(permutations(range(3)), product((-1, 1), repeat=3)))
BOX = (slice(2, 5), slice(3, 8), slice(4, 11))


def axial(spacing: Sequence[float] = (3.0, 0.9, 0.7)) -> Affine:
    """Slices upwards, rows to the back, columns to the left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    affine[:3, 3] = -40.0, -50.0, 10.0
    return affine


def turned(order: Sequence[int], signs: Sequence[int], angles: Sequence[float]) -> Affine:
    """Any order and sign of axes, turned by up to some degrees."""
    cosines = np.zeros((3, 3))
    cosines[list(order), [0, 1, 2]] = signs
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = rotation @ cosines * (3.0, 0.9, 0.7)
    affine[:3, 3] = 12.0, -7.0, 30.0
    return affine


def image(affine: Affine, shape: tuple[int, int, int] = (8, 12, 16), frame: str = FRAME) -> Volume:
    """Tissue of 100 with one bright box of 300."""
    voxels = np.full(shape, 100, np.int16)
    voxels[BOX] = 300
    return Volume(voxels, affine, frame)


def box(shape: tuple[int, int, int] = (8, 12, 16)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[BOX] = True
    return mask


def bright_engine(folder: Path, *parts: str) -> Engine:
    brighter_than(folder / "model.onnx", 200)
    return Engine.load(bundle.read(package(folder, *(parts or PARTS))), Onnx(threads=1))


def assess(engine: Engine, job: str = "job", **volumes: Volume) -> tuple[Finding, ...]:
    with engine:
        return engine.examine(volumes, job).findings


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ORDERS),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.sampled_from([(ORIENT,), (ORIENT, PAD), (PAD, ORIENT)]),
)
def test_finding_lands_on_its_voxels_for_any_orientation(
    order: tuple[Sequence[int], Sequence[int]], angles: Sequence[float], pre: tuple[str, ...]
) -> None:
    with TemporaryDirectory() as folder:
        engine = bright_engine(Path(folder), *PARTS, *pre)
        (finding,) = assess(engine, flair=image(turned(*order, angles)))
    assert np.array_equal(finding.mask, box())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ORDERS))
def test_resampled_finding_comes_back_within_a_voxel(
    order: tuple[Sequence[int], Sequence[int]],
) -> None:
    fine = '\n[[pre]]\nkind = "resample"\nspacing = [0, 0.5, 0.6]\n'
    with TemporaryDirectory() as folder:
        engine = bright_engine(Path(folder), *PARTS, ORIENT, fine)
        (finding,) = assess(engine, flair=image(turned(*order, (0, 0, 0)), (30, 30, 30)))
    true = box((30, 30, 30))
    centre, wanted = (np.argwhere(mask).mean(axis=0) for mask in (finding.mask, true))
    assert np.abs(centre - wanted).max() < 0.5
    assert 0.5 < finding.mask.sum() / true.sum() < 1.5


def test_prediction_lies_on_the_source_grid(tmp_path: Path) -> None:
    source = image(turned((1, 2, 0), (-1, 1, -1), (5, 0, 0)))
    with bright_engine(tmp_path, *PARTS, ORIENT, PAD) as engine:
        prediction = engine.predict({"flair": source})
    assert prediction.voxels.shape == (1, 8, 12, 16)
    assert prediction.voxels.dtype == np.float32
    assert np.array_equal(prediction.affine, source.affine)
    assert prediction.voxels[0][box()] == pytest.approx(1, abs=1e-4)
    assert prediction.voxels[0][~box()] == pytest.approx(0, abs=1e-4)


def test_two_runs_are_identical(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    source = Volume(rng.integers(0, 400, (9, 21, 17)).astype(np.int16), axial(), FRAME)
    engine = bright_engine(tmp_path, *PARTS, ORIENT)
    first, second = (engine.examine({"flair": source}, "job").findings for _ in range(2))
    assert first
    for one, other in zip(first, second, strict=True):
        assert one.tracking_uid == other.tracking_uid
        assert one.measurements == other.measurements
        assert one.probability == other.probability
        assert one.mask.tobytes() == other.mask.tobytes()
        assert one.outline is not None
        assert other.outline is not None
        assert one.outline.points.tobytes() == other.outline.points.tobytes()


def test_finding_is_tracked_by_its_job(tmp_path: Path) -> None:
    engine = bright_engine(tmp_path)
    (one,), (other,) = (engine.examine({"flair": image(axial())}, j).findings for j in "ab")
    assert one.tracking_id == other.tracking_id == "tester Lesion 1"
    assert one.tracking_uid != other.tracking_uid


def test_nothing_bright_is_no_finding(tmp_path: Path) -> None:
    dark = image(axial()).with_voxels(np.zeros((8, 12, 16), np.int16))
    assert assess(bright_engine(tmp_path), flair=dark) == ()


def test_left_out_findings_are_said(tmp_path: Path) -> None:
    voxels = np.zeros((1, 12, 16), np.int16)
    voxels[0, ::2, ::2] = 300
    limited = (*PARTS[:-1], LESION + "max_instances = 2\n")
    with bright_engine(tmp_path, *limited) as engine:
        found = engine.examine({"flair": Volume(voxels, axial(), FRAME)}, "job")
    assert len(found.findings) == 2
    assert "48 regions" in found.notes[0]


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        ('mode = "slice"\nlayout = "NCHW"', ("n", "c", "h", "w")),
        ('mode = "slice"\npatch = [8, 8]\nskip_air = true', ("n", "c", 8, 8)),
        ('mode = "patch"\npatch = [4, 8, 8]', (1, "c", 4, 8, 8)),
        ('mode = "volume"\nmultiple = 4', ("n", "c", "d", "h", "w")),
    ],
)
def test_every_window_finds_the_same(
    tmp_path: Path, window: str, shape: tuple[int | str, ...]
) -> None:
    network(tmp_path / "model.onnx", [[0.1]], [-20.0], shape=shape)
    parts = (FLAIR, f"\n[window]\n{window}\n", *PARTS[2:])
    engine = Engine.load(bundle.read(package(tmp_path, *parts)), Onnx(threads=1))
    (finding,) = assess(engine, flair=image(axial()))
    assert np.array_equal(finding.mask, box())


def test_stack_sees_the_neighbouring_slices(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[0.1, 0.0, 0.0]], [-20.0])
    parts = (FLAIR, '\n[window]\nmode = "stack"\nstack = 3\n', *PARTS[2:])
    engine = Engine.load(bundle.read(package(tmp_path, *parts)), Onnx(threads=1))
    (finding,) = assess(engine, flair=image(axial()))
    assert np.flatnonzero(finding.mask.any(axis=(1, 2))).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("inside", "activation", "exclusive"),
    [("Softmax", "none", "exclusive = true\n"), ("Identity", "softmax", "")],
)
def test_probability_is_that_of_the_labels_channel(
    tmp_path: Path, inside: str, activation: str, exclusive: str
) -> None:
    # Channel 1 is half as sure of the background as channel 2, which wins where it is bright.
    network(tmp_path / "model.onnx", [[0.0], [0.0], [0.01]], [2.0, 0.0, 0.0], inside)
    parts = (
        FLAIR, SLICES + exclusive, IMAGE,
        PROBABILITY + f'activation = "{activation}"\n', '\n[[post]]\nkind = "argmax"\n',
        LESION, LESION.replace("label = 1", "label = 2").replace("Lesion", "Core"),
    )  # fmt: skip
    engine = Engine.load(bundle.read(package(tmp_path, *parts)), Onnx(threads=1))
    (finding,) = assess(engine, flair=image(axial()))
    logits = np.exp([2.0, 0.0, 3.0])
    assert finding.concept.label == "Core"
    assert finding.probability == pytest.approx(logits[2] / logits.sum(), rel=1e-5)


def test_sigmoid_activation_is_applied(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[0.01]], [-2.0], "Identity")
    parts = (FLAIR, SLICES, IMAGE, PROBABILITY + 'activation = "sigmoid"\n', THRESHOLD, LESION)
    engine = Engine.load(bundle.read(package(tmp_path, *parts)), Onnx(threads=1))
    (finding,) = assess(engine, flair=image(axial()))
    assert finding.probability == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-5)
    assert np.array_equal(finding.mask, box())


def two_roles(folder: Path, *pre: str) -> Engine:
    """Finds what is bright in both series: each adds half of what the threshold needs."""
    network(folder / "model.onnx", [[0.1, 0.1]], [-50.0])
    parts = (FLAIR, T1, SLICES, BOTH, PROBABILITY, THRESHOLD, LESION, *pre)
    return Engine.load(bundle.read(package(folder, *parts)), Onnx(threads=1))


def test_series_on_another_grid_is_brought_to_the_reference(tmp_path: Path) -> None:
    # The same place with slices downwards, columns to the right, twice as fine, and wider.
    voxels = np.zeros((8, 34, 42), np.int16)
    voxels[1:4, 7:17, 15:29] = 300
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = -3.0, 0.5, -0.5
    affine[:3, 3] = -40.0 + 17.75, -50.0 - 0.75, 10.0 + 15.0
    flair, t1 = image(axial((3.0, 1.0, 1.0))), Volume(voxels, affine, FRAME)
    (finding,) = assess(two_roles(tmp_path), flair=flair, t1=t1)
    assert np.array_equal(finding.mask, box())


def test_steps_may_be_for_one_role_only(tmp_path: Path) -> None:
    doubled = '\n[[pre]]\nkind = "rescale"\nlow = 0\nhigh = 1\nonto = [0, 2]\nroles = ["t1"]\n'
    bright = image(axial())
    dim = bright.with_voxels(bright.voxels // 2)
    assert assess(two_roles(tmp_path), flair=bright, t1=dim) == ()
    (finding,) = assess(two_roles(tmp_path, doubled), flair=bright, t1=dim)
    assert np.array_equal(finding.mask, box())


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ((FRAME, "9.9.9"), "is another than that of flair"),
        ((FRAME, ""), "is unknown, not that of flair"),
        (("", ""), "is unknown, not that of flair"),
    ],
)
def test_series_of_another_frame_of_reference_is_refused(
    tmp_path: Path, frames: tuple[str, str], words: str
) -> None:
    flair, t1 = (image(axial(), frame=frame) for frame in frames)
    with pytest.raises(InferenceError, match=f"volume of role t1: its frame of reference {words}"):
        assess(two_roles(tmp_path), flair=flair, t1=t1)


def test_series_elsewhere_is_refused(tmp_path: Path) -> None:
    away = axial()
    away[:3, 3] += 500
    with pytest.raises(InferenceError, match="role t1: it covers no part of the series of flair"):
        assess(two_roles(tmp_path), flair=image(axial()), t1=image(away))


def test_steps_that_part_the_roles_grids_are_refused(tmp_path: Path) -> None:
    crop = '\n[[pre]]\nkind = "crop_foreground"\nthreshold = 200\nroles = ["t1"]\n'
    with pytest.raises(InferenceError, match=r"pre steps: they leave t1 on a grid of \(3, 5, 7\)"):
        assess(two_roles(tmp_path, crop), flair=image(axial()), t1=image(axial()))


def test_role_without_a_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no volume was given for the role t1"):
        assess(two_roles(tmp_path), flair=image(axial()))


def test_voxels_that_are_no_numbers_are_refused_by_role(tmp_path: Path) -> None:
    broken = image(axial()).with_voxels(np.full((8, 12, 16), np.nan, np.float32))
    with pytest.raises(InferenceError, match="volume of role flair: .*NaN"):
        assess(bright_engine(tmp_path), flair=broken)


def test_failure_names_its_step(tmp_path: Path) -> None:
    huge = '\n[[pre]]\nkind = "resample"\nspacing = [0, 1e-5, 1e-5]\n'
    with pytest.raises(InferenceError, match=r"pre step 2 \(resample\) of role flair: "):
        assess(bright_engine(tmp_path, *PARTS, ORIENT, huge), flair=image(axial()))


def test_output_that_is_not_finite_names_the_network(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[1.0]], [-1000.0], "Log")
    engine = Engine.load(bundle.read(package(tmp_path)), Onnx(threads=1))
    with pytest.raises(InferenceError, match="^network: .*NaN"):
        assess(engine, flair=image(axial()))


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with bright_engine(tmp_path) as engine:
        engine.examine({"flair": image(axial())}, "job", lambda *now: told.append(now))
    assert told == [(4, 8), (8, 8)]


def test_closed_engine_refuses_to_work(tmp_path: Path) -> None:
    engine = bright_engine(tmp_path)
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.predict({"flair": image(axial())})


@pytest.mark.parametrize(
    ("part", "instead", "words"),
    [
        (IMAGE, IMAGE.replace("image", "picture"), r"takes the tensors \['image'\].*picture"),
        (PROBABILITY, PROBABILITY.replace("prob", "imp"), r"gives the tensors \['probability'\]"),
        (SLICES, '[window]\nmode = "volume"\n', "window mode 'volume' feeds tensors of 5 axes"),
        (SLICES, '[window]\nmode = "stack"\n', "1 channels; 1 roles in window mode 'stack' make 3"),
        (LESION, LESION.replace("label = 1", "label = 2"), r"'Lesion' is label 2.*labels \[1\]"),
        (THRESHOLD, THRESHOLD + "labels = [1, 2]\n", r"post step 1 \(threshold\).*1 channels"),
        (THRESHOLD, '[[post]]\nkind = "fill_holes"\n', r"post step 1 \(fill_holes\).*threshold"),
        (LESION, LESION + '[[pre]]\nkind = "cast"\ndtype = "uint8"\n', "pre steps make uint8"),
    ],
)
def test_manifest_that_does_not_fit_the_network_is_refused_at_loading(
    tmp_path: Path, part: str, instead: str, words: str
) -> None:
    network(tmp_path / "model.onnx", [[0.1]], [-20.0])
    folder = package(tmp_path, *[instead if one == part else one for one in PARTS])
    with pytest.raises(InferenceError, match=words) as refused:
        Engine.load(bundle.read(folder), Onnx(threads=1))
    assert str(refused.value).startswith("engine tester, model against manifest: ")


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InferenceError, match="no ONNX model"):
        Engine.load(bundle.read(package(tmp_path)), Onnx(threads=1))


def test_fixed_batch_of_the_network_is_kept(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[0.1]], [-20.0], shape=(3, "c", 12, 16))
    engine = Engine.load(bundle.read(package(tmp_path)), Onnx(threads=1))
    assert replace(engine.window, batch=3, fixed_batch=True) == engine.window
    (finding,) = assess(engine, flair=image(axial()))
    assert np.array_equal(finding.mask, box())
