"""Variants of a package's network: kept where they answer as FP32 does, and told where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from node import bundle as bundles
from node.bundle import Bundle
from node.domain.errors import InferenceError
from node.gpu.lineage import origin
from node.gpu.recipe import digest, variant
from node.runtimes.onnx import Onnx
from node.testing.series import save
from node.variants import Made, Sample, make, sample
from tests.acceptance.hospital import small_study
from tests.engines.package import PARTS, THRESHOLD, member, package
from tests.runtimes.networks import kernel

SIZE = ("n", 1, 32, 24)


def network(path: Path, *layers: tuple[str, np.ndarray]) -> Path:
    """Convolutions with instance norm and ReLU between them, and a sigmoid at the end."""
    nodes, weights, source = [], [], "image"
    for number, (norm, weight) in enumerate(layers):
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        pads = [1] * 4 if weight.shape[-1] == 3 else [0] * 4
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], pads=pads))
        source = f"c{number}"
        if norm:
            for part, value in (("s", 1.0), ("b", 0.0)):
                filled = np.full(len(weight), value, np.float32)
                weights.append(numpy_helper.from_array(filled, f"{part}{number}"))
            parts = [source, f"s{number}", f"b{number}"]
            nodes.append(helper.make_node(norm, parts, [f"n{number}"]))
            nodes.append(helper.make_node("Relu", [f"n{number}"], [f"r{number}"]))
            source = f"r{number}"
    nodes.append(helper.make_node("Sigmoid", [source], ["probability"]))
    graph = helper.make_graph(
        nodes,
        "variants",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SIZE)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, SIZE)],
        weights,
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


NORM = "InstanceNormalization"
SOUND = [(NORM, kernel(8, 1, 3, 3)), (NORM, kernel(8, 8, 3, 3)), ("", 3 * kernel(1, 8, 3, 3))]
LOUD = [(NORM, np.full((1, 1, 1, 1), 6e4)), ("", np.ones((1, 1, 1, 1)))]
"""Before the norm, whatever is beyond 1.09 is beyond what FP16 holds."""


def bundle(folder: Path, layers: list[tuple[str, np.ndarray]] | None = None) -> Bundle:
    folder.mkdir(exist_ok=True)
    network(folder / "model.onnx", *(layers or SOUND))
    parts = [part.replace("0.5", "0.47") if part == THRESHOLD else part for part in PARTS]
    return bundles.read(package(folder, *parts))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save(small_study(), folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, study: Path) -> tuple[Bundle, Made]:
    package = bundle(tmp_path_factory.mktemp("engine") / "half")
    return package, make(package, "fp16", sample(package, [study], 2))


def test_fp16_lies_beside_the_model_and_knows_it(half: tuple[Bundle, Made]) -> None:
    package, made = half
    path = package.folder / "model.fp16.onnx"
    assert made.kept
    assert [file.path for file in made.files] == [path]
    assert variant(package.model, "fp16") == path
    assert origin(path) == digest(package.model)
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(one.name for one in package.folder.iterdir()) == [
        "engine.toml", "model.fp16.onnx", "model.onnx",
    ]  # fmt: skip


def test_fp16_takes_and_gives_fp32_and_keeps_norms_in_it(half: tuple[Bundle, Made]) -> None:
    package, made = half
    whole, narrow = (Onnx().load(package.folder / f"model{p}.onnx") for p in ("", ".fp16"))
    assert (narrow.inputs, narrow.outputs) == (whole.inputs, whole.outputs)
    model = onnx.load(str(package.folder / "model.fp16.onnx"))
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    assert kinds["s0"] == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in kinds.values()
    assert "in FP32: 2 InstanceNormalization, 1 Sigmoid" in made.notes


def test_loss_is_told_by_the_gates_of_the_verification(half: tuple[Bundle, Made]) -> None:
    _, made = half
    gates = {gate.name: gate for gate in made.verdict.gates}
    assert made.verdict.passed
    assert gates["agreement of labels"].limit == 0.999
    assert gates["Dice of label 1"].limit == 0.995
    (deviation,) = made.verdict.deviations
    assert 0 < deviation.mean < deviation.largest < 0.01
    assert made.verdict.runtime.startswith("FP16 as a GPU stores it, imitated by ONNX Runtime")
    assert made.files[0].after < 1.3 * made.files[0].before  # tiny: names outweigh the weights


def test_package_is_the_same_engine_with_its_variants(half: tuple[Bundle, Made]) -> None:
    package, _ = half
    assert bundles.read(package.folder).digest == package.digest


def test_overflow_fails_the_gates_and_nothing_is_kept(tmp_path: Path) -> None:
    package = bundle(tmp_path / "loud", LOUD)
    made = make(package, "fp16", Sample())
    failed = [gate.name for gate in made.verdict.failures]
    assert "share of finite values" in failed
    assert not made.kept
    assert not (package.folder / "model.fp16.onnx").exists()
    assert len(list(package.folder.iterdir())) == 2


def test_overflow_that_only_real_blocks_reach_is_found_by_them(tmp_path: Path, study: Path) -> None:
    """Noise is about 0; grey values are not, and this engine has no step that makes them so."""
    layers = [(NORM, np.full((1, 1, 1, 1), 100.0)), ("", np.ones((1, 1, 1, 1)))]
    package = bundle(tmp_path / "grey", layers)
    assert make(package, "fp16", Sample()).verdict.passed
    assert not make(package, "fp16", sample(package, [study], 4)).verdict.passed


def test_one_that_fails_is_kept_where_a_person_insists(tmp_path: Path) -> None:
    package = bundle(tmp_path / "loud", LOUD)
    made = make(package, "fp16", Sample(), force=True)
    assert made.kept
    assert not made.verdict.passed
    assert (package.folder / "model.fp16.onnx").is_file()


def test_former_variant_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    package = bundle(tmp_path / "loud", LOUD)
    (package.folder / "model.fp16.onnx").write_bytes(b"former")
    make(package, "fp16", Sample())
    assert (package.folder / "model.fp16.onnx").read_bytes() == b"former"


def test_int8_is_calibrated_and_marked(tmp_path: Path, study: Path) -> None:
    package = bundle(tmp_path / "narrow")
    made = make(package, "int8", sample(package, [study], 4), force=True)
    path = package.folder / "model.int8.onnx"
    assert origin(path) == digest(package.model)
    assert any("the first and the last" in note for note in made.notes)
    assert 0 < made.verdict.deviations[0].largest < 0.5
    assert made.verdict.runtime.startswith("INT8 between its scales")
    operators = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", NORM} <= operators


def test_int8_without_studies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="needs studies"):
        make(bundle(tmp_path / "narrow"), "int8", Sample())


def test_every_network_of_an_ensemble_gets_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    network(folder / "model.onnx", *SOUND)
    second = network(folder / "b.onnx", (NORM, 2 * kernel(8, 1, 3, 3)), ("", kernel(1, 8, 3, 3)))
    made = make(bundles.read(package(folder, *PARTS, member(second))), "fp16", Sample(), force=True)
    assert [file.path.name for file in made.files] == ["model.fp16.onnx", "b.fp16.onnx"]
    assert origin(folder / "b.fp16.onnx") == digest(second)


def test_blocks_are_what_the_network_is_fed(tmp_path: Path, study: Path) -> None:
    package = bundle(tmp_path / "engine")
    known = sample(package, [study], 9)
    shapes = [block["image"].shape for block in known.blocks]
    assert shapes == [(4, 1, 32, 24), (2, 1, 32, 24)]  # six slices in batches of four
    assert max(float(block["image"].max()) for block in known.blocks) == 900.0
    (one,) = sample(package, [study], 1).blocks
    (same,) = sample(package, [study], 1).blocks
    np.testing.assert_array_equal(one["image"], same["image"])


def test_study_that_the_engine_does_not_take_is_told(tmp_path: Path) -> None:
    package = bundle(tmp_path / "engine")
    text = (package.folder / "engine.toml").read_text()
    (package.folder / "engine.toml").write_text(text.replace('"MR"', '"CT"'))
    save(small_study(), tmp_path / "study")
    with pytest.raises(
        InferenceError, match="takes none of the studies: study 1 of study was left"
    ):
        sample(bundles.read(package.folder), [tmp_path / "study"], 4)


def test_folder_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    package = bundle(tmp_path / "engine")
    elsewhere = tmp_path / "gone"
    package.folder.rename(elsewhere)
    with pytest.raises(InferenceError, match="copy it to the engines/"):
        make(package, "fp16", Sample())


def test_network_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    package = bundle(tmp_path / "engine")
    package.model.write_bytes(b"no network")
    with pytest.raises(InferenceError, match="is no ONNX model"):
        make(package, "fp16", Sample())
    assert len(list(package.folder.iterdir())) == 2
