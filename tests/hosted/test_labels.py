"""An engine whose device makes the labels finds what it finds of probabilities, and moves less."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node import bundle
from node.domain.volume import Volume
from node.engine import Engine
from node.findings import Found
from node.runtimes import Runtime
from node.runtimes.onnx import Onnx
from tests.engines.package import FLAIR, IMAGE, LESION, member, network, package
from tests.hosted.session import Hosted, Sweeping, WithoutKernels
from tests.test_engine import FRAME, ORDERS, axial, turned

Table = Mapping[str, Any]
often = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

WINDOWS: tuple[Table, ...] = (
    {"mode": "slice", "batch": 3},
    {"mode": "slice", "patch": [5, 6], "overlap": 0.4, "batch": 4},
    {"mode": "patch", "patch": [3, 5, 6], "mirror": ["j"]},
    {"mode": "volume", "multiple": 4},
)
OUTPUTS: tuple[tuple[str, Table], ...] = (
    ("Softmax", {}),
    ("Sigmoid", {}),
    ("Identity", {}),
    ("Identity", {"activation": "softmax"}),
    ("Identity", {"activation": "sigmoid"}),
    ("Identity", {"activation": "softmax", "activated": "blended"}),
    ("Identity", {"activation": "sigmoid", "activated": "blended"}),
)
"""What the network itself does last, and what the manifest says of it."""
STEPS: tuple[Table, ...] = (
    {"kind": "window", "centre": 150, "width": 300},
    {"kind": "zscore"},
    {"kind": "percentile", "lower": 5, "upper": 95},
    {"kind": "standardise", "over": "nonzero"},
    {"kind": "nnunet_normalise", "schemes": ["zscore"]},
    {"kind": "orient", "axes": "RSA"},
    {"kind": "transpose", "order": [1, 2, 0]},
    {"kind": "crop_or_pad", "shape": [3, 9, 0]},
    {"kind": "crop_or_pad", "shape": [9, 4, 5], "centre": "foreground"},
    {"kind": "pad_to_multiple", "multiple": [2, 4, 8], "value": 400},
    {"kind": "crop_foreground", "margin_mm": 1},
    {"kind": "extent", "at_least": [6, 0, 0], "at_most": [0, 5, 5]},
    {"kind": "nnunet_crop"},
)
CLEAN: tuple[Table, ...] = (
    {"kind": "largest_component", "together": True},
    {"kind": "largest_component", "count": 2},
    {"kind": "remove_small", "minimum_voxels": 4},
    {"kind": "opening", "radius_mm": 1.5},
)


@dataclass(frozen=True)
class Case:
    """An engine and what it looks at. ``level``: where an engine that looks first draws a box."""

    classes: int = 3
    output: tuple[str, Table] = OUTPUTS[0]
    post: Sequence[Table] = ({"kind": "argmax"},)
    window: Table = field(default_factory=lambda: WINDOWS[0])
    pre: Sequence[Table] = ()
    tied: bool = False
    level: int | None = None
    seed: int = 0
    place: tuple[Any, Any] = ORDERS[0]

    @property
    def labels(self) -> list[int]:
        """The label of each channel."""
        first = 0 if self.post[0]["kind"] == "argmax" else 1
        return list(self.post[0].get("labels") or range(first, first + self.classes))

    @property
    def volume(self) -> Volume:
        """Blocks of four grey values."""
        rng = np.random.default_rng(self.seed)
        voxels: NDArray[Any] = rng.choice((0, 100, 200, 300), (3, 4, 5)).astype(np.int16)
        for axis in range(3):
            voxels = voxels.repeat(rng.integers(1, 4, voxels.shape[axis]), axis)
        return Volume(voxels, turned(*self.place, (4.0, -7.0, 11.0)), FRAME)

    def at(self, root: Path) -> Path:
        """Its package, and that of an engine before it."""
        root.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(self.seed)
        weights, biases = rng.normal(0, 0.01, (self.classes, 1)), rng.normal(0, 1, self.classes)
        if self.tied:
            weights, biases = weights.round(2), biases.round()
        kind, output = self.output
        axes = 2 if self.window["mode"] == "slice" else 3
        shape = ("n", "c", *"dhw"[-axes:])
        network(root / "model.onnx", weights.tolist(), biases.tolist(), kind, shape)
        parts = [FLAIR, table("window", self.window), IMAGE]
        parts += [table("output", {"tensor": "probability", **output})]
        parts += [table("[pre]", one) for one in self.pre]
        parts += [table("[post]", one) for one in self.post]
        parts += [finding(label) for label in sorted({*self.labels} - {0})]
        if self.level is not None:
            first = Case(1, ("Sigmoid", {}), ({"kind": "threshold", "value": 0.5},)).at(root / "a")
            network(first / "model.onnx", [[0.1]], [-self.level * 0.1])
            package(first, *[FLAIR, table("window", WINDOWS[0]), IMAGE],
                    table("output", {"tensor": "probability"}),
                    table("[post]", {"kind": "threshold"}), finding(1))  # fmt: skip
            parts += [table("cascade", {"package": "./a", "empty": "whole"})]
        return package(root, *parts)


def table(name: str, options: Table) -> str:
    lines = (f"{key} = {json.dumps(value)}" for key, value in options.items())
    return "\n".join(["", f"[{name}]", *lines, ""])


def finding(label: int) -> str:
    own = LESION.replace("label = 1", f"label = {label}").replace('"Lesion"', f'"Part {label}"', 1)
    return own + "max_instances = 1000\n"


LABELS: tuple[tuple[int, ...], ...] = (
    (),
    (0, 7, 2, 1),
    (5, 0, 2, 9),
    (3, 0, 0, 1),
    (1, 2, 3, 4),
)


@st.composite
def firsts(draw: st.DrawFn, classes: int) -> Table:
    """The step that makes labels."""
    labels = draw(st.sampled_from(LABELS))[:classes]
    if draw(st.booleans()):
        return {"kind": "argmax", "labels": labels}
    each = draw(st.sampled_from(((0.2, 0.6, 0.4, 0.3), (0.5, 0.5, 0.2, 0.9))))[:classes]
    return {"kind": "threshold", "value": draw(st.sampled_from((0.5, 0.3, each))), "labels": labels}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Every engine whose labels a device can make."""
    classes = draw(st.integers(2, 4))
    window, output = draw(st.sampled_from(WINDOWS)), draw(st.sampled_from(OUTPUTS))
    if "activated" not in output[1]:
        window = {**window, "skip_air": draw(st.booleans())}
    if output[1].get("activation") != "sigmoid":
        window = {**window, "exclusive": draw(st.booleans())}
    return Case(
        classes=classes,
        output=output,
        post=[draw(firsts(classes)), *draw(st.lists(st.sampled_from(CLEAN), max_size=2))],
        window=window,
        pre=draw(st.lists(st.sampled_from(STEPS), max_size=4)),
        tied=draw(st.booleans()),
        level=draw(st.none() | st.sampled_from([50, 250])),
        seed=draw(st.integers(0, 9999)),
        place=draw(st.sampled_from(ORDERS)),
    )


def found(case: Case, runtime: Runtime) -> Found:
    with TemporaryDirectory() as folder:
        read = bundle.read(case.at(Path(folder) / "own"))
        with Engine.load(read, runtime) as engine:
            return engine.examine({"flair": case.volume}, "job")


def pieces(one: Found) -> list[tuple[Any, ...]]:
    """All that a report says of findings, but for their probability."""
    return [
        (
            each.tracking_id,
            each.concept,
            each.region.start,
            each.region.voxels.tobytes(),
            each.measurements,
            None if each.outline is None else each.outline.points.tobytes(),
        )
        for each in one.findings
    ]


def certainties(one: Found) -> list[float | None]:
    return [each.probability for each in one.findings]


@settings(often, max_examples=80)
@given(case=cases())
def test_labels_of_the_device_are_the_findings_of_the_probabilities(
    library: Path, case: Case
) -> None:
    labels, probabilities = Hosted(library), Hosted(library, Sweeping)
    mine, its = found(case, labels), found(case, probabilities)
    assert [session.asked for session in labels.made][-1] == ["labels"]
    assert [session.asked for session in probabilities.made][-1] == ["sweep"]
    assert pieces(mine) == pieces(its)
    assert mine.notes == its.notes
    assert certainties(mine) == certainties(its)
    event(f"{min(len(mine.findings), 3)} findings")
    if case.tied and case.output[1]:
        return  # Which of two equals wins is for the last bit of an exponential to say.
    host = found(case, Onnx(threads=1))
    assert pieces(mine) == pieces(host)
    assert certainties(mine) == pytest.approx(certainties(host), rel=1e-5, abs=1e-6)


SOFT = OUTPUTS[3]
ODD = {
    "one class is fewer bytes": Case(1, OUTPUTS[1], [{"kind": "threshold"}]),
    "resampling": Case(pre=[{"kind": "resample", "spacing": [0, 0.6, 0.6]}]),
    "resizing": Case(pre=[{"kind": "resize", "shape": [0, 20, 20]}]),
    "nnU-Net's resampling": Case(pre=[{"kind": "nnunet_resample", "spacing": [0, 0.6, 0.6]}]),
    "logits on the source grid": Case(output=("Identity", {**SOFT[1], "activated": "source"})),
    "filled holes": Case(post=[{"kind": "argmax"}, {"kind": "fill_holes", "over": True}]),
    "closed gaps": Case(post=[{"kind": "argmax"}, {"kind": "closing", "radius_mm": 3}]),
    "one label of two channels": Case(post=[{"kind": "argmax", "labels": [0, 1, 1]}]),
    "regions": Case(output=OUTPUTS[1], post=[{"kind": "regions", "labels": [1, 2, 3]}]),
    "precedence": Case(
        output=OUTPUTS[1], post=[{"kind": "threshold", "precedence": [2, 0, 1], "value": 0.3}]
    ),
    "what anything reaches": Case(post=[{"kind": "threshold", "value": [0.5, 0.0, 0.5]}]),
    "what anything reaches on the device": Case(
        post=[{"kind": "threshold", "value": [0.5, 1e-60, 0.5]}]
    ),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("seed", [1, 2])
def test_where_labels_are_not_enough_all_probabilities_come_down(
    library: Path, name: str, seed: int
) -> None:
    case = Case(**{**vars(ODD[name]), "seed": seed})
    labels = Hosted(library)
    mine = found(case, labels)
    assert [session.asked for session in labels.made] == [["sweep"]]
    host = found(case, Onnx(threads=1))
    assert mine.findings
    assert pieces(mine) == pieces(host)
    assert certainties(mine) == pytest.approx(certainties(host), rel=1e-5, abs=1e-6)


def test_a_device_that_cannot_make_labels_is_asked_for_probabilities(library: Path) -> None:
    hosted = Hosted(library, WithoutKernels)
    mine = found(Case(), hosted)
    assert [session.asked for session in hosted.made] == [["labels", "sweep"]]
    assert pieces(mine) == pieces(found(Case(), Onnx(threads=1)))


def test_probabilities_are_given_to_whoever_asks_for_them(library: Path, tmp_path: Path) -> None:
    case = Case(output=OUTPUTS[5])
    read = bundle.read(case.at(tmp_path))
    hosted = Hosted(library)
    with Engine.load(read, hosted) as engine, Engine.load(read, Onnx(threads=1)) as other:
        mine, its = (one.predict({"flair": case.volume}).voxels for one in (engine, other))
    assert [session.asked for session in hosted.made] == [["sweep"]]
    assert mine.shape == (3, *case.volume.grid.shape)
    np.testing.assert_allclose(mine, its, atol=1e-6)


def test_what_is_blended_raw_becomes_probabilities_on_the_device(
    library: Path, tmp_path: Path
) -> None:
    case = Case(output=OUTPUTS[5], pre=[{"kind": "resample", "spacing": [0, 0.6, 0.6]}])
    with Engine.load(bundle.read(case.at(tmp_path)), hosted := Hosted(library)) as engine:
        engine.examine({"flair": case.volume}, "job")
        assert "activate" in hosted.made[0].device.launched


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_a_mean_is_of_logits_and_a_vote_of_probabilities_on_a_device_too(
    library: Path, tmp_path: Path, combine: str
) -> None:
    case = Case(output=OUTPUTS[5], window=WINDOWS[1], seed=3)
    case.at(tmp_path)
    network(tmp_path / "fold.onnx", [[0.01], [-0.02], [0.0]], [1.0, 3.0, 0.5], "Identity")
    parts = [member(tmp_path / "fold.onnx"), table("ensemble", {"combine": combine})]
    manifest = tmp_path / "engine.toml"
    manifest.write_text(manifest.read_text() + "".join(parts))
    read, hosted = bundle.read(tmp_path), Hosted(library)
    with Engine.load(read, hosted) as engine, Engine.load(read, Onnx(threads=1)) as other:
        mine, its = (one.predict({"flair": case.volume}).voxels for one in (engine, other))
        assert ["activate" in one.device.launched for one in hosted.made] == [combine == "vote"] * 2
        found = [one.examine({"flair": case.volume}, "job") for one in (engine, other)]
    np.testing.assert_allclose(mine, its, atol=1e-6)
    assert pieces(found[0]) == pieces(found[1])
    assert "labels" not in {word for session in hosted.made for word in session.asked}


def test_five_bytes_for_a_voxel_come_down_instead_of_four_for_each_class(
    library: Path, tmp_path: Path
) -> None:
    shape = (64, 256, 256)
    voxels = np.zeros(shape, np.int16)
    voxels[20:40, 50:90, 60:110] = 300
    volume = {"flair": Volume(voxels, axial(), FRAME)}
    case = Case(4, SOFT, seed=5, window={"mode": "slice", "batch": 8})
    read = bundle.read(case.at(tmp_path))
    bytes_of_voxels = {}
    for kind in (Hosted(library).kind, Sweeping):
        with Engine.load(read, hosted := Hosted(library, kind)) as engine:
            assert engine.examine(volume, "job").findings
        downloaded = hosted.made[0].device.downloaded
        bytes_of_voxels[kind] = downloaded / voxels.size
    assert list(bytes_of_voxels.values()) == pytest.approx([5, 16], abs=1e-3)
