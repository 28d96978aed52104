"""Steps take volumes by themselves or together, and logits come back before they are activated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from node import bundle
from node.domain.errors import ConfigError, InferenceError
from node.domain.tensor import Tensors
from node.domain.volume import Volume
from node.engine import Engine
from node.manifest import Preparation
from node.passage import prepared
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.steps.intensity import ZScore
from node.steps.spatial import CropForeground, CropOrPad
from tests.engines.package import (
    FLAIR,
    IMAGE,
    LESION,
    PARTS,
    PROBABILITY,
    SLICES,
    T1,
    THRESHOLD,
    network,
    package,
)
from tests.test_engine import BOTH, BOX, FRAME, axial, box, image

SIGMOID = PROBABILITY + 'activation = "sigmoid"\n'
SOFTMAX = PROBABILITY + 'activation = "softmax"\n'
ARGMAX = '\n[[post]]\nkind = "argmax"\n'
CROP = '\n[[pre]]\nkind = "crop_foreground"\nthreshold = 200\n'


def pair() -> dict[str, Volume]:
    """The bright box in one role, another one with a corner of its own in the other."""
    flair, t1 = image(axial()), image(axial())
    t1 = t1.with_voxels(np.where(t1.voxels == 300, 100, t1.voxels).astype(np.float32))
    t1.voxels[6, 9:11, 13] = 500
    return {"flair": flair.with_voxels(flair.voxels.astype(np.float32)), "t1": t1}


def test_joint_step_sees_all_roles_as_channels_of_one_volume() -> None:
    crop = Preparation(CropForeground(threshold=200), ("flair", "t1"), joint=True)
    found = prepared([crop], pair())
    assert {one.volume.voxels.shape for one in found.values()} == {(5, 8, 10)}
    assert found["flair"].volume.voxels.max() == 300
    assert found["t1"].volume.voxels.max() == 500
    assert [len(one.way) for one in found.values()] == [1, 1]
    assert np.array_equal(found["t1"].volume.affine, found["flair"].volume.affine)


def test_joint_step_of_one_role_is_the_step() -> None:
    volumes = {"flair": pair()["flair"]}
    for step in (CropForeground(threshold=200), ZScore(), CropOrPad(shape=(0, 20, 6))):
        alone = prepared([Preparation(step, ("flair",))], volumes)["flair"]
        joint = prepared([Preparation(step, ("flair",), joint=True)], volumes)["flair"]
        assert np.array_equal(alone.volume.voxels, joint.volume.voxels)
        assert np.array_equal(alone.volume.affine, joint.volume.affine)


def test_channels_of_a_role_stay_its_own() -> None:
    volumes = pair()
    two = np.stack([volumes["flair"].voxels, volumes["flair"].voxels + 1])
    volumes["flair"] = volumes["flair"].with_voxels(two)
    crop = Preparation(CropForeground(threshold=200), ("flair", "t1"), joint=True)
    found = prepared([crop], volumes)
    assert found["flair"].volume.voxels.shape == (2, 5, 8, 10)
    assert found["t1"].volume.voxels.shape == (5, 8, 10)
    assert found["t1"].volume.voxels.max() == 500
    np.testing.assert_array_equal(
        found["flair"].volume.voxels[1], found["flair"].volume.voxels[0] + 1
    )


def test_joint_step_wants_one_grid() -> None:
    volumes = pair()
    cut = Preparation(CropOrPad(shape=(4, 0, 0)), ("t1",))
    joint = Preparation(ZScore(), ("flair", "t1"), joint=True)
    with pytest.raises(InferenceError, match=r"they leave t1 on a grid of \(4, 12, 16\)"):
        prepared([cut, joint], volumes)


def test_failure_of_a_joint_step_names_its_roles() -> None:
    volumes = pair()
    volumes["t1"] = volumes["t1"].with_voxels(np.full((8, 12, 16), np.nan, np.float32))
    joint = Preparation(ZScore(), ("flair", "t1"), joint=True)
    with pytest.raises(InferenceError, match=r"^pre step 1 \(zscore\) of roles flair, t1: .*NaN"):
        prepared([joint], volumes)


def test_finding_comes_back_through_a_joint_crop(tmp_path: Path) -> None:
    # Bright in either: each role alone reaches what the threshold needs.
    network(tmp_path / "model.onnx", [[0.1, 0.1]], [-35.0])
    parts = (FLAIR, T1, SLICES, BOTH, PROBABILITY, THRESHOLD, LESION, CROP + "joint = true\n")
    read = bundle.read(package(tmp_path, *parts))
    with Engine.load(read, Onnx(threads=1)) as engine:
        findings = engine.examine(pair(), "job").findings
    wanted = box()
    wanted[6, 9:11, 13] = True
    assert np.array_equal(np.any([finding.mask for finding in findings], axis=0), wanted)


def test_joint_is_true_or_false(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[0.1]], [-20.0])
    with pytest.raises(ConfigError, match=r"pre\[0\].joint: expected true or false"):
        bundle.read(package(tmp_path, *PARTS, CROP + 'joint = "yes"\n'))


def load(folder: Path, output: str, post: str, *pre: str) -> Engine:
    """Logits: channel 0 always 0, channel 1 the grey value less 200, tenfold less."""
    network(folder / "model.onnx", [[0.0], [0.1]], [0.0, -20.0], "Identity")
    parts = (FLAIR, SLICES, IMAGE, output, post, LESION, *pre)
    return Engine.load(bundle.read(package(folder, *parts)), Onnx(threads=1))


@pytest.mark.parametrize("when", ["blocks", "blended", "source"])
def test_without_overlap_and_resampling_all_are_the_same(tmp_path: Path, when: str) -> None:
    with load(tmp_path, SOFTMAX + f'activated = "{when}"\n', ARGMAX) as engine:
        prediction = engine.predict({"flair": image(axial())}).voxels
        (finding,) = engine.examine({"flair": image(axial())}, "job").findings
    assert prediction[1][BOX] == pytest.approx(1 / (1 + np.exp(-10)), rel=1e-6)
    assert prediction.sum(axis=0) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(finding.mask, box())
    assert finding.probability == pytest.approx(1 / (1 + np.exp(-10)), rel=1e-6)


def edge(tmp_path: Path, when: str) -> NDArray[np.float32]:
    """Probabilities along the columns of a step from 0 to 300, back from a finer grid."""
    folder = tmp_path / when
    folder.mkdir()
    voxels = np.zeros((1, 4, 8), np.int16)
    voxels[..., 4:] = 300
    source = Volume(voxels, axial((3.0, 0.45, 0.45)), FRAME)
    coarse = '\n[[pre]]\nkind = "resample"\nspacing = [0, 0.6, 0.6]\norder = 0\n'
    with load(folder, SIGMOID + f'activated = "{when}"\n', THRESHOLD, coarse) as engine:
        return np.asarray(engine.predict({"flair": source}).voxels[1, 0, 0])


def test_logits_are_brought_back_before_they_are_activated(tmp_path: Path) -> None:
    # Half way between logits of -20 and 10 is -5; half way between 0 and 1 is 0.5.
    blended, source = edge(tmp_path, "blended"), edge(tmp_path, "source")
    logits = np.log(source.astype(np.float64) / (1 - source.astype(np.float64)))
    between = (logits > -19) & (logits < 9)
    assert between.any()
    share = (logits[between] + 20) / 30
    np.testing.assert_allclose(blended[between], share, atol=1e-3)


@pytest.mark.parametrize(("output", "post"), [(SOFTMAX, ARGMAX), (SIGMOID, THRESHOLD)])
def test_what_the_steps_cut_away_is_found_nowhere(tmp_path: Path, output: str, post: str) -> None:
    # A logit of 0 beyond the crop would be a probability of a half.
    with load(tmp_path, output + 'activated = "source"\n', post, CROP) as engine:
        prediction = engine.predict({"flair": image(axial())}).voxels
    outside = ~box()
    assert (prediction[1][outside] == 0).all()
    assert prediction[1][box()] == pytest.approx(1 / (1 + np.exp(-10)), rel=1e-6)
    assert (prediction[0][outside] == (1 if output is SOFTMAX else 0)).all()


class Lopsided:
    """A session that sees its finding in the first column of whatever it is shown."""

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs

    def infer(self, feeds: Tensors) -> Tensors:
        logits = np.zeros_like(feeds["image"])
        logits[..., 0] = 4
        return {"probability": logits}

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ("blocks", (1 / (1 + np.exp(-4)) + 0.5) / 2),
        ("blended", 1 / (1 + np.exp(-2))),
        ("source", 1 / (1 + np.exp(-2))),
    ],
)
def test_what_is_averaged_is_what_the_manifest_says(
    tmp_path: Path, when: str, wanted: float
) -> None:
    window = SLICES + 'mirror = ["i"]\n'
    parts = (FLAIR, window, IMAGE, SIGMOID + f'activated = "{when}"\n', THRESHOLD, LESION)
    network(tmp_path / "model.onnx", [[0.01]], [-2.0], "Identity")
    two = Volume(np.zeros((1, 3, 2), np.int16), axial(), FRAME)
    with Engine.load(bundle.read(package(tmp_path, *parts)), Onnx(threads=1)) as engine:
        lopsided = replace(engine, session=Lopsided(engine.session))
        found = lopsided.predict({"flair": two}).voxels
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "output", "words"),
    [
        (
            SLICES + "skip_air = true\n",
            SIGMOID + 'activated = "blended"\n',
            "window.skip_air: air that is skipped has a probability and no logit",
        ),
        (
            SLICES,
            PROBABILITY + 'activated = "source"\n',
            "output.activated: says when, but [output].activation does not say which",
        ),
        (SLICES, SIGMOID + 'activated = "later"\n', "'blocks', 'blended' or 'source'"),
    ],
)
def test_activation_that_makes_no_sense_is_refused(
    tmp_path: Path, window: str, output: str, words: str
) -> None:
    network(tmp_path / "model.onnx", [[0.1]], [-20.0])
    with pytest.raises(ConfigError) as refused:
        bundle.read(package(tmp_path, FLAIR, window, IMAGE, output, THRESHOLD, LESION))
    assert words in str(refused.value)
