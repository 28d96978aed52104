"""The overlay shows the right slice, the findings in their place, and nobody's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from node.domain.codes import Code
from node.domain.finding import Algorithm, Finding
from node.domain.study import Instance
from node.domain.volume import Volume
from node.findings import Label, Segmented, find
from node.overlay import displayed, draw, side

LESION = Label(
    label=1,
    name="Lesion",
    category=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    type=Code("52988006", "SCT", "Lesion"),
    colour=(60.0, 0.0, 90.0),
)
ENGINE = Algorithm("tester", "1.2.3", "nobody", "digest", "2.25.1")
ROWS, COLUMNS = 60, 80


def volume(row: float = 1.0, column: float = 1.0) -> Volume:
    """Seven slices of 60 x 80; slice n has a bright band in rows 8 n to 8 n + 4."""
    voxels = np.full((7, ROWS, COLUMNS), 100, np.int16)
    for index in range(7):
        voxels[index, 8 * index : 8 * index + 4] = 900
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = 3.0, row, column
    return Volume(voxels, affine)


def findings(*boxes: tuple[slice, slice, slice]) -> tuple[Finding, ...]:
    labels = np.zeros((7, ROWS, COLUMNS), np.uint8)
    for box in boxes:
        labels[box] = 1
    segmented = Segmented(labels, labels[None].astype(np.float32), volume().grid, {1: 0})
    return find(segmented, [LESION], "tester", "job").findings


BOX = (slice(2, 3), slice(30, 50), slice(20, 60))


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def grey_rows(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness per source row at a column that no finding and no letter touches."""
    scale = pixels.shape[1] / COLUMNS
    column = pixels[:, int(5.5 * scale)].mean(axis=1)
    return np.array([column[int((row + 0.5) * scale)] for row in range(ROWS)])


def is_slice(pixels: NDArray[np.uint8], index: int) -> bool:
    bright = np.flatnonzero(grey_rows(pixels) > 128)
    return bright.tolist() == list(range(8 * index, 8 * index + 4))


def test_key_slice_of_the_largest_finding_is_drawn(tmp_path: Path) -> None:
    small = (slice(5, 6), slice(2, 6), slice(2, 6))
    path = draw(volume(), findings(small, BOX), tmp_path / "overlay.png", algorithm=ENGINE)
    assert is_slice(picture(path), 2)


def test_middle_slice_is_drawn_when_nothing_was_found(tmp_path: Path) -> None:
    pixels = picture(draw(volume(), (), tmp_path / "overlay.png"))
    assert is_slice(pixels, 3)


def test_wanted_slice_overrules(tmp_path: Path) -> None:
    pixels = picture(draw(volume(), findings(BOX), tmp_path / "overlay.png", slice_index=6))
    assert is_slice(pixels, 6)


def test_outline_lies_on_the_boundary_in_the_concepts_colour(tmp_path: Path) -> None:
    pixels = picture(draw(volume(), findings(BOX), tmp_path / "overlay.png")).astype(int)
    scale = pixels.shape[1] / COLUMNS
    colour = np.array(displayed(LESION.colour))
    for row, column in ((30, 40), (50, 40), (40, 20), (40, 60)):
        y, x = round(row * scale), round(column * scale)
        around = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        assert np.abs(around - colour).sum(axis=1).min() < 12
    inside, outside = pixels[int(40 * scale), int(40 * scale)], pixels[int(25 * scale), 8]
    assert inside[0] > inside[2] + 20
    assert outside[0] == outside[2]


def test_fill_leaves_holes_open(tmp_path: Path) -> None:
    labels = np.zeros((7, ROWS, COLUMNS), np.uint8)
    labels[2, 28:56, 20:60] = 1
    labels[2, 34:50, 30:50] = 0
    labels[2, 40:44, 36:44] = 1
    segmented = Segmented(labels, labels[None].astype(np.float32), volume().grid, {1: 0})
    whole = find(segmented, [replace(LESION, instances="whole")], "tester", "job").findings
    pixels = picture(draw(volume(), whole, tmp_path / "overlay.png")).astype(int)
    scale = pixels.shape[1] / COLUMNS
    tint = {
        row: int(np.ptp(pixels[int((row + 0.5) * scale), int(40.5 * scale)])) > 20
        for row in (30, 36, 41, 47, 53)
    }
    assert tint == {30: True, 36: False, 41: True, 47: False, 53: True}


@pytest.mark.parametrize(("row", "column"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_picture_is_large_and_has_the_right_aspect_ratio(
    tmp_path: Path, row: float, column: float
) -> None:
    plain = picture(draw(volume(row, column), (), tmp_path / "plain.png"))
    marked = picture(draw(volume(row, column), findings(BOX), tmp_path / "marked.png"))
    caption = 14 * 2 + 28 * 2
    height, width = plain.shape[0] - caption, plain.shape[1]
    assert marked.shape == plain.shape
    assert min(height, width) >= 512
    assert height / width == pytest.approx(ROWS * row / (COLUMNS * column), rel=0.01)


def test_oblong_picture_stays_within_the_limit(tmp_path: Path) -> None:
    assert max(picture(draw(volume(0.05, 1.0), (), tmp_path / "overlay.png")).shape) <= 2048


def test_picture_knows_nobody(tmp_path: Path) -> None:
    named = Instance(
        "1.2", "1.2", "1.2", "1.2", "", "", 0.0, Path("a"), "1.2", {"PatientName": "Doe^Jane"}
    )
    with_sources = replace(volume(), sources=(named,) * 7)
    first = draw(with_sources, findings(BOX), tmp_path / "first.png", algorithm=ENGINE)
    second = draw(volume(), findings(BOX), tmp_path / "second.png", algorithm=ENGINE)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert not image.info


def test_caption_says_the_engine(tmp_path: Path) -> None:
    one = picture(draw(volume(), (), tmp_path / "one.png", algorithm=ENGINE))
    other = picture(
        draw(volume(), (), tmp_path / "two.png", algorithm=replace(ENGINE, version="9"))
    )
    changed = np.argwhere((one != other).any(axis=2))
    assert changed[:, 0].min() >= one.shape[0] - 14 * 2 - 28 * 2
    assert changed[:, 1].max() < one.shape[1] / 3


def test_flat_slice_and_channels_are_drawn(tmp_path: Path) -> None:
    flat = volume().with_voxels(np.zeros((3, 7, ROWS, COLUMNS), np.float32))
    assert picture(draw(flat, findings(BOX), tmp_path / "overlay.png")).any()


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [
        ((100.0, 0.0, 0.0), (255, 255, 255)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
        ((54.29, 80.81, 69.89), (255, 0, 0)),
        ((29.57, 68.30, -112.03), (0, 0, 255)),
        ((53.39, 0.0, 0.0), (127, 127, 127)),
    ],
)
def test_lab_colours_are_shown_as_srgb(
    lab: tuple[float, float, float], rgb: tuple[int, int, int]
) -> None:
    assert displayed(lab) == pytest.approx(rgb, abs=2)


def test_sides_are_those_of_patient_coordinates() -> None:
    letters = [side(np.array(d, float)) for d in ((1, 0, 0), (0, -1, 0.5), (0.2, 0, -0.9))]
    assert letters == ["L", "A", "F"]
