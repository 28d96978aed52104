"""What is said of a TensorRT that is missing, in part or in all, by the very packages.

Each test runs an interpreter that sees the installed packages without some of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from node.domain.errors import (
    DeviceLost,
    DeviceMemoryFull,
    InferenceError,
    RuntimeUnavailable,
)
from node.gpu.libraries import Journal, Library
from tests.places import ROOT

PACKAGES = Path(structlog.__file__).parent.parent
BINDINGS = "tensorrt_rtx_bindings"
LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
_ASK = """
from node.domain.errors import RuntimeUnavailable
from node.gpu.libraries import load_library
try:
    print(load_library({flavour}).title)
except RuntimeUnavailable as error:
    print(error)
"""


def asked(folder: Path, flavour: str | None, without: tuple[str, ...]) -> str:
    """What ``load_library`` says where some packages are not installed."""
    for path in PACKAGES.iterdir():
        if not path.name.startswith(without) and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    ended = subprocess.run(
        [sys.executable, "-S", "-c", _ASK.format(flavour=repr(flavour))],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{folder}:{ROOT}"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture(scope="module")
def rtx() -> None:
    """TensorRT-RTX is installed."""
    if not (PACKAGES / BINDINGS).exists():
        pytest.skip("TensorRT-RTX is not installed: the extra dicom-ai-node[rtx] brings it")


def test_without_both_the_sentence_names_both_extras(tmp_path: Path) -> None:
    said = asked(tmp_path, None, ("tensorrt", "onnxruntime_ep"))
    assert said.startswith("TensorRT is not installed: the extra dicom-ai-node[tensorrt]")
    assert "NVIDIA's package index" in said
    assert "TensorRT-RTX is not installed: the extra dicom-ai-node[rtx]" in said


@pytest.mark.usefixtures("rtx")
def test_without_tensorrt_the_other_flavour_is_taken(tmp_path: Path) -> None:
    said = asked(tmp_path, None, ("tensorrt-", "tensorrt_bindings", "tensorrt_libs"))
    assert said.startswith("TensorRT-RTX 1.")
    assert said.count(".") == 3


@pytest.mark.usefixtures("rtx")
def test_bindings_without_their_libraries_say_which_file_is_missing(tmp_path: Path) -> None:
    said = asked(tmp_path, "tensorrt_rtx", (LIBRARIES,))
    assert said.startswith("TensorRT-RTX has its Python bindings here but not its libraries")
    assert "libtensorrt_rtx.so.1" in said
    assert "the extra dicom-ai-node[rtx] brings it" in said


@pytest.mark.usefixtures("rtx")
def test_libraries_without_their_bindings_are_no_tensorrt(tmp_path: Path) -> None:
    said = asked(tmp_path, "tensorrt_rtx", (BINDINGS,))
    assert said == "TensorRT-RTX is not installed: the extra dicom-ai-node[rtx] brings it"


def test_old_tensorrt_is_refused_with_the_version_that_is_needed(tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text('__version__ = "8.5.3.1"\n')
    said = asked(tmp_path, "tensorrt", ())
    assert said.startswith("TensorRT 8.5.3.1 is too old, 10.3 or newer is needed")


_IMPORT_ALL = """
import importlib, pkgutil, sys
import node.gpu, node.runtimes
for package in (node.gpu, node.runtimes):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
forbidden = ("tensorrt", "pycuda", "cuda", "nvidia", "torch")
print(sorted(name for name in sys.modules if name.startswith(forbidden)))
"""


def test_nothing_of_nvidia_is_imported_with_the_node() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout.strip() == "[]"


def test_journal_keeps_faults_apart_and_facts_as_numbers() -> None:
    journal = Journal()
    journal.note("INFO", "Total Activation Memory: 940 bytes")
    journal.note("INFO", "Input filename: model.onnx")
    journal.note("WARNING", "getHardwareCompatibilityLevel() is unsupported")
    for _ in range(2):
        journal.note(
            "ERROR", "[a.cpp::check::250] Error Code 1: Cuda Runtime (In f at /b.cpp:25 x)"
        )
    journal.note("INTERNAL_ERROR", "Thread context has not been set! Using global log stream.")
    assert journal.facts == {"Total Activation Memory": 940}
    assert journal.warnings() == ("getHardwareCompatibilityLevel() is unsupported",)
    assert journal.faults() == ("Error Code 1: Cuda Runtime (x)",)
    journal.clear()
    assert not journal.facts
    assert not journal.faults()


_FAULTS: dict[str, tuple[type[InferenceError], str]] = {
    "Error Code 1: Cuda Runtime (In f at /x.cpp:25 (cudaError 35: CUDA driver version is "
    "insufficient for CUDA runtime version))": (RuntimeUnavailable, "no usable NVIDIA driver"),
    "The engine cannot run on this GPU, which has compute capability 9.0. TensorRT-RTX does not "
    "support this compute capability": (RuntimeUnavailable, "does not support this GPU"),
    "[m.cpp::resizePhysical::154] Error Code 2: OutOfMemory (no further information)": (
        DeviceMemoryFull,
        "OutOfMemory",
    ),
    "Error Code 1: Cuda Runtime (an illegal memory access was encountered)": (
        DeviceLost,
        "has to be started again",
    ),
    "Error Code 1: Cuda Runtime (In f at /x.cpp:25 (cudaError 719: unspecified))": (
        DeviceLost,
        "started again",
    ),
    "Error Code 1: Serialization (magic)": (InferenceError, "Serialization"),
}
"""A line of the library's log: the error that it becomes, and words of that."""


@pytest.mark.parametrize("line", _FAULTS)
def test_what_the_library_says_decides_the_error(line: str) -> None:
    journal = Journal()
    journal.note("ERROR", line)
    error = Library("tensorrt", "11.4.0.106", None, None, journal).failure("loading a plan")
    kind, words = _FAULTS[line]
    assert type(error) is kind
    assert words in str(error)
    assert "TensorRT 11.4.0.106" in str(error)


def test_null_pointer_of_a_constructor_is_want_of_a_driver() -> None:
    library = Library("tensorrt", "11.4.0.106", None, None, Journal())
    with (
        pytest.raises(RuntimeUnavailable, match="no usable NVIDIA driver"),
        library.calls("starting"),
    ):
        raise TypeError("pybind11::init(): factory function returned nullptr")
    with pytest.raises(TypeError, match="incompatible"), library.calls("starting"):
        raise TypeError("incompatible function arguments")


def test_gpu_that_rtx_does_not_support_is_referred_to_the_other_flavour() -> None:
    journal = Journal()
    journal.note("ERROR", "TensorRT-RTX does not support this compute capability")
    error = Library("tensorrt_rtx", "1.7.1.116", None, None, journal).failure("loading a plan")
    assert "TensorRT may, and the extra dicom-ai-node[tensorrt] brings it" in str(error)
