"""The unit: systemd itself says whether it is sound and how much it lets through."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from node.cli.service import unit_text
from node.shipped import folder
from tests.places import tool

THRESHOLD = 15
"""Highest exposure level in tenths: network is needed, and nothing else is open."""


@pytest.fixture
def analyze() -> str:
    """systemd-analyze, where systemd is installed."""
    return tool("systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here, as an installation writes it."""
    program = tmp_path / "ai-node"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    path = tmp_path / "ai-node.service"
    path.write_text(unit_text(str(program)), encoding="utf-8")
    return path


def directives() -> dict[str, list[str]]:
    """Every directive of the shipped unit with its values."""
    text = (folder("systemd") / "ai-node.service").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_systemd_finds_the_unit_sound(analyze: str, unit: Path) -> None:
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if "ai-node" in line]
    assert (done.returncode, told) == (0, [])


def test_an_unknown_directive_would_be_noticed(analyze: str, unit: Path) -> None:
    unit.write_text(unit.read_text().replace("UMask=", "UMusk="), encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert "UMusk" in done.stderr


def test_the_unit_leaves_little_exposed(analyze: str, unit: Path) -> None:
    command = [analyze, "security", "--offline=true", f"--threshold={THRESHOLD}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("WatchdogSec", "30"),
        ("Restart", "always"),
        ("StateDirectory", "ai-node"),
        ("DynamicUser", "yes"),
        ("StartLimitIntervalSec", "0"),
        ("Environment", "ORT_DISABLE_TELEMETRY=1"),
    ],
)
def test_the_unit_says_what_the_node_relies_on(directive: str, value: str) -> None:
    assert directives()[directive] == [value]


def test_a_wrong_configuration_is_told_before_the_start() -> None:
    (before,) = directives()["ExecStartPre"]
    (start,) = directives()["ExecStart"]
    assert before == start.replace(" run ", " check ")
