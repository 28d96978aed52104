"""One engine's findings crop the next one's input, and no voxel loses its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node import bundle
from node.cascade import Box, around, cropped, put_back
from node.domain.errors import ConfigError, NotAssessable
from node.domain.finding import Finding, Region
from node.domain.volume import Grid, Volume
from node.engine import Engine
from node.findings import Found
from node.runtimes.onnx import Onnx
from tests.engines.package import FLAIR, IMAGE, LESION, PARTS, T1, brighter_than, network, package
from tests.test_engine import BOX, FRAME, ORDERS, ORIENT, PAD, axial, image, turned

NORMALISE = '\n[[pre]]\nkind = "zscore"\n'
MANY = [*PARTS[:-1], LESION + "max_instances = 1000\n"]
SHAPE = (8, 12, 16)


def engine_at(folder: Path, level: float, *parts: str) -> Path:
    """A package in a folder, called as the folder, for what is brighter than a level."""
    folder.mkdir(parents=True, exist_ok=True)
    brighter_than(folder / "model.onnx", level)
    package(folder, *(parts or PARTS))
    manifest = folder / "engine.toml"
    manifest.write_text(manifest.read_text().replace('"tester"', json.dumps(folder.name)))
    return folder


def after(first: str, *options: str) -> str:
    return "\n".join(["", "[cascade]", f'package = "{first}"', *options, ""])


def chain(
    root: Path, levels: tuple[float, float], *options: str, parts: Sequence[str] = ()
) -> Path:
    """Two engines: "finder" looks first, and "reader" where it found something."""
    engine_at(root / "finder", levels[0])
    return engine_at(root / "reader", levels[1], *(parts or PARTS), after("finder", *options))


def load(folder: Path) -> Engine:
    return Engine.load(bundle.read(folder), Onnx(threads=1))


def examined(folder: Path, **volumes: Volume) -> Found:
    with load(folder) as engine:
        return engine.examine(volumes, "job")


def specks() -> Volume:
    """The bright box of 300 among tissue of 100, and specks of 250 far from it and near it."""
    volume = image(axial())
    voxels = volume.voxels.copy()
    voxels[0, 0, 0] = voxels[7, 11, 15] = 250
    voxels[3, 5, 12] = 250
    return volume.with_voxels(voxels)


def test_only_what_the_first_engine_found_is_looked_at(tmp_path: Path) -> None:
    found = examined(chain(tmp_path, (280, 200)), flair=specks())
    (finding,) = found.findings
    assert np.array_equal(finding.mask, image(axial()).voxels == 300)
    assert found.notes == ("looked at 3 x 5 x 7 of 8 x 12 x 16 voxels, around what finder found",)


def test_margin_is_seen_around_it(tmp_path: Path) -> None:
    # Columns are 0.7 mm apart: the speck lies two of them beside the box.
    near = examined(chain(tmp_path, (280, 200), "margin_mm = 1.4"), flair=specks())
    assert sorted(int(finding.mask.sum()) for finding in near.findings) == [1, 105]


def test_steps_and_network_see_the_box_alone(tmp_path: Path) -> None:
    # In the box alone the voxels are all alike, and their z-score is 0; in the whole it is not.
    parts = [*PARTS, NORMALISE]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    level = 1.0
    with load(engine_at(whole, level, *parts)) as engine:
        seen = engine.predict({"flair": image(axial())}).voxels
    with load(chain(cut, (200, level), parts=parts)) as engine:
        boxed = engine.predict({"flair": image(axial())}).voxels
    assert seen[0][BOX].min() > 0.5
    assert np.allclose(boxed[0][BOX], 1 / (1 + np.exp(0.1)), atol=1e-6)
    outside = np.ones(SHAPE, bool)
    outside[BOX] = False
    assert (boxed[0][outside] == 0).all()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(ORDERS),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.sampled_from([(), (ORIENT,), (ORIENT, PAD)]),
    st.floats(0, 30),
)
def test_finding_in_a_box_lands_on_its_voxels_for_any_orientation(
    order: tuple[Sequence[int], Sequence[int]],
    angles: Sequence[float],
    pre: tuple[str, ...],
    margin: float,
) -> None:
    source = image(turned(*order, angles))
    with TemporaryDirectory() as folder:
        parts = [*PARTS, *pre]
        path = chain(Path(folder), (250, 200), f"margin_mm = {margin}", parts=parts)
        (finding,) = examined(path, flair=source).findings
    assert np.array_equal(finding.mask, source.voxels == 300)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(), (ORIENT,), (ORIENT, PAD, NORMALISE)]))
def test_cascade_that_sees_everything_is_no_cascade(seed: int, pre: tuple[str, ...]) -> None:
    voxels = np.random.default_rng(seed).integers(0, 400, (3, 9, 7)).astype(np.int16)
    volume = Volume(voxels, turned((2, 0, 1), (1, -1, 1), (3, 4, 5)), FRAME)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        alone = engine_at(root / "alone", 1, *MANY, *pre)
        whole = chain(root, (-1, 1), parts=[*MANY, *pre])
        with load(alone) as one, load(whole) as other:
            first, second = (engine.predict({"flair": volume}) for engine in (one, other))
            mine, its = (engine.examine({"flair": volume}, "job") for engine in (one, other))
    assert first.voxels.tobytes() == second.voxels.tobytes()
    assert np.array_equal(first.affine, second.affine)
    assert [f.mask.tobytes() for f in mine.findings] == [f.mask.tobytes() for f in its.findings]


@pytest.mark.parametrize(
    ("empty", "words"),
    [("whole", "so all of it was looked at"), ("nothing", "so nothing was looked at")],
)
def test_first_engine_that_found_nothing_is_told(tmp_path: Path, empty: str, words: str) -> None:
    found = examined(chain(tmp_path, (999, 200), f'empty = "{empty}"'), flair=image(axial()))
    assert len(found.findings) == (1 if empty == "whole" else 0)
    assert any(words in note and note.startswith("finder, which") for note in found.notes)


def test_study_without_the_organ_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(NotAssessable) as refused:
        examined(chain(tmp_path, (999, 200), "labels = [1]"), flair=image(axial()))
    assert str(refused.value) == (
        "finder, which looks first, found nothing with the labels [1] in this series, so there is "
        "no place to look at"
    )


def test_prediction_of_nothing_is_no_probability_anywhere(tmp_path: Path) -> None:
    with load(chain(tmp_path, (999, 200), 'empty = "nothing"')) as engine:
        prediction = engine.predict({"flair": image(axial())})
    assert prediction.voxels.shape == (1, *SHAPE)
    assert not prediction.voxels.any()


def test_only_the_wanted_labels_crop(tmp_path: Path) -> None:
    # Channel 0 is bright above 280, channel 1 above 240: label 2 is what only the latter finds.
    finder = engine_at(tmp_path / "finder", 200)
    network(finder / "model.onnx", [[0.4], [0.1]], [-112.0, -24.0])
    two = LESION + LESION.replace("label = 1", "label = 2").replace("Lesion", "Other")
    manifest = package(finder, *PARTS[:5], two) / "engine.toml"
    manifest.write_text(manifest.read_text().replace('"tester"', '"finder"'))
    both = image(axial())
    both.voxels[7, 11, 15] = 250
    for label, seen in ((1, 105), (2, 1)):
        reader = engine_at(tmp_path / "reader", 200, *PARTS, after("finder", f"labels = [{label}]"))
        (finding,) = examined(reader, flair=both).findings
        assert int(finding.mask.sum()) == seen


def test_rules_of_counting_hold_for_what_crops(tmp_path: Path) -> None:
    # The specks are findings for the network, but too small for the engine.
    voxel_ml = 3.0 * 0.9 * 0.7 / 1000
    large = [*PARTS[:-1], LESION + f"min_ml = {10 * voxel_ml}\n"]
    engine_at(tmp_path / "finder", 200, *large)
    found = examined(engine_at(tmp_path / "reader", 200, *PARTS, after("finder")), flair=specks())
    assert [int(finding.mask.sum()) for finding in found.findings] == [105]


def test_engines_may_look_at_other_series(tmp_path: Path) -> None:
    # The first one looks at slices downwards, twice as fine, of the same place.
    both = IMAGE.replace('["flair"]', '["flair", "t1"]')
    t1 = [one.replace("flair", "t1") if one is IMAGE else one for one in (T1, *PARTS[1:])]
    engine_at(tmp_path / "finder", 280, *t1)
    folder = tmp_path / "reader"
    engine_at(folder, 200)
    network(folder / "model.onnx", [[0.1, 0.0]], [-20.0])
    package(folder, FLAIR, T1, PARTS[1], both, *PARTS[3:], after("finder"))
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = -1.5, 0.45, 0.35
    affine[:3, 3] = -40.0 - 0.175, -50.0 - 0.225, 10.0 + 7 * 3.0 + 0.75
    fine = np.repeat(np.repeat(np.repeat(image(axial()).voxels, 2, 0), 2, 1), 2, 2)[::-1]
    found = examined(folder, flair=specks(), t1=Volume(fine, affine, FRAME))
    (finding,) = found.findings
    assert np.array_equal(finding.mask, image(axial()).voxels == 300)
    assert any("around what finder found" in note for note in found.notes)
    assert any("not registered" in note for note in found.notes)


def test_three_engines_look_one_after_the_other(tmp_path: Path) -> None:
    engine_at(tmp_path / "a", 280)
    engine_at(tmp_path / "b", 200, *PARTS, after("a", "margin_mm = 1.4"))
    last = engine_at(tmp_path / "c", 200, *PARTS, after("b"))
    found = examined(last, flair=specks())
    assert sorted(int(finding.mask.sum()) for finding in found.findings) == [1, 105]
    assert [note.partition(",")[0] for note in found.notes] == [
        "b: looked at 5 x 9 x 11 of 8 x 12 x 16 voxels",
        "looked at 3 x 5 x 9 of 8 x 12 x 16 voxels",
    ]


def test_progress_never_goes_back_and_ends_at_the_end(tmp_path: Path) -> None:
    told: list[float] = []
    chain(tmp_path, (280, 200))
    last = engine_at(tmp_path / "last", 200, *PARTS, after("reader", "margin_mm = 6"))
    with load(last) as engine:
        engine.examine({"flair": image(axial())}, "job", lambda a, b: told.append(a / b))
    # Two batches of the first, one of three slices, and two of seven.
    assert told == pytest.approx([0.125, 0.25, 0.5, 0.5 + 4 / 14, 1.0])


def test_progress_ends_where_nothing_is_left_to_look_at(tmp_path: Path) -> None:
    told: list[float] = []
    with load(chain(tmp_path, (999, 200), 'empty = "nothing"')) as engine:
        engine.examine({"flair": image(axial())}, "job", lambda a, b: told.append(a / b))
    assert told == [0.25, 0.5, 1.0]


def test_everything_is_closed_together(tmp_path: Path) -> None:
    engine = load(chain(tmp_path, (280, 200)))
    assert len(engine.sessions) == 2
    engine.close()
    for session in engine.sessions:
        with pytest.raises(Exception, match="closed"):
            session.infer({})


def test_another_first_engine_makes_another_engine(tmp_path: Path) -> None:
    reader = chain(tmp_path, (280, 200))
    before = bundle.read(reader)
    assert bundle.read(reader).digest == before.digest
    engine_at(tmp_path / "finder", 270)
    after_ = bundle.read(reader)
    assert after_.digest != before.digest
    assert after_.algorithm().device_uid != before.algorithm().device_uid
    assert after_.first is not None
    assert "looked around the findings of finder 1.0" in after_.algorithm().parameters


def test_first_engine_may_be_named_by_its_path(tmp_path: Path) -> None:
    engine_at(tmp_path / "elsewhere" / "finder", 280)
    reader = engine_at(tmp_path / "reader", 200, *PARTS, after("../elsewhere/finder"))
    assert bundle.read(reader).first is not None


def test_series_must_be_fit_for_the_engine_that_looks_first(tmp_path: Path) -> None:
    more = '{ fact = "orientation", equals = "axial" }'
    chosen = '{ fact = "slices", at_least = 9, score = 2.0 }'
    axial_only = FLAIR.replace("}]", f"}}, {more}, {chosen}]")
    engine_at(tmp_path / "finder", 280, axial_only, *PARTS[1:])
    reader = bundle.read(engine_at(tmp_path / "reader", 200, *PARTS, after("finder")))
    (wanted,) = reader.wanted
    assert [one.fact for one in wanted.accepts] == ["Modality", "Modality", "orientation"]


def test_shipped_engine_may_look_first(tmp_path: Path) -> None:
    first = bundle.read(engine_at(tmp_path / "reader", 200, *PARTS, after("mr-brain-lesion"))).first
    assert first is not None
    assert first.folder == bundle.find("mr-brain-lesion")


@pytest.mark.parametrize(
    ("parts", "path", "words"),
    [
        (after("fnder"), "cascade.package", "did you mean 'finder'"),
        (after("./nowhere"), "cascade.package", "there is no engine folder"),
        (after("reader"), "cascade.package", "each waits for the other: reader > reader"),
        (
            after("finder", "labels = [1, 3]"),
            "cascade.labels[1]",
            "has no finding with the label 3",
        ),
        (after("finder", 'empty = "guess"'), "cascade.empty", "'refuse', 'whole' or 'nothing'"),
        (after("finder", "margin_mm = -1"), "cascade.margin_mm", "greater than or equal to 0"),
        ("\n[cascade]\nlabels = [1]\n", "cascade.package", "is missing"),
        (after("stranger"), "cascade.package", "stranger wants the roles t1, which this engine"),
    ],
)
def test_cascade_that_makes_no_sense_is_refused(
    tmp_path: Path, parts: str, path: str, words: str
) -> None:
    engine_at(tmp_path / "finder", 280)
    engine_at(tmp_path / "stranger", 280, T1, PARTS[1], IMAGE.replace("flair", "t1"), *PARTS[3:])
    with pytest.raises(ConfigError) as refused:
        bundle.read(engine_at(tmp_path / "reader", 200, *PARTS, parts))
    (fault,) = refused.value.faults
    assert fault.path == path
    assert words in fault.message
    assert fault.line > 0


def test_circle_of_engines_is_refused_with_its_names(tmp_path: Path) -> None:
    engine_at(tmp_path / "a", 1, *PARTS, after("b"))
    engine_at(tmp_path / "b", 1, *PARTS, after("c"))
    engine_at(tmp_path / "c", 1, *PARTS, after("a"))
    with pytest.raises(ConfigError, match="each waits for the other: a > b > c > a"):
        bundle.read(tmp_path / "a")


def test_more_than_three_engines_are_refused(tmp_path: Path) -> None:
    engine_at(tmp_path / "a", 1)
    for before, name in zip("abc", "bcd", strict=True):
        engine_at(tmp_path / name, 1, *PARTS, after(before))
    bundle.read(tmp_path / "c")
    with pytest.raises(ConfigError, match="3 engines at most look one after the other"):
        bundle.read(tmp_path / "d")


def finding(mask: NDArray[np.bool_]) -> Finding:
    concept = bundle.read(bundle.find("mr-brain-lesion")).manifest.findings[0].concept
    return Finding(concept, "finding", "1.2.3", Region.of(mask))


GRIDS = st.builds(
    lambda order, angles, shape: Grid(shape, turned(order[0], order[1], angles)),
    st.sampled_from(ORDERS),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(*[st.integers(2, 9)] * 3),
)


@settings(max_examples=80, deadline=None)
@given(st.data(), GRIDS, GRIDS, st.floats(0, 12))
def test_box_holds_every_voxel_of_the_findings_wherever_they_were_found(
    data: st.DataObject, own: Grid, grid: Grid, margin: float
) -> None:
    places = st.tuples(*[st.integers(0, n - 1) for n in own.shape])
    mask = np.zeros(own.shape, bool)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        mask[place] = True
    box = around([finding(mask)], own, grid, margin)
    every = np.array(list(np.ndindex(*grid.shape)))
    where = (
        np.linalg.solve(own.affine, grid.affine) @ np.hstack([every, np.ones((len(every), 1))]).T
    )
    nearest = np.rint(where[:3]).astype(int)
    on = ((nearest >= 0) & (nearest < np.array(own.shape)[:, None])).all(axis=0)
    inside = every[on][mask[tuple(nearest[:, on])]]
    if box is None:
        assert not len(inside)
        return
    assert (inside >= box.start).all()
    assert (inside < box.stop).all()
    assert all(0 <= a < b <= n for a, b, n in zip(box.start, box.stop, grid.shape, strict=True))


@given(st.data(), st.floats(0, 6))
def test_box_on_the_same_grid_is_that_of_the_mask_and_its_margin(
    data: st.DataObject, margin: float
) -> None:
    grid = Grid((7, 8, 9), axial((3.0, 0.9, 0.7)))
    low = data.draw(st.tuples(*[st.integers(0, n - 1) for n in grid.shape]))
    high = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(low, grid.shape, strict=True))
    mask = np.zeros(grid.shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    wide = [ceil(margin / step - 1e-4) for step in grid.spacing]
    wanted = Box(
        tuple(max(0, a - m) for a, m in zip(low, wide, strict=True)),
        tuple(min(n, b + m) for b, m, n in zip(high, wide, grid.shape, strict=True)),  # type: ignore[arg-type]
    )
    assert around([finding(mask)], grid, grid, margin) == wanted


def test_findings_beside_the_grid_make_no_box() -> None:
    away = axial()
    away[:3, 3] += 500
    mask = np.ones((2, 2, 2), bool)
    assert around([finding(mask)], Grid((2, 2, 2), away), Grid(SHAPE, axial()), 5.0) is None
    assert around([], Grid(SHAPE, axial()), Grid(SHAPE, axial()), 5.0) is None


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(ORDERS), st.booleans())
def test_what_is_cut_out_and_put_back_has_not_moved(
    data: st.DataObject, order: tuple[Sequence[int], Sequence[int]], background: bool
) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    ends = [sorted(data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in shape]
    box = Box(*zip(*ends, strict=True))
    voxels = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    whole = Volume(voxels, turned(*order, (5, 6, 7)), FRAME)
    part = cropped(whole, box)
    for corner in product((0, 1), repeat=3):
        inner = [c * (n - 1) for c, n in zip(corner, box.shape, strict=True)]
        outer = [a + b for a, b in zip(box.start, inner, strict=True)]
        np.testing.assert_allclose(part.affine @ [*inner, 1], whole.affine @ [*outer, 1], atol=1e-9)
    back = put_back(part, box, whole, background=background)
    assert np.array_equal(back.affine, whole.affine)
    slab = (slice(None), *box.slab)
    assert np.array_equal(back.voxels[slab], voxels[slab])
    outside = np.ones(shape, bool)
    outside[box.slab] = False
    assert (back.voxels[0][outside] == (1 if background else 0)).all()
    assert (back.voxels[1][outside] == 0).all()
    assert replace(back, voxels=voxels).grid.shape == whole.grid.shape
