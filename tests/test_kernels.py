"""The kernels as shipped: NVRTC compiles them, without a GPU, for every device that it knows."""

from __future__ import annotations

import os
import re
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.gpu import kernels
from node.gpu.kernels import Nvrtc
from tests.hosted.device import names
from tests.places import ROOT

UNKNOWN = "sm_9990"
"""A device of the future: its kernels are PTX, which is compiled fastest."""


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    """The compiler, or the reason why there is none."""
    try:
        return kernels.find()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("number", [75, 80, 86, 89, 90, 120])
def test_kernels_compile_for_every_generation_of_devices(nvrtc: Nvrtc, number: int) -> None:
    if number not in nvrtc.architectures:
        pytest.skip(f"{nvrtc.words} knows no compute capability {number / 10}")
    cubin = nvrtc.compile(kernels.source(), f"sm_{number}")
    assert cubin.startswith(b"\x7fELF")
    sections = {name.decode() for name in re.findall(rb"\x00\.text\.(\w+)", cubin)}
    assert set(names()) <= sections


def test_ptx_has_every_entry_point_and_nothing_whose_order_is_open(nvrtc: Nvrtc) -> None:
    ptx = nvrtc.compile(kernels.source(), f"compute_{nvrtc.architectures[-1]}").decode()
    assert kernels.entry_points(ptx) == names()
    assert not re.search(r"\b(atom|red)\.", ptx)
    # Sums that need no exponential are fused nowhere: they round as the processor's.
    for plain in ("weigh", "blend_air", "label"):
        assert "fma." not in body(ptx, plain)
    assert "mul.rn.f32" in body(ptx, "blend_float32")


def body(ptx: str, name: str) -> str:
    """One kernel's instructions."""
    start = ptx.index(f".entry {name}(")
    return ptx[start : ptx.index("\n}", start)]


def test_kernels_are_compiled_once_and_kept_for_our_own_eyes(nvrtc: Nvrtc, tmp_path: Path) -> None:
    folder = tmp_path / "plans" / "kernels"
    made = kernels.image(UNKNOWN, folder, nvrtc)
    (kept,) = folder.iterdir()
    before = kept.stat()
    assert kernels.image(UNKNOWN, folder, nvrtc) == made
    assert [path.stat().st_ino for path in folder.iterdir()] == [before.st_ino]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert before.st_mode & 0o777 == 0o600


def test_damaged_kernels_are_not_run_but_compiled_again(nvrtc: Nvrtc, tmp_path: Path) -> None:
    made = kernels.image(UNKNOWN, tmp_path, nvrtc)
    (kept,) = tmp_path.iterdir()
    for damage in (b"", kept.read_bytes()[:-1] + b"?"):
        kept.write_bytes(damage)
        assert kernels.image(UNKNOWN, tmp_path, nvrtc) == made
        assert kept.read_bytes()[32:] == made


def test_a_folder_that_cannot_be_used_costs_time_and_nothing_else(
    nvrtc: Nvrtc, tmp_path: Path
) -> None:
    (tmp_path / "plans").write_text("a file")
    made = kernels.image(UNKNOWN, tmp_path / "plans" / "kernels", nvrtc)
    assert made == kernels.image(UNKNOWN, nvrtc=nvrtc)


def test_another_compiler_or_device_gets_kernels_of_its_own(nvrtc: Nvrtc, tmp_path: Path) -> None:
    kernels.image(UNKNOWN, tmp_path, nvrtc)
    kernels.image(f"sm_{nvrtc.architectures[0]}", tmp_path, nvrtc)
    kernels.image(UNKNOWN, tmp_path, replace(nvrtc, version=(0, 1)))
    assert len(os.listdir(tmp_path)) == 3


def test_a_device_newer_than_the_compiler_gets_ptx(nvrtc: Nvrtc) -> None:
    newest = nvrtc.architectures[-1]
    assert nvrtc.suited(UNKNOWN) == f"compute_{newest}"
    assert b".entry clear(" in kernels.image(UNKNOWN, nvrtc=nvrtc)
    assert nvrtc.suited(f"sm_{newest}") == f"sm_{newest}"


def test_a_device_older_than_the_compiler_is_refused_in_words(nvrtc: Nvrtc) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"and newer, this GPU has 3\.5: install an older"):
        nvrtc.suited("sm_35")


def test_a_missing_compiler_is_told_with_the_package_that_brings_it(tmp_path: Path) -> None:
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"no library")
    for places in ((), (broken, tmp_path / "libnvrtc.so.12")):
        with pytest.raises(RuntimeUnavailable, match="nvidia-cuda-nvrtc.*dicom-ai-node.tensorrt"):
            kernels.find(places)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any("nvidia-cuda-nvrtc" in one for one in extras["optional-dependencies"]["tensorrt"])


def test_a_library_that_is_no_compiler_is_passed_over() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"libc\.so\.6: .*nvrtc"):
        kernels.find((Path("libc.so.6"),))


def test_what_does_not_compile_is_told_in_the_compilers_words(nvrtc: Nvrtc) -> None:
    with pytest.raises(InferenceError, match=r"(?s)do not compile for compute_\d+: .*undefined"):
        nvrtc.compile("int x = undefined;", f"compute_{nvrtc.architectures[0]}")


def test_kernels_need_no_header_and_no_character_beyond_ascii() -> None:
    text = kernels.source()
    assert text.isascii()
    assert "#include" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_wheel_brings_the_kernels_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("hatchling.build", reason="hatchling is missing")
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / backend.build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("node/gpu/kernels.cu").decode()
    wheel.unlink()
    assert shipped == kernels.source()
