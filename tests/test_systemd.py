"""The units: systemd itself says whether they are sound and how much they let through."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.service import GPU_WORKER, NETWORKED, PARTS, TARGET, UNIT, WORKER, shipped, unit_text
from node.parts import PARTS as KNOWN_PARTS
from tests.confined import directives
from tests.places import tool

RECEIVER, GATEWAY = NETWORKED
UNITS = (UNIT, *PARTS)
SERVICES = tuple(unit for unit in UNITS if unit != TARGET)

THRESHOLDS = {UNIT: 15, RECEIVER: 10, GATEWAY: 10, GPU_WORKER: 7, WORKER: 2}
"""Highest exposure level in tenths, of 100."""

DIFFERING = {
    # Whom a part talks to.
    "PrivateNetwork", "RestrictAddressFamilies", "IPAddressDeny", "IPAddressAllow",
    # What only a GPU needs.
    "PrivateDevices", "DeviceAllow", "PrivateUsers", "MemoryDenyWriteExecute", "SystemCallFilter",
    # ONNX Runtime and the driver read /proc.
    "ProcSubset",
}  # fmt: skip


@pytest.fixture
def analyze() -> str:
    """systemd-analyze, where systemd is installed."""
    return tool("systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in one folder with a program that exists here, as an installation writes them."""
    program = tmp_path / "ai-node"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in UNITS:
        (folder / unit).write_text(unit_text(unit, str(program)), encoding="utf-8")
    return folder


@pytest.fixture
def verify(analyze: str) -> Callable[[Path], list[str]]:
    """What systemd finds wrong with a unit of ours."""

    def found(unit: Path) -> list[str]:
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
        told = [line for line in done.stderr.splitlines() if "ai-node" in line]
        return told or [f"exit code {done.returncode}"] * bool(done.returncode)

    return found


def exposed(analyze: str, unit: Path, tenths: int) -> subprocess.CompletedProcess[str]:
    """systemd's judgement of a unit; exit code 0 when it is not over the threshold."""
    command = [analyze, "security", "--offline=true", f"--threshold={tenths}", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shipped_directives(unit: str) -> dict[str, list[str]]:
    return directives(shipped(unit))


def box(unit: str) -> dict[str, list[str]]:
    """What a unit forbids, without what the parts differ in."""
    prefixes = ("Protect", "Private", "Restrict", "SystemCall", "Capability", "Ambient")
    others = ("User", "Group", "StateDirectory", "UMask", "NoNewPrivileges", "LockPersonality",
              "KeyringMode", "RemoveIPC", "DevicePolicy", "LimitCORE", "MemorySwapMax")  # fmt: skip
    return {
        key: values
        for key, values in shipped_directives(unit).items()
        if (key.startswith(prefixes) or key in others) and key not in DIFFERING
    }


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_the_unit_sound(
    verify: Callable[[Path], list[str]], units: Path, unit: str
) -> None:
    assert verify(units / unit) == []


def test_an_unknown_directive_would_be_noticed(
    verify: Callable[[Path], list[str]], units: Path
) -> None:
    unit = units / RECEIVER
    unit.write_text(unit.read_text().replace("UMask=", "UMusk="), encoding="utf-8")
    assert "UMusk" in "".join(verify(unit))


@pytest.mark.parametrize(("unit", "tenths"), THRESHOLDS.items())
def test_the_unit_leaves_little_exposed(analyze: str, units: Path, unit: str, tenths: int) -> None:
    done = exposed(analyze, units / unit, tenths)
    assert done.returncode == 0, done.stdout


def test_a_unit_that_leaves_more_exposed_would_be_noticed(analyze: str, units: Path) -> None:
    unit = units / WORKER
    unit.write_text(unit.read_text().replace("PrivateNetwork=yes", ""), encoding="utf-8")
    assert exposed(analyze, unit, THRESHOLDS[WORKER]).returncode == 1


@pytest.mark.parametrize("unit", [UNIT, *NETWORKED])
def test_a_unit_stays_sound_when_the_key_is_roots(
    verify: Callable[[Path], list[str]], analyze: str, units: Path, unit: str
) -> None:
    drop_in = units / f"{unit}.d" / "tls.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(shipped("tls.conf"), encoding="utf-8")
    assert verify(units / unit) == []
    assert exposed(analyze, units / unit, THRESHOLDS[unit]).returncode == 0


def test_the_key_is_seen_where_it_lies() -> None:
    drop_in = shipped_directives("tls.conf")
    name, _, kept = drop_in["LoadCredential"][0].partition(":")
    assert drop_in["BindReadOnlyPaths"] == [f"%d/{name}:{kept}"]


@pytest.mark.parametrize("unit", SERVICES)
@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("Restart", "always"),
        ("StateDirectory", "ai-node"),
        ("User", "ai-node"),
        ("StartLimitIntervalSec", "0"),
        ("OOMPolicy", "continue"),
    ],
)
def test_the_unit_says_what_the_node_relies_on(unit: str, directive: str, value: str) -> None:
    assert shipped_directives(unit)[directive] == [value]


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_is_watched(unit: str) -> None:
    (seconds,) = shipped_directives(unit)["WatchdogSec"]
    assert 0 < int(seconds) <= 60


@pytest.mark.parametrize("unit", [UNIT, WORKER, GPU_WORKER])
def test_onnx_runtime_reports_to_nobody(unit: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in shipped_directives(unit)["Environment"]


@pytest.mark.parametrize("unit", [UNIT, GATEWAY, WORKER, GPU_WORKER])
def test_a_wrong_configuration_is_told_before_the_start(unit: str) -> None:
    found = shipped_directives(unit)
    before = found["ExecStartPre"][-1]
    (start,) = found["ExecStart"]
    assert before == start.partition(" --only ")[0].replace(" run ", " check ")


def test_the_receiver_opens_whatever_is_wrong_with_an_engine() -> None:
    assert "ExecStartPre" not in shipped_directives(RECEIVER)


def test_every_part_has_a_unit() -> None:
    started = {
        words[words.index("--only") + 1]
        for unit in SERVICES
        for words in [shipped_directives(unit)["ExecStart"][0].split()]
        if "--only" in words
    }
    assert started == set(KNOWN_PARTS)


@pytest.mark.parametrize("unit", [WORKER, GPU_WORKER])
def test_a_worker_has_no_network_and_a_name_of_its_own(unit: str) -> None:
    found = shipped_directives(unit)
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    (start,) = found["ExecStart"]
    assert start.split(" --worker ")[1].endswith("%i")


def test_a_gpu_worker_sees_its_own_gpu_only() -> None:
    found = shipped_directives(GPU_WORKER)
    gpus = [
        device for device in found["DeviceAllow"] if device[len("/dev/nvidia")] in "%0123456789"
    ]
    assert gpus == ["/dev/nvidia%i rw"]
    assert found["DevicePolicy"] == ["closed"]


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if unit != UNIT])
def test_every_part_is_in_the_same_box(unit: str) -> None:
    assert box(unit) == box(UNIT)


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if unit != GPU_WORKER])
def test_only_the_gpu_worker_may_do_more(unit: str) -> None:
    keys = ("PrivateDevices", "PrivateUsers", "MemoryDenyWriteExecute", "SystemCallFilter")
    assert {key: shipped_directives(unit)[key] for key in keys} == {
        key: shipped_directives(UNIT)[key] for key in keys
    }


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if unit != UNIT])
def test_the_target_stops_every_part_and_starts_what_is_enabled(unit: str) -> None:
    found = shipped_directives(unit)
    assert (found["PartOf"], found["WantedBy"]) == ([TARGET], [TARGET])


def test_the_two_forms_never_run_together() -> None:
    assert shipped_directives(TARGET)["Conflicts"] == [UNIT]


@pytest.fixture
def installed(units: Path, tmp_path: Path) -> Path:
    """A root folder with the units, where systemctl works without a running systemd."""
    root = tmp_path / "root"
    folder = root / "etc/systemd/system"
    folder.parent.mkdir(parents=True)
    units.rename(folder)
    return root


def links(root: Path) -> set[str]:
    folder = root / "etc/systemd/system"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()}


def systemctl(root: Path, *arguments: str) -> None:
    command = [tool("systemctl"), f"--root={root}", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_enabling_the_target_and_a_worker_enables_the_node(installed: Path) -> None:
    systemctl(installed, "enable", TARGET, "ai-node-worker@worker")
    assert links(installed) == {
        f"multi-user.target.wants/{TARGET}",
        f"{TARGET}.wants/{RECEIVER}",
        f"{TARGET}.wants/{GATEWAY}",
        f"{TARGET}.wants/ai-node-worker@worker.service",
    }


def test_disabling_the_templates_disables_every_worker(installed: Path) -> None:
    systemctl(installed, "enable", TARGET, "ai-node-worker@a", "ai-node-worker-gpu@0")
    systemctl(installed, "disable", *PARTS)
    assert links(installed) == set()


def test_the_user_is_made_without_a_shell(tmp_path: Path) -> None:
    snippet = tmp_path / "etc/sysusers.d/ai-node.conf"
    snippet.parent.mkdir(parents=True)
    snippet.write_text(shipped("sysusers.conf"), encoding="utf-8")
    command = [tool("systemd-sysusers"), f"--root={tmp_path}", "--dry-run", snippet.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-sysusers is too old for --dry-run")
    assert done.returncode == 0, done.stderr
    assert "ai-node" in done.stderr
    assert "sh" not in shipped("sysusers.conf").splitlines()[-1].split()


def test_only_the_node_sees_its_state(tmp_path: Path) -> None:
    rows = [line.split() for line in shipped("tmpfiles.conf").splitlines() if line[:1] == "d"]
    modes = {path: (mode, user, group) for _, path, mode, user, group, _ in rows}
    assert modes["/var/lib/ai-node"] == ("0700", "ai-node", "ai-node")
    assert modes["/etc/ai-node/tls"] == ("0750", "root", "ai-node")
