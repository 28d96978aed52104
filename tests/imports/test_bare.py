"""A bare ONNX file: what it states is taken, the rest is guessed and marked, or refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from node.bundle import read
from node.cli.engine.add import write
from node.domain.errors import ImportRefused
from node.domain.volume import Volume
from node.engine import Engine
from node.imports.bare import Bare
from node.proposal import GUESSED, Proposal
from node.runtimes.onnx import Onnx
from tests.engines.package import network
from tests.runtimes.networks import FLOAT, Shape, Tensors, model

ANY = ("n", 1, "h", "w")


def proposed(path: Path, look_inside: bool = True) -> Proposal:
    """What the import makes of a file."""
    return Bare(look_inside).propose(path, "tested")


def tables(proposal: Proposal) -> dict[str, Any]:
    """The manifest as TOML reads it."""
    return tomllib.loads(proposal.manifest())


def marked(proposal: Proposal, key: str) -> bool:
    """Whether a key of the manifest is marked as guessed, everywhere it stands."""
    lines = [line for line in proposal.manifest().splitlines() if line.startswith(f"{key} = ")]
    assert lines
    return all(GUESSED in line for line in lines)


def made(path: Path, nodes: list[onnx.NodeProto], inputs: Tensors, outputs: Tensors) -> Path:
    """A network without weights."""
    return model(path, nodes, inputs, outputs)


def sigmoid(path: Path, shape: Shape, name: str = "image", out: Shape | None = None) -> Path:
    """A network that gives as many classes as it gets channels."""
    node = helper.make_node("Sigmoid", [name], ["p"])
    return made(path, [node], {name: (FLOAT, shape)}, {"p": (FLOAT, out or shape)})


def test_a_network_of_slices_of_any_size(tmp_path: Path) -> None:
    proposal = proposed(network(tmp_path / "n.onnx", [[1.0]], [0.0], shape=ANY))
    manifest = tables(proposal)
    assert manifest["window"] == {"mode": "slice", "batch": 4}
    assert manifest["output"] == {"tensor": "probability", "activation": "none"}
    assert manifest["post"] == [{"kind": "threshold", "value": 0.5}]
    assert marked(proposal, "mode")
    assert not marked(proposal, "activation")  # the graph ends with a Sigmoid
    assert not marked(proposal, "tensor")


def test_every_guess_has_a_mark_in_the_text(tmp_path: Path) -> None:
    proposal = proposed(network(tmp_path / "n.onnx", [[1.0]], [0.0], shape=ANY))
    assert proposal.manifest().count(GUESSED) == len(proposal.guesses())
    for key in ("title", "version", "licence", "accepts", "axes", "kind", "value", "type"):
        assert any(guess.split(":")[0].endswith(f".{key}") for guess in proposal.guesses()), key


def test_an_odd_number_of_channels_is_a_stack_of_slices(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[1.0] * 5], [0.0], shape=("n", "c", 32, 48))
    window = tables(proposed(path))["window"]
    assert (window["mode"], window["stack"], window["patch"]) == ("stack", 5, [32, 48])


def test_an_even_number_of_channels_is_as_many_series(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[1.0] * 4], [0.0], shape=("n", "c", "h", "w"))
    proposal = proposed(path)
    manifest = tables(proposal)
    assert manifest["window"]["mode"] == "slice"
    assert [one["role"] for one in manifest["series"]] == [f"image-{n}" for n in (1, 2, 3, 4)]
    assert marked(proposal, "roles")


def test_fixed_lengths_in_three_dimensions_are_patches(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[1.0]], [0.0], shape=(2, "c", 8, 16, 12))
    window = tables(proposed(path))["window"]
    assert (window["mode"], window["patch"]) == ("patch", [8, 16, 12])
    assert "batch" not in window  # the network fixes it


def test_any_length_in_three_dimensions_is_a_whole_volume(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[1.0]], [0.0], shape=("n", "c", "d", "h", "w"))
    proposal = proposed(path)
    assert tables(proposal)["window"]["mode"] == "volume"
    assert 'mode = "patch"' in proposal.manifest()


def halving(path: Path) -> Path:
    """A network that halves its input twice and puts it together again, as a U-Net does."""
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    up = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        helper.make_node("MaxPool", ["image"], ["half"], **pool),
        helper.make_node("MaxPool", ["half"], ["quarter"], **pool),
        helper.make_node("Resize", ["quarter", "", "up"], ["again"], mode="nearest"),
        helper.make_node("Add", ["again", "half"], ["joined"]),
        helper.make_node("Resize", ["joined", "", "up"], ["whole"], mode="nearest"),
        helper.make_node("Add", ["whole", "image"], ["logits"]),
    ]
    shape: Shape = ("n", 1, "h", "w")
    return model(path, nodes, {"image": (FLOAT, shape)}, {"logits": (FLOAT, shape)}, {"up": up})


def test_a_network_that_halves_wants_a_multiple(tmp_path: Path) -> None:
    proposal = proposed(halving(tmp_path / "n.onnx"))
    assert tables(proposal)["window"]["multiple"] == 4
    assert marked(proposal, "multiple")


@pytest.mark.parametrize("size", [[24, 32], [16, 16]], ids=["large", "as small as channels"])
def test_channels_behind_the_rows_and_columns(tmp_path: Path, size: list[int]) -> None:
    path = sigmoid(tmp_path / "n.onnx", ("n", *size, 1))
    window = tables(proposed(path))["window"]
    assert (window["layout"], window["patch"]) == ("NHWC", size)


def test_several_inputs_are_several_series_called_like_their_tensors(tmp_path: Path) -> None:
    shape: Shape = ("n", 1, 16, 16)
    nodes = [
        helper.make_node("Add", ["T1c.image", "flair"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["p"]),
    ]
    inputs: Tensors = {"T1c.image": (FLOAT, shape), "flair": (FLOAT, shape)}
    manifest = tables(proposed(made(tmp_path / "n.onnx", nodes, inputs, {"p": (FLOAT, shape)})))
    assert [one["role"] for one in manifest["series"]] == ["t1c-image", "flair"]
    assert [one["tensor"] for one in manifest["input"]] == ["T1c.image", "flair"]
    assert manifest["series"][1]["accepts"][1] == {"fact": "SeriesDescription", "matches": "flair"}


def test_a_batch_that_only_one_fits_in_is_one(tmp_path: Path) -> None:
    shape: Shape = ("n", 1, "h", "w")
    one = np.array([1, 1, -1], np.int64)
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["row"]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Reshape", ["row", "single"], ["again"]),
        helper.make_node("Reshape", ["again", "shape"], ["back"]),
        helper.make_node("Sigmoid", ["back"], ["every"]),
        helper.make_node("Slice", ["every", "zero", "end", "zero"], ["p"]),
    ]
    path = model(
        tmp_path / "n.onnx",
        nodes,
        {"image": (FLOAT, shape)},
        {"p": (FLOAT, ("m", 1, "h", "w"))},
        {
            "flat": np.array([1, -1], np.int64),
            "single": one,
            "zero": np.array([0], np.int64),
            "end": np.array([1], np.int64),
        },
    )
    assert "batch" not in tables(proposed(path))["window"]


@pytest.mark.parametrize("look_inside", [True, False], ids=["with onnx", "without"])
@pytest.mark.parametrize(
    ("last", "classes", "activation", "post", "findings"),
    [
        ("Sigmoid", 1, "none", "threshold", 1),
        ("Sigmoid", 3, "none", "threshold", 3),
        ("Softmax", 3, "none", "argmax", 2),
        ("Identity", 1, "sigmoid", "threshold", 1),
        ("Identity", 3, "softmax", "argmax", 2),
    ],
)
def test_what_makes_probabilities_is_seen_in_the_graph_or_on_noise(  # noqa: PLR0913 - a table
    tmp_path: Path,
    last: str,
    classes: int,
    activation: str,
    post: str,
    findings: int,
    look_inside: bool,
) -> None:
    weights = [[1.0 + number] for number in range(classes)]
    path = network(tmp_path / "n.onnx", weights, [0.1] * classes, last, ("n", 1, "h", "w"))
    proposal = proposed(path, look_inside)
    manifest = tables(proposal)
    assert manifest["output"]["activation"] == activation
    assert manifest["post"][0]["kind"] == post
    assert [one["label"] for one in manifest["finding"]] == list(range(1, findings + 1))
    assert marked(proposal, "activation") is not (look_inside and last != "Identity")


def test_logits_are_told_from_probabilities_though_quiet_noise_cannot(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[0.02]], [0.5], "Identity", ANY)
    assert tables(proposed(path, look_inside=False))["output"]["activation"] == "sigmoid"


def test_what_the_file_says_of_itself_is_not_a_guess(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", [[1.0], [2.0], [3.0]], [0.0] * 3, "Softmax", ANY)
    content = onnx.load(path)
    said = {
        "title": "Kidneys",
        "licence": "MIT",
        "modality": "CT",
        "labels": '{"0": "background", "1": "Left kidney", "2": "Right kidney"}',
        "spacing": "[1.5, 1, 1]",
    }
    helper.set_model_props(content, said)
    onnx.save(content, path)
    proposal = proposed(path)
    manifest = tables(proposal)
    assert manifest["engine"]["title"] == "Kidneys"
    assert not marked(proposal, "licence")
    assert manifest["series"][0]["accepts"] == [{"fact": "Modality", "equals": "CT"}]
    left, right = manifest["finding"]
    assert (left["name"], right["name"]) == ("Left kidney", "Right kidney")
    assert (left["type"]["meaning"], left["laterality"]["meaning"]) == ("Kidney", "Left")
    assert left["instances"] == "whole"
    assert not marked(proposal, "category")
    assert manifest["pre"][1] == {"kind": "resample", "spacing": [1.5, 1.0, 1.0]}
    assert manifest["pre"][2]["kind"] == "window"


@pytest.mark.parametrize("kind", ["FLOAT16", "UINT8", "INT16"])
def test_another_number_type_gets_a_cast(tmp_path: Path, kind: str) -> None:
    shape: Shape = ("n", 1, "h", "w")
    nodes = [
        helper.make_node("Cast", ["image"], ["number"], to=FLOAT),
        helper.make_node("Sigmoid", ["number"], ["p"]),
    ]
    inputs: Tensors = {"image": (getattr(TensorProto, kind), shape)}
    manifest = tables(proposed(made(tmp_path / "n.onnx", nodes, inputs, {"p": (FLOAT, shape)})))
    assert manifest["pre"][-1]["dtype"] == kind.lower()


def outside(path: Path, place: str) -> Path:
    """A network whose weights lie in another file."""
    nodes = [
        helper.make_node("Mul", ["image", "w"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["p"]),
    ]
    weights = {"w": np.full((1, 1, 1, 512), 2, np.float32)}
    shape: Shape = ("n", 1, "h", 512)
    model(path, nodes, {"image": (FLOAT, shape)}, {"p": (FLOAT, shape)}, weights)
    content = onnx.load(path)
    onnx.save_model(content, path, save_as_external_data=True, location=place, size_threshold=0)
    return path


def test_weights_outside_come_with_the_model(tmp_path: Path) -> None:
    place = "unet.onnx.data"
    path = outside(tmp_path / "unet.onnx", place)
    for look_inside in (True, False):
        proposal = proposed(path, look_inside)
        assert proposal.files == {"unet.onnx": path, place: tmp_path / place}
    bundle = write(proposal, tmp_path / "engines")
    assert bundle.model.name == "unet.onnx"
    (tmp_path / place).unlink()
    with pytest.raises(ImportRefused, match=r"unet\.onnx"):
        proposed(path)


def test_weights_under_a_name_that_a_package_does_not_know_are_refused(tmp_path: Path) -> None:
    path = outside(tmp_path / "unet.onnx", "w.bin")
    with pytest.raises(ImportRefused, match=r"w\.bin.*save_model"):
        proposed(path)


def test_no_card_is_written_for_the_maker(tmp_path: Path) -> None:
    proposal = proposed(network(tmp_path / "n.onnx", [[1.0]], [0.0], shape=ANY))
    bundle = write(proposal, tmp_path / "engines")
    assert bundle.card is None
    assert "Intended use" in (bundle.folder / "CARD.template.md").read_text()


def beside(path: Path, name: str, shape: Shape) -> Path:
    """A network with another input beside its image."""
    nodes = [
        helper.make_node("ReduceMean", [name], ["mean"], keepdims=0),
        helper.make_node("Add", ["image", "mean"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["p"]),
    ]
    image: Shape = ("n", 1, 16, 16, 16)
    inputs: Tensors = {"image": (FLOAT, image), name: (FLOAT, shape)}
    return made(path, nodes, inputs, {"p": (FLOAT, image)})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("coords", ("n", 3, 16, 16, 16)),
        ("pos_xyz", ("n", 3, 16, 16, 16)),
        ("spacing", ("n", 3)),
        ("centre", (3,)),
    ],
)
def test_coordinates_are_named_and_refused(tmp_path: Path, name: str, shape: Shape) -> None:
    with pytest.raises(ImportRefused, match=rf"the input {name}.*coordinates.*inside of the net"):
        proposed(beside(tmp_path / "n.onnx", name, shape))


def answering(path: Path, *nodes: onnx.NodeProto, out: tuple[int, Shape]) -> Path:
    """A network of 16 x 16 pixels that ends as said, with the output ``p``."""
    return made(path, list(nodes), {"image": (FLOAT, (1, 2, 16, 16))}, {"p": out})


def test_what_is_no_map_of_probabilities_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    labels = helper.make_node("ArgMax", ["image"], ["p"], axis=1)
    answering(path, labels, out=(TensorProto.INT64, (1, 1, 16, 16)))
    with pytest.raises(ImportRefused, match="labels, not probabilities.*without its last argmax"):
        proposed(path)
    mean = helper.make_node("ReduceMean", ["image"], ["p"], axes=[2, 3], keepdims=0)
    answering(path, mean, out=(FLOAT, (1, 2)))
    with pytest.raises(ImportRefused, match="classification.*segmentation only"):
        proposed(path)
    half = helper.make_node("MaxPool", ["image"], ["p"], kernel_shape=[2, 2], strides=[2, 2])
    answering(path, half, out=(FLOAT, (1, 2, 8, 8)))
    with pytest.raises(ImportRefused, match="every voxel that goes in"):
        proposed(path)
    below = helper.make_node("Log", ["image"], ["p"])
    answering(path, below, out=(FLOAT, (1, 2, 16, 16)))
    with pytest.raises(ImportRefused, match="NaN or infinite"):
        proposed(path)


def test_inputs_that_no_volume_can_make_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    with pytest.raises(ImportRefused, match="4 axes: batch, channels"):
        proposed(sigmoid(path, ("n", 99)))
    with pytest.raises(ImportRefused, match="no axis of .* can be that of the channels"):
        proposed(sigmoid(path, (1, 64, 64, 64)))
    node = helper.make_node("Sigmoid", ["image"], ["p"])
    double: Tensors = {"image": (TensorProto.DOUBLE, ANY)}
    made(path, [node], double, {"p": (TensorProto.DOUBLE, ANY)})
    with pytest.raises(ImportRefused, match="float64.*float32 inputs"):
        proposed(path)


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["image"], ["p"])
    image = helper.make_tensor_value_info("image", FLOAT, ANY)
    several = helper.make_tensor_sequence_value_info("p", FLOAT, None)
    graph = helper.make_graph([node], "tiny", [image], [several])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(content, tmp_path / "n.onnx")
    with pytest.raises(ImportRefused, match="only tensors can be used"):
        proposed(tmp_path / "n.onnx")


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(b"certainly not")
    with pytest.raises(ImportRefused, match=r"no ONNX model.*Nothing was written"):
        proposed(tmp_path / "n.onnx")


# ---- Any signature --------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A network as hypothesis draws it."""

    shapes: tuple[tuple[int | str, ...], ...]
    kind: int
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    out: int

    def save(self, path: Path) -> Path:
        """Write it: the sum of its inputs, cast to float32, through its steps, cast."""
        names = [f"in{number}" for number in range(len(self.shapes))]
        nodes = [helper.make_node("Cast", [one], [f"{one}f"], to=FLOAT) for one in names]
        nodes.append(helper.make_node("Sum", [f"{one}f" for one in names], ["v0"]))
        for number, (kind, options) in enumerate(self.steps):
            nodes.append(helper.make_node(kind, [f"v{number}"], [f"v{number + 1}"], **options))
        nodes.append(helper.make_node("Cast", [f"v{len(self.steps)}"], ["out"], to=self.out))
        graph = helper.make_graph(
            nodes,
            "drawn",
            [
                helper.make_tensor_value_info(name, self.kind, shape)
                for name, shape in zip(names, self.shapes, strict=True)
            ],
            [helper.make_tensor_value_info("out", self.out, None)],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


LENGTHS = st.one_of(st.sampled_from([1, 2, 3, 4, 6, 17, 20]), st.sampled_from(["n", "c", "x"]))
STEPS: st.SearchStrategy[tuple[str, Mapping[str, Any]]] = st.one_of(
    st.tuples(st.sampled_from(["Sigmoid", "Relu", "Identity", "Neg"]), st.just({})),
    st.tuples(st.just("Softmax"), st.fixed_dictionaries({"axis": st.sampled_from([1, -1])})),
    st.tuples(
        st.sampled_from(["ReduceMean", "ReduceMax"]),
        st.fixed_dictionaries(
            {"axes": st.sampled_from([[1], [-1], [2]]), "keepdims": st.sampled_from([0, 1])}
        ),
    ),
    st.tuples(st.just("ArgMax"), st.just({"axis": 1})),
)
KINDS = st.sampled_from([FLOAT, FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64])


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    rank = draw(st.sampled_from([1, 3, 4, 4, 4, 5, 5, 5, 6]))
    shape = draw(st.tuples(*[LENGTHS] * rank))
    count = draw(st.sampled_from([1, 1, 1, 2]))
    other = draw(st.sampled_from([shape, shape, (*shape[:1], *shape[:0:-1])]))
    steps = tuple(draw(st.lists(STEPS, max_size=2)))
    # After an ArgMax there are whole numbers, which few operators take.
    whole = [kind for kind, _ in steps].index("ArgMax") + 1 if ("ArgMax" in dict(steps)) else 99
    return Drawn((shape, other)[:count], draw(KINDS), steps[:whole], draw(KINDS))


@settings(max_examples=150)
@given(graph=drawn(), look_inside=st.booleans())
@example(Drawn((("n", 1, "x", "x"),), FLOAT, (("Sigmoid", {}),), FLOAT), True)
@example(Drawn(((1, 3, 17, 20), (1, 3, 17, 20)), FLOAT, (("Sigmoid", {}),), FLOAT), True)
@example(Drawn((("n", "x", "x", 2),), FLOAT, (("Softmax", {"axis": -1}),), FLOAT), False)
def test_any_network_becomes_an_engine_that_runs_or_is_refused(
    graph: Drawn, look_inside: bool
) -> None:
    with TemporaryDirectory() as place:
        path = graph.save(Path(place) / "drawn.onnx")
        try:
            proposal = proposed(path, look_inside)
        except ImportRefused as refusal:
            assert len(str(refusal)) > 20
            return
        bundle = read(write(proposal, Path(place) / "engines").folder)
        voxels = np.random.default_rng(1).normal(100, 30, (5, 22, 19)).astype(np.float32)
        volume = Volume(voxels, np.diag([3.0, 1.0, 1.0, 1.0]), "1.2.3")
        with Engine.load(bundle, Onnx(threads=1)) as engine:
            prediction = engine.predict(dict.fromkeys(bundle.manifest.roles, volume))
        assert prediction.voxels.shape[1:] == voxels.shape
        assert np.isfinite(prediction.voxels).all()
        labels = [one.label for one in bundle.manifest.findings]
        assert len(prediction.voxels) in (len(labels), len(labels) + 1)
