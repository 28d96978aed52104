"""The quick decoders make what the ordinary ones make, or leave it to them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.dicom.codestream import Codecs, codecs, decoded_quickly, refuse_other_size
from node.dicom.layout import Layout
from node.testing.series import SeriesSpec, make

SYNTAXES = [RLELossless, JPEGLSLossless, JPEG2000Lossless]


@pytest.fixture(scope="module")
def quick() -> Codecs:
    """imagecodecs' decoders; skips where it is not installed."""
    found = codecs()
    if not found:
        pytest.skip("imagecodecs is not installed (the extra 'codecs')")
    return found


def layout(voxels: NDArray[Any], bits: int) -> Layout:
    return Layout(
        rows=voxels.shape[0],
        columns=voxels.shape[1],
        allocated=voxels.itemsize * 8,
        stored=bits,
        signed=voxels.dtype.kind == "i",
        inverted=False,
        slope=1.0,
        intercept=0.0,
    )


def encoded(voxels: NDArray[Any], bits: int, syntax: str) -> bytes:
    dataset = make(SeriesSpec(bits_stored=bits), voxels[np.newaxis])[0]
    dataset.compress(syntax)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def image(dtype: str, bits: int, shape: tuple[int, int], seed: int = 0) -> NDArray[Any]:
    low = -(1 << (bits - 1)) if dtype.startswith("i") else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), shape).astype(dtype)
    return np.repeat(values, 2, axis=1)  # so that there are runs


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_is_decoded_quickly_is_what_was_encoded(quick: Codecs, data: st.DataObject) -> None:
    dtype, bits = data.draw(
        st.sampled_from(
            [("u2", 16), ("u2", 12), ("u2", 10), ("i2", 16), ("i2", 13), ("u1", 8), ("i1", 8)]
        )
    )
    shape = data.draw(st.tuples(st.integers(32, 48), st.integers(16, 24)))
    syntax = data.draw(st.sampled_from(SYNTAXES))
    voxels = image(dtype, bits, shape, data.draw(st.integers(0, 99)))
    values = decoded_quickly(encoded(voxels, bits, syntax), syntax, layout(voxels, bits), quick)
    assert values is not None
    unused = voxels.itemsize * 8 - bits
    if voxels.dtype.kind == "i":  # JPEG-LS knows no sign, and the bits above are nobody's
        values = (values << unused) >> unused
    np.testing.assert_array_equal(values, voxels)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_codestream_that_ends_early_is_left_to_the_ordinary_decoders(
    quick: Codecs, syntax: str, share: float
) -> None:
    voxels = image("u2", 12, (32, 16))
    codestream = encoded(voxels, 12, syntax)
    cut = codestream[: max(64, int(len(codestream) * share))]
    assert decoded_quickly(cut, syntax, layout(voxels, 12), quick) is None


@pytest.mark.parametrize(
    ("syntax", "changes"),
    [
        (JPEGLSLossless, {"stored": 10}),
        (JPEG2000Lossless, {"stored": 16}),
        (JPEG2000Lossless, {"signed": True}),
        (JPEGLSLossless, {"allocated": 32}),
        (RLELossless, {"allocated": 8}),
        (RLELossless, {"rows": 33}),
        (RLELossless, {"rows": 31}),
    ],
)
def test_a_codestream_of_another_kind_than_its_header_is_left_to_the_ordinary_decoders(
    quick: Codecs, syntax: str, changes: dict[str, Any]
) -> None:
    voxels = image("u2", 12, (32, 16))
    fields = {name: getattr(layout(voxels, 12), name) for name in Layout.__dataclass_fields__}
    codestream = encoded(voxels, 12, syntax)
    assert decoded_quickly(codestream, syntax, Layout(**(fields | changes)), quick) is None


def test_lossy_values_come_from_the_same_decoder_whatever_is_installed(quick: Codecs) -> None:
    voxels = image("u2", 12, (32, 16))
    codestream = encoded(voxels, 12, JPEG2000Lossless)
    assert decoded_quickly(codestream, JPEG2000, layout(voxels, 12), quick) is None


def test_run_lengths_may_hold_no_operations_and_padding(quick: Codecs) -> None:
    segment = b"\x80\xff\x07\x80\x01\x08\x09\x80"  # twice 7, then 8, 9; 128 does nothing
    codestream = struct.pack("<16I", 1, 64, *[0] * 14) + segment
    voxels = np.zeros((2, 2), np.uint8)
    values = decoded_quickly(codestream, RLELossless, layout(voxels, 8), quick)
    assert values is None or values.tolist() == [[7, 7], [8, 9]]


def test_without_quick_decoders_all_is_left_to_the_ordinary_ones() -> None:
    voxels = image("u2", 12, (32, 16))
    for syntax in SYNTAXES:
        codestream = encoded(voxels, 12, syntax)
        assert decoded_quickly(codestream, syntax, layout(voxels, 12), {}) is None


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_stated_size_is_compared_with_the_header(syntax: str) -> None:
    voxels = image("u2", 12, (32, 16))
    codestream = encoded(voxels, 12, syntax)
    refuse_other_size(codestream, layout(voxels, 12))
    with pytest.raises(ValueError, match="the codestream is 32 x 32, the header says 16 x 16"):
        refuse_other_size(codestream, layout(voxels[:16, :16], 12))
