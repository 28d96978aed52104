"""Several networks are one engine: verified, loaded, asked and closed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node import bundle
from node.domain.errors import ConfigError, DeviceMemoryFull, InferenceError
from node.domain.tensor import Tensors, TensorSpec
from node.domain.volume import Volume
from node.engine import Engine
from node.runtimes import Session
from node.runtimes.onnx import Onnx
from node.windows import Activation, Progress, Window, activated, predict
from tests.engines.package import (
    LESION,
    PARTS,
    PROBABILITY,
    brighter_than,
    member,
    network,
    package,
)
from tests.test_engine import FRAME, assess, axial, box, image

VOTE = '\n[ensemble]\ncombine = "vote"\n'
SIGMOID = PROBABILITY + 'activation = "sigmoid"\n'


def ensemble(folder: Path, levels: Sequence[float], *parts: str) -> Path:
    """A package whose networks each find what is brighter than their level."""
    brighter_than(folder / "model.onnx", levels[0])
    members = [
        member(brighter_than(folder / f"fold{number}.onnx", level))
        for number, level in enumerate(levels[1:], 1)
    ]
    return package(folder, *(parts or PARTS), *members)


def loaded(folder: Path, levels: Sequence[float], *parts: str) -> Engine:
    return Engine.load(bundle.read(ensemble(folder, levels, *parts)), Onnx(threads=1))


def steps() -> Volume:
    """One slice whose columns are 0, 100, 200 and so on."""
    voxels = np.tile(np.arange(8, dtype=np.int16) * 100, (1, 4, 1))
    return Volume(voxels, axial(), FRAME)


def test_mean_is_that_of_the_probabilities(tmp_path: Path) -> None:
    levels = (250.0, 350.0, 450.0)
    with loaded(tmp_path, levels) as engine:
        found = engine.predict({"flair": steps()}).voxels[0, 0, 0]
    columns = np.arange(8) * 100
    each = [1 / (1 + np.exp(-(columns - level) * 0.1)) for level in levels]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("when", ["blended", "source"])
def test_mean_is_that_of_the_logits_where_logits_are_blended(tmp_path: Path, when: str) -> None:
    network(tmp_path / "model.onnx", [[0.01]], [-1.0], "Identity")
    other = member(network(tmp_path / "fold.onnx", [[0.03]], [-9.0], "Identity"))
    output = SIGMOID + f'activated = "{when}"\n'
    parts = [output if one == PROBABILITY else one for one in PARTS]
    with Engine.load(bundle.read(package(tmp_path, *parts, other)), Onnx(threads=1)) as engine:
        found = engine.predict({"flair": steps()}).voxels[0, 0, 0]
    logit = np.arange(8) * 2.0 - 5.0
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logit)), atol=1e-6)


def test_vote_is_that_of_the_labels(tmp_path: Path) -> None:
    # The mean would find only what is brighter than 450: one network is never sure.
    levels = (150.0, 250.0, 10_000.0)
    with loaded(tmp_path, levels, *PARTS, VOTE) as engine:
        (finding,) = engine.examine({"flair": steps()}, "job").findings
    assert np.flatnonzero(finding.mask[0, 0]).tolist() == [3, 4, 5, 6, 7]
    assert finding.probability == pytest.approx(2 / 3, abs=1e-4)


def test_two_networks_that_disagree_find_nothing(tmp_path: Path) -> None:
    with loaded(tmp_path, (150.0, 450.0), *PARTS, VOTE) as engine:
        (finding,) = engine.examine({"flair": steps()}, "job").findings
    assert np.flatnonzero(finding.mask[0, 0]).tolist() == [5, 6, 7]


def test_steps_after_the_first_change_the_elected_labels(tmp_path: Path) -> None:
    small = '\n[[post]]\nkind = "remove_small"\nminimum_ml = 1.0\n'
    parts = [one + small if one.startswith("\n[[post]]") else one for one in PARTS]
    with loaded(tmp_path, (150.0, 250.0, 250.0), *parts, VOTE) as engine:
        assert engine.examine({"flair": steps()}, "job").findings == ()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(["", VOTE]), st.integers(2, 3), st.sampled_from([1, 3])
)
def test_ensemble_of_equal_networks_is_the_network(
    seed: int, combine: str, count: int, batch: int
) -> None:
    voxels = np.random.default_rng(seed).integers(0, 400, (3, 9, 7)).astype(np.int16)
    volume = Volume(voxels, axial(), FRAME)
    parts = [one.replace("batch = 4", f"batch = {batch}") for one in PARTS]
    parts[-1] = LESION + "max_instances = 1000\n"
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        one = assess(loaded(Path(first), [200.0], *parts), flair=volume)
        several = assess(loaded(Path(second), [200.0] * count, *parts, combine), flair=volume)
    assert len(one) == len(several)
    for mine, its in zip(one, several, strict=True):
        assert np.array_equal(mine.mask, its.mask)
        assert mine.measurements == its.measurements
        assert mine.probability == pytest.approx(its.probability, rel=1e-6)


@pytest.mark.parametrize("combine", ["", VOTE])
def test_two_runs_of_an_ensemble_are_identical(tmp_path: Path, combine: str) -> None:
    voxels = np.random.default_rng(5).integers(0, 400, (3, 19, 17)).astype(np.int16)
    volume = Volume(voxels, axial(), FRAME)
    with loaded(tmp_path, (150.0, 210.0, 230.0), *PARTS, combine) as engine:
        first, second = (engine.predict({"flair": volume}).voxels.tobytes() for _ in "ab")
        one, other = (engine.examine({"flair": volume}, "job").findings for _ in "ab")
    assert first == second
    assert [f.mask.tobytes() for f in one] == [f.mask.tobytes() for f in other]


def test_progress_counts_the_blocks_of_all_networks(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with loaded(tmp_path, (200.0, 200.0)) as engine:
        engine.examine({"flair": image(axial())}, "job", lambda *now: told.append(now))
    assert told == [(4, 16), (8, 16), (12, 16), (16, 16)]


def test_every_network_is_verified(tmp_path: Path) -> None:
    folder = ensemble(tmp_path, (200.0, 210.0, 220.0))
    brighter_than(folder / "fold2.onnx", 100)
    with pytest.raises(ConfigError, match=r"member\[1\].sha256: fold2.onnx is another file"):
        bundle.read(folder)
    (folder / "fold2.onnx").unlink()
    with pytest.raises(ConfigError, match=r"member\[1\].model: there is no file 'fold2.onnx'"):
        bundle.read(folder)


def test_every_network_is_in_the_digest_and_its_order_too(tmp_path: Path) -> None:
    digests = set()
    for number, levels in enumerate([(1.0,), (1.0, 2.0), (2.0, 1.0), (1.0, 3.0), (1.0, 2.0, 3.0)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.add(bundle.read(ensemble(folder, levels)).digest)
    assert len(digests) == 5
    (folder / "fold1.onnx.data").write_bytes(b"weights")
    assert bundle.read(folder).digest not in digests


def test_result_says_how_many_networks_made_it(tmp_path: Path) -> None:
    read = bundle.read(ensemble(tmp_path, (1.0, 2.0, 3.0), *PARTS, VOTE))
    assert "vote of 3 networks" in read.algorithm().parameters
    assert [path.name for path in read.models] == ["model.onnx", "fold1.onnx", "fold2.onnx"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (VOTE, "ensemble: is one model alone"),
        ('\n[[member]]\nmodel = "model.onnx"\nsha256 = "{}"\n', "model: [engine] has 'model.onnx'"),
        ('\n[[member]]\nmodel = "a"\nsha256 = "{}"\n' * 2, "another [[member]] has 'a' already"),
        ('\n[[member]]\nmodel = "../a"\nsha256 = "{}"\n', "member[0].model"),
        ('\n[ensemble]\ncombine = "median"\n', "ensemble.combine: expected 'mean' or 'vote'"),
    ],
)
def test_ensemble_that_makes_no_sense_is_refused(tmp_path: Path, table: str, words: str) -> None:
    brighter_than(tmp_path / "model.onnx", 200)
    with pytest.raises(ConfigError) as refused:
        bundle.read(package(tmp_path, *PARTS, table.replace("{}", "0" * 64)))
    assert words in str(refused.value)


class Fake:
    """A session that remembers what it was asked, and whether it is open."""

    def __init__(self, session: Session) -> None:
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.session = session
        self.open = True

    def infer(self, feeds: Tensors) -> Tensors:
        return self.session.infer(feeds)

    def close(self) -> None:
        self.open = False


class Device(Fake):
    """One that takes the whole window; not where the window mirrors."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.swept = 0

    def sweeps(self, window: Window) -> bool:
        return not window.mirror

    def sweep(
        self,
        volumes: Mapping[str, NDArray[Any]],
        window: Window,
        output: str,
        progress: Progress | None = None,
        after: Activation = "none",
    ) -> NDArray[np.float32]:
        self.swept += 1
        return activated(predict(self.session.infer, volumes, window, output, progress), after)


class Shelf:
    """A runtime that wraps the sessions of another, and fails at one file's name."""

    def __init__(self, wrap: type[Fake], broken: str = "") -> None:
        self.wrap = wrap
        self.broken = broken
        self.made: list[Fake] = []

    def load(self, model: Path) -> Session:
        if model.name == self.broken:
            raise DeviceMemoryFull("no room for the network")
        self.made.append(self.wrap(Onnx(threads=1).load(model)))
        return self.made[-1]


def test_networks_close_together(tmp_path: Path) -> None:
    shelf = Shelf(Fake)
    engine = Engine.load(bundle.read(ensemble(tmp_path, (200.0, 210.0, 220.0))), shelf)
    assert list(engine.sessions) == shelf.made
    engine.close()
    assert [session.open for session in shelf.made] == [False] * 3


def test_networks_that_are_loaded_are_closed_when_another_cannot_be(tmp_path: Path) -> None:
    shelf = Shelf(Fake, broken="fold2.onnx")
    with pytest.raises(DeviceMemoryFull, match="no room"):
        Engine.load(bundle.read(ensemble(tmp_path, (200.0, 210.0, 220.0))), shelf)
    assert [session.open for session in shelf.made] == [False, False]


def test_member_that_does_not_fit_is_named(tmp_path: Path) -> None:
    brighter_than(tmp_path / "model.onnx", 200)
    other = member(network(tmp_path / "fold.onnx", [[1.0, 1.0]], [0.0]))
    shelf = Shelf(Fake)
    with pytest.raises(InferenceError, match=r"engine tester, model fold.onnx against manifest: "):
        Engine.load(bundle.read(package(tmp_path, *PARTS, other)), shelf)
    assert [session.open for session in shelf.made] == [False, False]


class Failing(Fake):
    """A session whose device is full."""

    def infer(self, feeds: Tensors) -> Tensors:
        raise DeviceMemoryFull("too much")


def test_network_that_fails_is_named_by_its_number(tmp_path: Path) -> None:
    shelf = Shelf(Failing)
    with (
        Engine.load(bundle.read(ensemble(tmp_path, (200.0, 210.0))), shelf) as engine,
        pytest.raises(DeviceMemoryFull, match="^network 1 of 2: too much") as refused,
    ):
        engine.predict({"flair": image(axial())})
    assert refused.value.retryable


def test_device_that_takes_the_whole_window_is_given_it(tmp_path: Path) -> None:
    shelf = Shelf(Device)
    with Engine.load(bundle.read(ensemble(tmp_path, (200.0, 200.0))), shelf) as engine:
        (finding,) = assess(engine, flair=image(axial()))
    assert np.array_equal(finding.mask, box())
    assert [session.swept for session in shelf.made if isinstance(session, Device)] == [1, 1]


def test_device_that_cannot_take_this_window_is_fed_block_by_block(tmp_path: Path) -> None:
    shelf = Shelf(Device)
    brighter_than(tmp_path / "model.onnx", 200)
    mirrored = [one.replace("batch = 4", 'mirror = ["i"]') for one in PARTS]
    with Engine.load(bundle.read(package(tmp_path, *mirrored)), shelf) as engine:
        (finding,) = assess(engine, flair=image(axial()))
    assert np.array_equal(finding.mask, box())
    assert [session.swept for session in shelf.made if isinstance(session, Device)] == [0]


def test_full_device_is_told_from_a_broken_network_through_every_stage(tmp_path: Path) -> None:
    with loaded(tmp_path, (200.0,)) as engine:
        wrapped = replace(engine, session=Failing(engine.session))
        with pytest.raises(DeviceMemoryFull, match="^network: too much"):
            wrapped.examine({"flair": image(axial())}, "job")
