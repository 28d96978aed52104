"""Pixels: the voxels that made a series come back exactly, or the series is refused in words."""

from __future__ import annotations

import subprocess
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from node.dicom.geometry import Geometry, arrange
from node.dicom.pixels import load
from node.domain.errors import HeaderError, NodeError, PixelError, SpoolError
from node.domain.study import Fact, Instance
from node.domain.volume import Grid
from node.testing.series import CORONAL, SeriesSpec, make, received, save
from tests.dicom.raw import set_raw
from tests.dicom.real import real_series
from tests.places import shared, tool, unpacked


def noise(shape: tuple[int, int, int], dtype: str, bits: int, seed: int = 0) -> NDArray[Any]:
    """Voxels that use all of the stored bits."""
    low = -(1 << (bits - 1)) if dtype.startswith("i") else 0
    high = (1 << (bits - 1)) if dtype.startswith("i") else 1 << bits
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def alone(instance: Instance, **facts: Fact) -> Geometry:
    """A geometry around one instance, wherever it lies."""
    instance = replace(instance, facts={**instance.facts, **facts})
    rows, columns = instance.facts["Rows"], instance.facts["Columns"]
    assert isinstance(rows, float)
    assert isinstance(columns, float)
    return Geometry((instance,), Grid((1, int(rows), int(columns)), np.eye(4)), "")


def of_pydicom(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_series_comes_back_as_the_voxels_and_the_place_that_made_it(
    data: st.DataObject,
) -> None:
    dtype, bits = data.draw(
        st.sampled_from(
            [("int16", 16), ("uint16", 16), ("int16", 12), ("uint16", 12), ("uint8", 8)]
        )
    )
    syntaxes = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    syntaxes += [ExplicitVRBigEndian] if dtype != "uint8" else []
    turn = Rotation.random(rng=data.draw(st.integers(0, 2**32 - 1))).as_matrix()
    slope, intercept = data.draw(
        st.sampled_from([(None, 0.0), (1.0, -1024.0), (2.0, 3.0), (0.25, -1.5), (40000.0, 0.0)])
    )
    slices = data.draw(st.integers(1, 5))
    spec = SeriesSpec(
        orientation=(*map(float, turn[:, 0]), *map(float, turn[:, 1])),
        spacing=data.draw(st.tuples(*[st.floats(0.3, 9.0)] * 3)),
        order=data.draw(st.permutations(range(slices))),
        slope=slope,
        intercept=intercept,
        bits_stored=bits,
        transfer_syntax_uid=data.draw(st.sampled_from(syntaxes)),
    )
    voxels = noise((slices, 5, 3), dtype, bits, data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as directory:
        geometry = arrange(received(save(make(spec, voxels), Path(directory))))
        volume = load(geometry)
    expected = voxels * np.float64(1.0 if slope is None else slope) + intercept
    np.testing.assert_array_equal(volume.voxels, expected.astype(np.float32))
    np.testing.assert_allclose(volume.affine, spec.affine, atol=1e-6)
    assert volume.sources == geometry.instances
    assert volume.frame_of_reference_uid == spec.frame_of_reference_uid
    whole = expected == expected.round()
    fits = whole.all() and expected.min() >= -(2**15) and expected.max() < 2**15
    assert volume.voxels.dtype == (np.int16 if fits else np.float32)


def series(directory: Path, spec: SeriesSpec | None = None, slices: int = 4) -> list[Path]:
    return save(make(spec or SeriesSpec(), noise((slices, 8, 6), "int16", 16)), directory)


def loaded(paths: list[Path]) -> NDArray[Any]:
    return load(arrange(received(paths))).voxels


NUMERIC = [
    ("ImagePositionPatient", b"%s\\0\\0"),
    ("ImageOrientationPatient", b"1\\0\\0\\0\\%s\\0"),
    ("PixelSpacing", b"%s\\1"),
    ("SliceThickness", b"%s"),
    ("SpacingBetweenSlices", b"%s"),
    ("GantryDetectorTilt", b"%s"),
    ("RescaleSlope", b"%s"),
    ("RescaleIntercept", b"%s"),
    ("Rows", b"%s"),
    ("Columns", b"%s"),
    ("BitsAllocated", b"%s"),
    ("BitsStored", b"%s"),
    ("HighBit", b"%s"),
    ("PixelRepresentation", b"%s"),
    ("SamplesPerPixel", b"%s"),
    ("NumberOfFrames", b"%s"),
]


@pytest.mark.parametrize(("keyword", "form"), NUMERIC)
@pytest.mark.parametrize("bad", [b"nan", b"inf", b"-inf", b"1e400", b"abc", b"7 7", b"0x1"])
@pytest.mark.parametrize("every", [False, True])
def test_no_bad_number_ever_makes_a_volume(
    keyword: str, form: bytes, bad: bytes, every: bool, tmp_path: Path
) -> None:
    paths = series(tmp_path, SeriesSpec(slope=1.0, intercept=5.0))
    for path in paths if every else paths[1:2]:
        set_raw(path, keyword, form % bad, "DS")
    with pytest.raises(HeaderError, match=keyword):
        loaded(paths)


ODD = [
    (keyword, None if odd is None else form % odd)
    for keyword, form in NUMERIC
    for odd in (b"", b"-1", b"0", b"0.5", b"1e-320", b"1e9", b"1\\1", None)
    # These mean something else, and nothing is wrong with them.
    if (keyword, odd) not in {("RescaleIntercept", b"-1"), ("PixelRepresentation", b"0")}
    and (keyword, odd) not in {("RescaleSlope", b"0.5"), ("RescaleIntercept", b"0.5")}
]


@pytest.mark.parametrize(("keyword", "raw"), ODD)
@pytest.mark.parametrize("every", [False, True])
def test_an_odd_number_is_refused_or_changes_nothing(
    keyword: str, raw: bytes | None, every: bool, tmp_path: Path
) -> None:
    paths = series(tmp_path, SeriesSpec(slope=1.0, intercept=0.0))
    truth = loaded(paths)
    for path in paths if every else paths[1:2]:
        set_raw(path, keyword, raw, "DS")
    try:
        volume = load(arrange(received(paths)))
    except NodeError:
        return
    order = [paths.index(instance.path) for instance in volume.sources]
    assert order in ([0, 1, 2, 3], [3, 2, 1, 0])
    np.testing.assert_array_equal(volume.voxels, truth[order])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize(("dtype", "bits"), [("uint16", 12), ("int16", 16), ("uint8", 8)])
def test_compressed_series_equal_the_voxels_that_made_them(
    syntax: str, dtype: str, bits: int, tmp_path: Path
) -> None:
    voxels = noise((3, 64, 80), dtype, bits)
    datasets = make(SeriesSpec(bits_stored=bits, order=[2, 0, 1]), voxels)
    for dataset in datasets:
        dataset.compress(syntax)
    np.testing.assert_array_equal(loaded(save(datasets, tmp_path)), voxels)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
    ],
)
def test_one_image_in_many_syntaxes_is_one_image(name: str) -> None:
    plain = load(alone(received([of_pydicom("MR_small.dcm")])[0]))
    other = load(alone(received([of_pydicom(name)])[0]))
    np.testing.assert_array_equal(other.voxels, plain.voxels)


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_values_agree_with_pydicom(name: str) -> None:
    dataset = dcmread(of_pydicom(name))
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    volume = load(alone(received([of_pydicom(name)])[0]))
    np.testing.assert_array_equal(volume.voxels[0], expected)


LOSSLESS = [
    f"{name}_{syntax}"
    for syntax in ("RLE", "JPLL", "JLSL", "J2KR")
    for name in ("CT1", "MR1", "MR3", "NM1")
]
LOSSY = [f"{name}_{syntax}" for syntax in ("JLSN", "J2KI") for name in ("CT1", "MR1", "MR3")]


@pytest.fixture(scope="module")
def wg04(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked NEMA WG04 images; skips where they or zstd are absent."""
    shared("dicom/nema_wg04_compressed.tar.xz")
    zstd = tool("zstd")
    root = unpacked("nema_wg04_compressed", tmp_path_factory.mktemp("wg04")) / "data" / "WG04"
    for packed in (root / "REF").glob("*.zst"):
        subprocess.run([zstd, "-q", "-d", packed], check=True)
    return root


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
def test_reference_images_decode_to_their_references(wg04: Path, name: str) -> None:
    image, syntax = name.split("_")
    (path,) = received([wg04 / syntax / name])
    reference = dcmread(wg04 / "REF" / f"{image}_UNC")
    voxels = load(alone(path, RescaleSlope=1.0, RescaleIntercept=0.0)).voxels[0]
    if name in LOSSLESS:
        np.testing.assert_array_equal(voxels, reference.pixel_array)
    else:
        error = np.abs(voxels - reference.pixel_array.astype(np.float64)).mean()
        assert error < 0.02 * np.ptp(reference.pixel_array)


@pytest.mark.parametrize("name", ["MR1_JPLY", "MR3_JPLY", "NM1_JPLY"])
def test_twelve_bit_jpeg_is_refused_with_the_name_of_the_syntax(wg04: Path, name: str) -> None:
    geometry = alone(received([wg04 / "JPLY" / name])[0])
    with pytest.raises(PixelError, match="JPEG Extended .*12-bit"):
        load(geometry)


def test_twelve_bit_jpeg_of_pydicom_is_refused_too() -> None:
    instance = received([of_pydicom("JPEG-lossy.dcm")])[0]
    assert instance.transfer_syntax_uid == JPEGExtended12Bit
    with pytest.raises(PixelError, match=r"JPEG Extended \(Process 2 and 4\) could not be decoded"):
        load(alone(instance))


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "examples_palette.dcm", "SC_rgb_jpeg_dcmd.dcm"])
def test_colour_is_no_volume(name: str) -> None:
    with pytest.raises(PixelError, match="a volume wants 1 sample"):
        load(alone(received([of_pydicom(name)])[0]))


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 4095), ("int16", -1)])
def test_monochrome1_is_inverted(dtype: str, top: int, tmp_path: Path) -> None:
    spec = SeriesSpec(bits_stored=12, extra={"PhotometricInterpretation": "MONOCHROME1"})
    voxels = noise((2, 4, 4), dtype, 12)
    inverted = loaded(save(make(spec, voxels), tmp_path))
    np.testing.assert_array_equal(inverted, top - voxels.astype(np.int32))


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_ignored(signed: bool, tmp_path: Path) -> None:
    dtype = "int16" if signed else "uint16"
    voxels = noise((2, 4, 4), dtype, 12)
    paths = save(make(SeriesSpec(bits_stored=12), voxels), tmp_path)
    for k, path in enumerate(paths):
        dirty = voxels[k].view(np.uint16) & 0x0FFF | 0xA000  # an overlay in the high bits
        set_raw(path, "PixelData", dirty.astype("<u2").tobytes(), "OW")
    np.testing.assert_array_equal(loaded(paths), voxels)


def test_one_slice_that_does_not_fit_makes_all_of_them_float(tmp_path: Path) -> None:
    voxels = np.zeros((3, 2, 2), np.uint16)
    voxels[0, 0, 0], voxels[2, 0, 0] = 7, 40_000
    volume = loaded(save(make(SeriesSpec(), voxels), tmp_path))
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, voxels)


def test_unsigned_values_that_the_intercept_brings_down_stay_small(tmp_path: Path) -> None:
    voxels = np.full((2, 2, 2), 40_000, np.uint16)
    spec = SeriesSpec(modality="CT", intercept=-32768.0, orientation=CORONAL)
    volume = loaded(save(make(spec, voxels), tmp_path))
    assert volume.dtype == np.int16
    assert np.unique(volume).tolist() == [7232]


@pytest.mark.parametrize("change", [-2, +2, +96])
def test_pixel_data_of_another_length_is_refused(change: int, tmp_path: Path) -> None:
    paths = series(tmp_path)
    content = (b"\1" * (8 * 6 * 2 + max(change, 0)))[: 8 * 6 * 2 + change]
    set_raw(paths[2], "PixelData", content, "OW")
    with pytest.raises(PixelError, match=f"holds {96 + change} bytes of pixel data"):
        loaded(paths)


def test_an_odd_length_is_padded_and_read(tmp_path: Path) -> None:
    voxels = noise((2, 3, 3), "uint8", 8)
    np.testing.assert_array_equal(loaded(save(make(SeriesSpec(), voxels), tmp_path)), voxels)


def test_a_file_cut_within_its_pixels_is_refused(tmp_path: Path) -> None:
    paths = series(tmp_path)
    content = paths[0].read_bytes()
    instances = received(paths)
    paths[0].write_bytes(content[:-10])
    with pytest.raises(PixelError, match="ends within its pixel data"):
        load(arrange(instances))


def test_an_object_without_pixels_is_refused(tmp_path: Path) -> None:
    paths = series(tmp_path)
    set_raw(paths[1], "PixelData", None)
    with pytest.raises(PixelError, match="instance number 2 has no pixel data"):
        loaded(paths)


def test_a_file_that_has_gone_is_the_spools_fault(tmp_path: Path) -> None:
    paths = series(tmp_path)
    geometry = arrange(received(paths))
    paths[1].unlink()
    with pytest.raises(SpoolError):
        load(geometry)


def compressed(directory: Path, syntax: str) -> Instance:
    dataset = make(SeriesSpec(), noise((1, 64, 64), "uint16", 12))[0]
    dataset.compress(syntax)
    return received(save([dataset], directory))[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_small_codestream_cannot_ask_for_much_memory(syntax: str, tmp_path: Path) -> None:
    instance = compressed(tmp_path, syntax)
    facts: dict[str, Fact] = {**instance.facts, "Rows": 40_000.0, "Columns": 40_000.0}
    geometry = arrange([replace(instance, facts=facts)])
    tracemalloc.start()
    try:
        with pytest.raises(PixelError):
            load(geometry)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    geometry = alone(compressed(tmp_path, JPEG2000Lossless), Rows=16.0, Columns=16.0)
    with pytest.raises(PixelError, match="codestream is 64 x 64, the header says 16 x 16"):
        load(geometry)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_broken_codestream_is_refused_and_not_a_crash(syntax: str, tmp_path: Path) -> None:
    instance = compressed(tmp_path, syntax)
    content = bytearray(instance.path.read_bytes())
    middle = len(content) - 2000
    content[middle : middle + 900] = bytes(900)
    instance.path.write_bytes(content[: middle + 1000])
    with pytest.raises(PixelError, match=r"could not be decoded|decodes to"):
        load(alone(instance))


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    instance = replace(
        compressed(tmp_path, RLELossless), transfer_syntax_uid="1.2.840.10008.1.2.4.100"
    )
    with pytest.raises(PixelError, match="no decoder is known for transfer syntax MPEG2"):
        load(alone(instance))


def test_native_pixels_under_a_compressed_syntax_are_refused(tmp_path: Path) -> None:
    instance = received(series(tmp_path, slices=1))[0]
    with pytest.raises(PixelError, match="not encapsulated"):
        load(alone(replace(instance, transfer_syntax_uid=JPEGLSLossless)))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"BitsAllocated": 12.0}, "stores 16 of 12 bits"),
        ({"BitsAllocated": 64.0}, "wanted 8, 16 or 32 bits"),
        ({"BitsStored": 12.0, "HighBit": 15.0}, "stores 12 of 16 bits below bit 15"),
        ({"RescaleSlope": 1.0}, "RescaleIntercept is None"),
        ({"Modality": "CT"}, "RescaleSlope is None"),
        ({"SamplesPerPixel": 3.0}, "3 samples per pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    ],
)
def test_pixel_headers_that_mean_nothing_are_refused(
    facts: dict[str, Fact], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PixelError, match=words):
        load(alone(received(series(tmp_path, slices=1))[0], **facts))


def test_slices_with_and_without_rescale_do_not_mix(tmp_path: Path) -> None:
    paths = series(tmp_path, SeriesSpec(slope=2.0))
    set_raw(paths[3], "RescaleSlope", None)
    set_raw(paths[3], "RescaleIntercept", None)
    with pytest.raises(PixelError, match="RescaleSlope is missing in 1 of 4 instances"):
        loaded(paths)


def test_a_modality_lookup_table_is_not_ignored(tmp_path: Path) -> None:
    paths = series(tmp_path)
    set_raw(paths[0], "ModalityLUTSequence", b"")
    with pytest.raises(PixelError, match="Modality LUT Sequence"):
        loaded(paths)


def test_loading_costs_little_more_memory_than_the_volume(tmp_path: Path) -> None:
    voxels = noise((24, 128, 128), "int16", 12)
    geometry = arrange(
        received(save(make(SeriesSpec(modality="CT", intercept=-24), voxels), tmp_path))
    )
    tracemalloc.start()
    try:
        volume = load(geometry)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < volume.voxels.nbytes + 10 * voxels[0].nbytes


def test_the_real_chest_loads_as_hounsfield_units_in_place(tmp_path: Path) -> None:
    (instances,) = real_series("ct_chest_rider", tmp_path)
    geometry = arrange(instances)
    assert geometry.grid.shape == (95, 512, 512)
    assert geometry.grid.spacing == pytest.approx((0.8, 0.644531, 0.644531), abs=1e-6)
    assert any("overlap" in note for note in geometry.notes)
    volume = load(geometry)
    assert volume.voxels.dtype == np.int16
    dataset = dcmread(geometry.instances[40].path)
    np.testing.assert_array_equal(volume.voxels[40], dataset.pixel_array.astype(int) - 1024)
    place = volume.affine @ (40, 0, 0, 1)
    np.testing.assert_allclose(
        place[:3], [float(x) for x in dataset.ImagePositionPatient], atol=1e-4
    )
