"""Our translation of MONAI's transforms gives what MONAI itself gives.

``fixtures/monai.npz`` holds MONAI's own voxels; ``monai_reference.py`` made it. Tolerances: grey
values and probabilities 1e-4 of their range (MONAI interpolates in float64 and sums in float32),
positions a thousandth of a millimetre, labels exactly.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, save
from pydantic import TypeAdapter

from node import bundle
from node.cli.engine.add import write
from node.dicom.geometry import arrange
from node.dicom.pixels import load
from node.domain.volume import Volume
from node.engine import Engine
from node.imports.monai import Monai
from node.monai.imprint import Imprint
from node.monai.parcel import Parcel
from node.monai.translation import Translation, translate
from node.monai.workflow import Workflow
from node.proposal import Guess
from node.runtimes.onnx import Onnx
from node.steps import MASKS, STEPS
from node.steps.spatial import Orient
from node.testing.series import received
from tests.imports.acquired import SERIES, saved
from tests.imports.chains import (
    ARGMAX,
    CHAINS,
    CLASSES,
    LABELS,
    NETWORKS,
    RAS,
    SOFTMAX,
    TRANSFORMS,
    network_of,
    sliding,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAMES = {"0": "background", "1": "liver", "2": "spleen"}
PAINTED = {"0": "tumor core", "1": "whole tumor", "2": "enhancing tumor"}


@cache
def monai() -> dict[str, NDArray[Any]]:
    with np.load(Path(__file__).parent / "fixtures" / "monai.npz") as held:
        return {name: held[name] for name in held}


def image(flips: tuple[int, ...] = (), name: str = "image") -> Volume:
    """MONAI's image as the node reads it: (k, j, i) in DICOM's coordinates."""
    voxels = np.ascontiguousarray(np.flip(monai()[name].transpose(2, 1, 0), flips))
    return Volume(voxels, monai()["place"][:, [2, 1, 0, 3]], "1.2.3")


def translated(configuration: dict[str, Any], names: dict[str, str]) -> Translation:
    parcel = Parcel(Path("nowhere"), frozenset())
    workflow = Workflow("configs/inference.json", configuration, parcel)
    made = translate(workflow, Imprint(metadata(names)))
    assert made.refused == []
    return made


def metadata(names: dict[str, str]) -> dict[str, Any]:
    inputs = {"modality": "CT", "channel_def": {"0": "image"}}
    outputs = {"num_channels": CLASSES, "channel_def": names}
    return {
        "name": "Tiny", "version": "1.0", "authors": "Nobody", "license": "Apache License",
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }  # fmt: skip


def configured(chain: dict[str, Any]) -> dict[str, Any]:
    dims, channels = NETWORKS[network_of(chain)]
    net = {"_target_": "Tiny", "in_channels": channels, "out_channels": CLASSES}
    net["spatial_dims"] = dims
    return {
        "network_def": net,
        "preprocessing": {"_target_": "Compose", "transforms": chain["preprocessing"]},
        "inferer": chain["inferer"],
        "postprocessing": {"_target_": "Compose", "transforms": chain["postprocessing"]},
    }


def stepped(rows: list[dict[str, Any]], volume: Volume) -> Volume:
    for row in rows:
        options = {key: _plain(value) for key, value in row.items() if key != "kind"}
        options.pop("joint", None)
        volume = TypeAdapter(STEPS[row["kind"]]).validate_python(options).forward(volume)
    return volume


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Guess) else value


def prepared(name: str, volume: Volume) -> Volume:
    chain = {
        "preprocessing": TRANSFORMS[name],
        "inferer": sliding(),
        "postprocessing": [SOFTMAX, ARGMAX],
    }
    rows = translated(configured(chain), NAMES).pre
    # The way back has no part in what the network sees.
    return stepped([{k: v for k, v in row.items() if k != "back"} for row in rows], volume)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_network_sees_what_monai_shows_it(name: str) -> None:
    ours, theirs = prepared(name, image()), monai()[f"transform/{name}"]
    assert ours.voxels.shape == theirs.shape
    span = float(np.ptp(theirs))
    np.testing.assert_allclose(ours.voxels, theirs, rtol=0, atol=1e-4 * max(span, 1.0))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_voxels_lie_where_monai_says_that_they_lie(name: str) -> None:
    ours, theirs = prepared(name, image()), monai()[f"place/{name}"]
    np.testing.assert_allclose(ours.affine, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", sorted(SERIES))
def test_dicom_series_lies_before_the_network_as_monai_reads_it(name: str, tmp_path: Path) -> None:
    """Files to voxels on both sides: no axis is exchanged and none turned round."""
    volume = load(arrange(received(saved(name, tmp_path))))
    chain = {"preprocessing": [RAS], "inferer": sliding(), "postprocessing": [SOFTMAX, ARGMAX]}
    ours = stepped(translated(configured(chain), NAMES).pre, volume)
    np.testing.assert_array_equal(ours.voxels, monai()[f"dicom/{name}"])
    # MONAI works out the place from header values with six digits.
    np.testing.assert_allclose(ours.affine, monai()[f"dicom place/{name}"], rtol=0, atol=1e-3)
    back = Orient("SAR").backward(ours, volume.grid)
    np.testing.assert_array_equal(back.voxels, volume.voxels)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_image_that_is_turned_round_is_not_taken_for_itself(axis: int) -> None:
    """The comparison would see a flip: the image has no symmetry."""
    theirs = monai()["transform/spacing finer"]
    ours = prepared("spacing finer", image(flips=(axis,)))
    assert np.abs(ours.voxels - theirs).max() > 0.2 * np.ptp(theirs)


def test_same_patient_in_other_slices_is_seen_the_same() -> None:
    """Orientation decides by the patient, not by how the series was acquired."""
    volume = image()
    turned = np.eye(4)[:, [1, 0, 2, 3]]
    turned[0, [1]] = -1
    turned[0, 3] = volume.grid.shape[0] - 1
    voxels = np.flip(volume.voxels, 0).transpose(1, 0, 2)
    other = Volume(np.ascontiguousarray(voxels), volume.affine @ turned)
    ours = prepared("spacing finer", other)
    np.testing.assert_allclose(ours.voxels, monai()["transform/spacing finer"], atol=0.05)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_labels_are_cleaned_as_monai_cleans_them(name: str) -> None:
    chain = {
        "preprocessing": [RAS],
        "inferer": sliding(),
        "postprocessing": [SOFTMAX, ARGMAX, *LABELS[name]],
    }
    made = translated(configured(chain), NAMES)
    # Slices, rows and columns are MONAI's axes here: its label map as it stands.
    volume = Volume(monai()["labels"], LPS @ np.eye(4))
    for row in made.post[1:]:
        options = {key: value for key, value in row.items() if key != "kind"}
        volume = TypeAdapter(MASKS[row["kind"]]).validate_python(options).apply(volume)
    theirs = monai()[f"labels/{name}"]
    assert np.unique(theirs).size == 3
    np.testing.assert_array_equal(volume.voxels, theirs)


def exported(path: Path, name: str) -> None:
    """MONAI's network as ONNX, of any size."""
    held, (dims, channels) = monai(), NETWORKS[name]
    tensors = {part: held[f"{part} {name}"] for part in ("first", "bias", "second", "shift")}
    axes = [f"a{n}" for n in range(dims)]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "first", "bias"], ["x"], pads=[1] * 2 * dims),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Conv", ["y", "second", "shift"], ["pred"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, *axes])],
        [helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["n", CLASSES, *axes])],
        [
            helper.make_tensor(part, TensorProto.FLOAT, array.shape, array.ravel())
            for part, array in tensors.items()
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def added(folder: Path, name: str) -> bundle.Bundle:
    """The bundle of a chain, added as the command adds it."""
    chain = CHAINS[name]
    source = folder / "bundle"
    (source / "configs").mkdir(parents=True)
    (source / "models").mkdir()
    names = PAINTED if "painted" in name else NAMES
    (source / "configs/metadata.json").write_text(json.dumps(metadata(names)))
    (source / "configs/inference.json").write_text(json.dumps(configured(chain)))
    exported(source / "models/model.onnx", network_of(chain))
    assert Monai().recognises(source)
    return write(Monai().propose(source, "tiny"), folder / "engines")


def series(package: bundle.Bundle) -> dict[str, Volume]:
    """The volumes of the roles that a package asks for."""
    both = {"image": image(), "other": image(name="other")}
    return {role: both[role] for role in package.manifest.roles}


@pytest.fixture(params=sorted(CHAINS))
def chain(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_bundle_gives_the_labels_that_monai_gives(chain: str, tmp_path: Path) -> None:
    package = added(tmp_path, chain)
    with Engine.load(package, Onnx()) as engine:
        found = engine.examine(series(package), "job")
    theirs = monai()[f"hard/{chain}"].transpose(2, 1, 0)
    labels = {one.name: one.label for one in package.manifest.findings}
    ours = np.zeros_like(theirs)
    for finding in found.findings:
        ours[finding.mask] = labels[finding.concept.label]
    wanted = np.where(np.isin(theirs, list(labels.values())), theirs, 0)
    assert np.unique(wanted).size >= 3
    assert np.count_nonzero(ours != wanted) == 0


@pytest.mark.parametrize("name", sorted(set(CHAINS) - {"as whole body"}))
def test_probabilities_are_those_of_monai(name: str, tmp_path: Path) -> None:
    """(In that chain they never reach the source images' grid.)"""
    package = added(tmp_path, name)
    with Engine.load(package, Onnx()) as engine:
        ours = engine.predict(series(package))
    wanted = monai()[f"soft/{name}"].transpose(0, 3, 2, 1)
    np.testing.assert_allclose(ours.voxels, wanted, rtol=0, atol=1e-4)


def test_fixture_is_the_one_that_the_script_made() -> None:
    """Whoever changes the chains has to run the script again."""
    held = monai()
    assert str(held["monai"]).startswith("1.6")
    assert {name for name in held if name.startswith("transform/")} == {
        f"transform/{name}" for name in TRANSFORMS
    }
    assert {name for name in held if name.startswith("hard/")} == {f"hard/{n}" for n in CHAINS}
