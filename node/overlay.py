"""A picture of the key slice with the findings drawn on it, for people without a viewer at hand.

It proves nothing that the Segmentation does not say better, but a picture is what one looks at
first. It carries no patient identity: only the engine, the findings and the number of the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.domain.finding import Algorithm, Finding, Measurement
from node.domain.volume import Affine, Volume
from node.findings import key_slice, rings

SHORTER_SIDE = 768
"""The image is enlarged until its shorter side has so many pixels."""
LONGER_SIDE = 2048
"""No image is enlarged beyond this (very oblong ones); it still has its right aspect ratio."""
WARNING = "AI result, not for diagnosis"

_FINE = 3
"""Outlines are drawn so many times larger and reduced, which makes their edges smooth."""
_FILL = 0.22
_LINE = 2
_PAD, _ROW, _ROWS = 14, 28, 4
_BACKGROUND = (16, 18, 22)
_TEXT = (232, 234, 238)
_FAINT = (150, 156, 166)
_AMBER = (255, 190, 92)

Colour = tuple[int, int, int]
Points = NDArray[np.float64]


def draw(
    volume: Volume,
    findings: Sequence[Finding],
    path: Path,
    *,
    algorithm: Algorithm | None = None,
    slice_index: int | None = None,
) -> Path:
    """Write a PNG of one slice of the source volume with the findings that lie on it.

    Without ``slice_index`` it is the key slice of the largest finding, or the middle slice when
    nothing was found. Grey values are windowed from the 1st to the 99th percentile of the slice.
    """
    index = _chosen(volume, findings) if slice_index is None else slice_index
    plane = _Plane.of(volume, index)
    picture = plane.picture()
    visible = [f for f in findings if index in f.region.slices]
    for number, finding in enumerate(visible, 1):
        _draw_finding(picture, finding, index, plane)
        if len(visible) > 1:
            _draw_number(picture, finding, index, plane, number)
    _draw_directions(picture, volume.affine)
    caption = _Caption(algorithm, tuple(visible), (index + 1, volume.grid.shape[0]))
    caption.below(picture).save(path, format="PNG", optimize=True)
    return path


def _chosen(volume: Volume, findings: Sequence[Finding]) -> int:
    regions = [finding.region for finding in findings if finding.region.size]
    if not regions:
        return volume.grid.shape[0] // 2
    largest = max(regions, key=lambda region: region.size)
    return largest.start[0] + key_slice(largest.voxels)


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """One slice (j, i), and how many pixels of the picture a row and a column take."""

    pixels: NDArray[Any]
    per_row: float
    per_column: float

    @classmethod
    def of(cls, volume: Volume, index: int) -> _Plane:
        # Of an image with channels the first one is shown.
        pixels = volume.voxels.reshape(-1, *volume.grid.shape)[0, index]
        _, row, column = volume.spacing
        sides = pixels.shape[0] * row, pixels.shape[1] * column
        scale = min(SHORTER_SIDE / min(sides), LONGER_SIDE / max(sides))
        return cls(pixels, row * scale, column * scale)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        rows, columns = self.pixels.shape
        return max(1, round(columns * self.per_column)), max(1, round(rows * self.per_row))

    def picture(self) -> Image.Image:
        """The slice, windowed and enlarged."""
        low, high = np.percentile(self.pixels, (1, 99))
        grey = np.clip((self.pixels - low) / max(high - low, 1e-6), 0, 1) * 255
        small = Image.fromarray(np.rint(grey).astype(np.uint8))
        return small.resize(self.size, Image.Resampling.BICUBIC).convert("RGB")

    def placed(self, ring: Points, fine: int = 1) -> list[tuple[float, float]]:
        """Image coordinates as coordinates of the picture, ``fine`` times larger."""
        scaled = ring * (self.per_column * fine, self.per_row * fine)
        return [(float(x), float(y)) for x, y in scaled]


def _draw_finding(picture: Image.Image, finding: Finding, index: int, plane: _Plane) -> None:
    """A translucent fill and an opaque outline in the concept's colour."""
    large = (picture.width * _FINE, picture.height * _FINE)
    fill, line = Image.new("L", large), Image.new("L", large)
    on_fill, on_line = ImageDraw.Draw(fill), ImageDraw.Draw(line)
    # Large rings first: a hole then clears what its surrounding has filled.
    for ring in sorted(rings(finding.region.on_slice(index)), key=lambda r: -abs(_turn(r))):
        points = plane.placed(_rounded(ring), _FINE)
        on_fill.polygon(points, fill=255 if _turn(ring) > 0 else 0)
        on_line.line(points, fill=255, width=_LINE * _FINE, joint="curve")
    colour = displayed(finding.concept.colour)
    for layer, opacity in ((fill, _FILL), (line, 1.0)):
        levels = [round(level * opacity) for level in range(256)]
        picture.paste(colour, mask=layer.resize(picture.size, Image.Resampling.BOX).point(levels))


def _turn(ring: Points) -> float:
    """Enclosed area of a boundary, positive around a region and negative around a hole."""
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _rounded(ring: Points) -> Points:
    """The ring with its corners cut twice (Chaikin): it moves by less than half a pixel."""
    for _ in range(2):
        first, second = ring[:-1], ring[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
        ring = np.concatenate([cut.reshape(-1, 2), cut[0, :1]])
    return ring


def _draw_number(
    picture: Image.Image, finding: Finding, index: int, plane: _Plane, number: int
) -> None:
    """The finding's number in the caption, beside its upper right end."""
    rows, columns = np.nonzero(finding.region.on_slice(index))
    corner = np.array([[columns.max() + 1.5, rows.min() - 0.5]])
    x, y = plane.placed(corner)[0]
    _write(picture, (x, y), str(number), anchor="ls", colour=displayed(finding.concept.colour))


def _draw_directions(picture: Image.Image, affine: Affine) -> None:
    """The patient's side at each edge of the picture: R, L, A, P, H or F."""
    width, height = picture.size
    gap = 14
    for place, anchor, direction in (
        ((gap, height / 2), "lm", -affine[:3, 2]),
        ((width - gap, height / 2), "rm", affine[:3, 2]),
        ((width / 2, gap), "mt", -affine[:3, 1]),
        ((width / 2, height - gap), "mb", affine[:3, 1]),
    ):
        _write(picture, place, side(direction), anchor=anchor, colour=_FAINT)


def side(direction: NDArray[np.float64]) -> str:
    """The letter of the side of the patient that a direction (x, y, z) mostly points to."""
    axis = int(np.argmax(np.abs(direction)))
    return "LPH"[axis] if direction[axis] > 0 else "RAF"[axis]


def _write(
    picture: Image.Image, place: tuple[float, float], text: str, *, anchor: str, colour: Colour
) -> None:
    """Text with a dark rim, readable on any grey."""
    ImageDraw.Draw(picture).text(
        place, text, fill=colour, font=_font(22), anchor=anchor, stroke_width=2, stroke_fill=0
    )


@dataclass(frozen=True, slots=True)
class _Caption:
    """The bar below the picture; ``slices`` are the number of this slice and of all."""

    algorithm: Algorithm | None
    visible: tuple[Finding, ...]
    slices: tuple[int, int]

    def below(self, picture: Image.Image) -> Image.Image:
        """The picture with the bar."""
        rows = self.visible[:_ROWS]
        height = _PAD * 2 + _ROW * (1 + max(1, len(rows)))
        whole = Image.new("RGB", (picture.width, picture.height + height), _BACKGROUND)
        whole.paste(picture, (0, 0))
        canvas, top = ImageDraw.Draw(whole), picture.height + _PAD
        self._title(canvas, picture.width, top)
        if not rows:
            canvas.text((_PAD, top + _ROW), "no finding on this slice", _FAINT, _font(19))
        for number, finding in enumerate(rows, 1):
            self._row(canvas, finding, number, top + _ROW * number)
        return whole

    def _title(self, canvas: ImageDraw.ImageDraw, width: int, top: int) -> None:
        made_by = f"{self.algorithm.name} {self.algorithm.version}" if self.algorithm else ""
        canvas.text((_PAD, top), made_by, _TEXT, _font(19))
        canvas.text((width / 2, top), WARNING, _AMBER, _font(19), anchor="ma")
        place = f"slice {self.slices[0]} of {self.slices[1]}"
        canvas.text((width - _PAD, top), place, _TEXT, _font(19), anchor="ra")

    def _row(self, canvas: ImageDraw.ImageDraw, finding: Finding, number: int, top: int) -> None:
        swatch = (_PAD, top + 4, _PAD + 14, top + 18)
        canvas.rectangle(swatch, fill=displayed(finding.concept.colour))
        label = (
            f"{number}  {finding.concept.label}" if len(self.visible) > 1 else finding.concept.label
        )
        measured = ",  ".join(f"{m.name.meaning} {_amount(m)}" for m in finding.measurements)
        text = f"{label}:  {measured}" if measured else label
        canvas.text((_PAD + 24, top), text, _FAINT, _font(19))


def _amount(measurement: Measurement) -> str:
    """A number that a person can read: large volumes in millilitres."""
    if measurement.unit.value == "mm3" and measurement.value >= 100:
        return f"{measurement.value / 1000:.1f} ml"
    return f"{measurement.value:.0f} {measurement.unit.value}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


_XYZ_TO_RGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
"""XYZ under D50 (the white of PS3.3 C.10.7.1.1) to linear sRGB, Bradford-adapted."""
_WHITE = np.array([0.96422, 1.0, 0.82521])


def displayed(lab: tuple[float, float, float]) -> Colour:
    """A CIELab colour (L* 0 to 100, D50) as sRGB bytes; colours out of reach are clipped."""
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = _WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip(_XYZ_TO_RGB @ xyz, 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    red, green, blue = (int(v) for v in np.rint(encoded * 255))
    return red, green, blue
