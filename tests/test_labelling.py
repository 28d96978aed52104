"""Which engines' labels a device may make, as their manifests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import bundle
from node.gpu.canvas import Labelling
from node.labelling import labelling
from node.manifest import Manifest
from tests.engines.package import (
    FLAIR,
    IMAGE,
    LESION,
    PROBABILITY,
    SLICES,
    T1,
    member,
    network,
    package,
)

ARGMAX = '\n[[post]]\nkind = "argmax"\n'
BLENDED = PROBABILITY + 'activation = "softmax"\nactivated = "blended"\n'
RESAMPLE = '\n[[pre]]\nkind = "resample"\nspacing = [0, 1, 1]\n'


def manifest(folder: Path, *post: str, output: str = PROBABILITY, more: str = "") -> Manifest:
    network(folder / "model.onnx", [[0.0], [0.1], [0.2]], [0.0, -20.0, 1.0])
    parts = (FLAIR, SLICES, IMAGE, output, *(post or (ARGMAX,)), LESION, more)
    return bundle.read(package(folder, *parts)).manifest


def test_rule_is_that_of_the_first_mask_step(tmp_path: Path) -> None:
    most = manifest(tmp_path, ARGMAX + "labels = [0, 4, 1]\n")
    assert labelling(most, 3) == Labelling((0, 4, 1), certainty=True)
    reached = manifest(tmp_path, '\n[[post]]\nkind = "threshold"\nvalue = [0.1, 0.2, 0.3]\n')
    assert labelling(reached, 3) == Labelling((), (0.1, 0.2, 0.3), certainty=True)
    one = manifest(tmp_path, '\n[[post]]\nkind = "threshold"\nvalue = 0.4\n')
    assert labelling(one, 3) == Labelling((), (0.4, 0.4, 0.4), certainty=True)


def test_raw_values_that_were_blended_are_activated_first(tmp_path: Path) -> None:
    assert labelling(manifest(tmp_path, output=BLENDED), 3) == Labelling(
        certainty=True, after="softmax"
    )


def test_labels_are_no_less_than_one_probability(tmp_path: Path) -> None:
    assert labelling(manifest(tmp_path), 1) is None
    assert labelling(manifest(tmp_path), -1) is None
    assert labelling(manifest(tmp_path), 2) is not None


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_several_networks_have_to_agree_on_probabilities(tmp_path: Path, combine: str) -> None:
    other = member(network(tmp_path / "fold.onnx", [[0.0], [0.1], [0.3]], [0.0] * 3))
    several = manifest(tmp_path, more=f'\n[ensemble]\ncombine = "{combine}"\n{other}')
    assert labelling(several, 3) is None


def test_only_the_reference_roles_steps_bring_labels_back(tmp_path: Path) -> None:
    network(tmp_path / "model.onnx", [[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]], [0.0, -20.0, 1.0])
    both = IMAGE.replace('["flair"]', '["flair", "t1"]')
    parts = (FLAIR, T1, SLICES, both, PROBABILITY, ARGMAX, LESION)
    for role, may in (("t1", True), ("flair", False)):
        step = f'{RESAMPLE}roles = ["{role}"]\n'
        read = bundle.read(package(tmp_path, *parts, step)).manifest
        assert (labelling(read, 3) is not None) is may
    assert labelling(bundle.read(package(tmp_path, *parts, RESAMPLE)).manifest, 3) is None


def test_steps_that_only_take_labels_away_may_follow(tmp_path: Path) -> None:
    thin = '\n[[post]]\nkind = "largest_component"\n\n[[post]]\nkind = "opening"\nradius_mm = 1\n'
    assert labelling(manifest(tmp_path, ARGMAX, thin), 3) is not None
    thick = '\n[[post]]\nkind = "fill_holes"\n'
    assert labelling(manifest(tmp_path, ARGMAX, thin, thick), 3) is None
