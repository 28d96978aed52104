"""What is found of a driver and its devices, good, broken or absent.

The driver here is a library of a few functions compiled for the test: it stands for states of the
real one that no machine can be brought into at will.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from node.domain.errors import RuntimeUnavailable
from node.gpu.cuda import kernel_driver, open_device
from node.gpu.device import Card
from node.gpu.probing import Probe, understood
from tests.places import tool

_DRIVER = """
#include <string.h>
#include <unistd.h>
#include <stdlib.h>
int cuInit(unsigned flags) { if (HANG) for (;;) pause(); if (CRASH) abort(); return CODE; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA Pretence", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = 24UL << 30; return 0; }
int cuGetErrorString(int c, const char **s) { *s = "no such luck"; return 0; }
"""
_ASK = """
import dataclasses, json, sys
from node.gpu.probing import probe
print(json.dumps(dataclasses.asdict(probe(patience=float(sys.argv[1])))))
"""


def probed(folder: Path, patience: float = 60.0, **state: int) -> Mapping[str, object]:
    """What ``probe`` finds with a driver in this state."""
    source = folder / "driver.c"
    source.write_text(_DRIVER)
    values = {"HANG": 0, "CRASH": 0, "CODE": 0, "COUNT": 1} | state
    defines = [f"-D{name}={value}" for name, value in values.items()]
    compiler = tool("gcc") if shutil.which("gcc") is None else "gcc"
    library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{folder}/libcuda.so.1"]
    subprocess.run([compiler, *defines, *library, str(source)], check=True)
    ended = subprocess.run(
        [sys.executable, "-c", _ASK, str(patience)],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.fixture(autouse=True)
def compiler() -> None:
    """Where the driver of a test is made."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


def missing(found: Mapping[str, object]) -> str:
    """The first sentence."""
    sentences = found["missing"]
    assert isinstance(sentences, list)
    return str(sentences[0])


def test_driver_that_hangs_is_waited_for_no_longer_than_allowed(tmp_path: Path) -> None:
    found = probed(tmp_path, patience=5.0, HANG=1)
    assert found["runs"] is None
    assert missing(found).startswith("asking the NVIDIA driver did not answer within 5 s")


def test_driver_that_crashes_takes_nobody_with_it(tmp_path: Path) -> None:
    found = probed(tmp_path, CRASH=1)
    assert missing(found).startswith("asking the NVIDIA driver ended with -6")


def test_driver_that_fails_is_cited(tmp_path: Path) -> None:
    found = probed(tmp_path, CODE=803)
    assert missing(found).startswith("no usable NVIDIA driver (CUDA error 803: no such luck)")


def test_driver_without_a_device_says_so(tmp_path: Path) -> None:
    found = probed(tmp_path, COUNT=0)
    assert "sees no GPU" in missing(found)
    assert "CUDA 13.0" in str(found["driver"])


def test_devices_are_told_without_pycuda(tmp_path: Path) -> None:
    found = probed(tmp_path, COUNT=2)
    devices = found["devices"]
    assert isinstance(devices, list)
    assert [one["index"] for one in devices] == [0, 1]
    assert devices[0]["name"] == "NVIDIA Pretence"
    assert devices[0]["capability"] == [8, 9]
    assert devices[0]["memory"] == 24 << 30


def test_absence_of_one_library_matters_least() -> None:
    found = understood(
        [
            json.dumps({"absent": "TensorRT is not installed: ..."}),
            json.dumps({"library": "tensorrt_rtx", "version": "1.7.1.116"}),
            "a line that a library printed",
            json.dumps({"absent": "no usable NVIDIA driver: ..."}),
        ]
    )
    assert found.reason == "no usable NVIDIA driver: ..."
    assert found.missing[-1].startswith("TensorRT is not installed")
    assert found.version() == ""


def test_library_that_runs_leaves_no_reason() -> None:
    card = {"index": 0, "name": "x", "capability": [9, 0], "driver": "y", "memory": 1}
    lines = [
        {"absent": "TensorRT is not installed: ..."},
        {"library": "tensorrt_rtx", "version": "1.7.1.116"},
        {"driver": "y"},
        {"device": card},
        {"pycuda": "2026.1"},
        {"runs": "tensorrt_rtx"},
    ]
    found = understood([json.dumps(line) for line in lines])
    assert found.reason == ""
    assert found.version() == "TensorRT-RTX 1.7.1.116"
    assert found.devices == (Card(0, "x", (9, 0), "y", 1),)


def test_nothing_told_is_a_reason_too() -> None:
    assert isinstance(understood([]), Probe)
    assert understood([]).reason
    assert "starting ended with 1" in understood([], "ended with 1").reason


def test_version_of_the_driver_is_read_from_its_kernel_module(tmp_path: Path) -> None:
    told = tmp_path / "version"
    told.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    assert kernel_driver(told) == "580.159.04"
    assert kernel_driver(tmp_path / "absent") == ""


def test_device_cannot_be_opened_without_pycuda_or_driver() -> None:
    try:
        open_device(99)
    except RuntimeUnavailable as error:
        words = ("pycuda cannot be used", "libcuda.so.1 is missing", "no usable", "no GPU number")
        assert str(error).startswith(words) or "no GPU number 99" in str(error)
    else:
        pytest.fail("there is no GPU number 99")
