"""``service install`` and ``service uninstall``, under another root folder."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.service import NETWORKED, PARTS, UNIT, Places, hidden
from node.config import load
from tests.cli.conftest import Said

AiNode = Callable[..., Said]

FORMS = [(), ("--parts",), ("--parts", "--gpu"), ("--tls",), ("--parts", "--tls")]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Where the files go when ``--root`` is a folder of the test."""
    return Places(tmp_path)


def files(places: Places) -> set[Path]:
    return {path for path in places.root.rglob("*") if path.is_file()}


def test_install_writes_the_unit_and_a_configuration(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--root", places.root)
    assert said.code == 0
    assert f"wrote {places.unit}" in said.out
    assert load(places.configuration).node.state == Path("/var/lib/ai-node")
    assert files(places) == {places.unit, places.configuration, places.user, places.folders}


def test_install_in_parts_writes_a_unit_for_each(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--parts", "--root", places.root)
    assert said.code == 0
    written = {path.name for path in files(places) if path.parent == places.unit.parent}
    assert written == set(PARTS)
    assert "systemctl enable --now ai-node.target ai-node-worker@worker\n" in said.out
    assert "systemctl edit ai-node-receiver.service ai-node-gateway.service" in said.out


def test_a_node_with_a_gpu_enables_the_worker_on_it(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--parts", "--gpu", "--root", places.root)
    assert "systemctl enable --now ai-node.target ai-node-worker-gpu@0\n" in said.out


def test_a_single_service_has_no_gpu(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--gpu", "--root", places.root)
    assert (said.code, files(places)) == (1, set())
    assert "--gpu needs --parts" in said.err


@pytest.mark.parametrize(("form", "units"), [((), [UNIT]), (("--parts",), [*NETWORKED])])
def test_the_key_of_tls_stays_roots_where_a_certificate_is_shown(
    ai_node: AiNode, places: Places, form: tuple[str, ...], units: list[str]
) -> None:
    said = ai_node("service", "install", *form, "--tls", "--root", places.root)
    drop_ins = {path for path in files(places) if path.name == "tls.conf"}
    assert drop_ins == {places.tls(unit) for unit in units}
    assert "/etc/ai-node/tls/node.key" in said.out


@pytest.mark.parametrize("form", [(), ("--parts",)])
def test_the_installed_units_start_the_installed_program(
    ai_node: AiNode, places: Places, form: tuple[str, ...]
) -> None:
    ai_node("service", "install", *form, "--root", places.root)
    starts = [
        line
        for unit in places.unit.parent.glob("*.service")
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    assert starts
    for start in starts:
        program, arguments = start.removeprefix("ExecStart=").split(" run ")
        assert Path(program.split()[0]).exists()
        assert arguments.startswith("--config /etc/ai-node/node.toml")


@pytest.mark.parametrize("form", FORMS)
def test_install_says_every_file_that_it_writes(
    ai_node: AiNode, places: Places, form: tuple[str, ...]
) -> None:
    said = ai_node("service", "install", *form, "--root", places.root)
    wrote = {
        Path(line.removeprefix("wrote "))
        for line in said.out.splitlines()
        if line.startswith("wrote ")
    }
    assert wrote == files(places)


def test_what_is_installed_can_be_read_by_the_service(ai_node: AiNode, places: Places) -> None:
    ai_node("service", "install", "--root", places.root)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(places)} == {0o644}


def test_install_keeps_a_configuration(ai_node: AiNode, places: Places) -> None:
    places.configuration.parent.mkdir(parents=True)
    places.configuration.write_text("mine", encoding="utf-8")
    assert (
        f"kept {places.configuration}" in ai_node("service", "install", "--root", places.root).out
    )
    assert places.configuration.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("form", FORMS)
def test_install_twice_is_harmless(ai_node: AiNode, places: Places, form: tuple[str, ...]) -> None:
    ai_node("service", "install", *form, "--root", places.root)
    before = {path: path.read_bytes() for path in files(places)}
    assert ai_node("service", "install", *form, "--root", places.root).code == 0
    assert {path: path.read_bytes() for path in files(places)} == before


@pytest.mark.parametrize(("first", "second"), [((), ("--parts",)), (("--parts",), ())])
def test_the_two_forms_are_not_installed_together(
    ai_node: AiNode, places: Places, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    ai_node("service", "install", *first, "--root", places.root)
    before = files(places)
    said = ai_node("service", "install", *second, "--root", places.root)
    assert (said.code, files(places)) == (1, before)
    assert "ai-node service uninstall" in said.err


def test_another_root_reaches_no_program_of_the_system(ai_node: AiNode, places: Places) -> None:
    assert not places.live
    said = ai_node("service", "install", "--root", places.root)
    assert f"not run here: systemd-sysusers {places.user}" in said.out
    assert f"not run here: systemd-tmpfiles --create {places.folders}" in said.out
    assert "not run here: systemctl daemon-reload" in said.out


@pytest.mark.parametrize("form", FORMS)
def test_a_dry_run_says_what_would_be_written_and_writes_nothing(
    ai_node: AiNode, places: Places, form: tuple[str, ...]
) -> None:
    would = ai_node("service", "install", *form, "--root", places.root, "--dry-run").out
    assert list(places.root.iterdir()) == []
    ai_node("service", "install", *form, "--root", places.root)
    assert set(would.splitlines()) == {f"would write {path}" for path in files(places)}


@pytest.mark.parametrize("form", FORMS)
def test_uninstall_removes_all_but_the_configuration(
    ai_node: AiNode, places: Places, form: tuple[str, ...]
) -> None:
    ai_node("service", "install", *form, "--root", places.root)
    before = files(places)
    would = ai_node("service", "uninstall", "--root", places.root, "--dry-run").out
    assert files(places) == before
    said = ai_node("service", "uninstall", "--root", places.root).out
    assert files(places) == {places.configuration}
    removed = before - {places.configuration}
    assert {line for line in said.splitlines() if line.startswith("removed ")} == {
        f"removed {path}" for path in removed
    }
    assert set(would.splitlines()) == {f"would remove {path}" for path in removed}
    assert not list(places.unit.parent.glob("*.d"))


def test_uninstall_stops_every_instance_and_disables_every_template(
    ai_node: AiNode, places: Places
) -> None:
    ai_node("service", "install", "--parts", "--root", places.root)
    said = ai_node("service", "uninstall", "--root", places.root).out
    stopped, disabled = said.splitlines()[:2]
    assert stopped.startswith("not run here: systemctl stop ai-node.target ")
    assert stopped.endswith("ai-node-worker@*.service ai-node-worker-gpu@*.service")
    assert disabled == f"not run here: systemctl disable {' '.join(PARTS)}"


def test_uninstall_keeps_drop_ins_of_others(ai_node: AiNode, places: Places) -> None:
    ai_node("service", "install", "--tls", "--root", places.root)
    theirs = places.tls(UNIT).with_name("override.conf")
    theirs.write_text("[Service]\n", encoding="utf-8")
    said = ai_node("service", "uninstall", "--root", places.root).out
    assert f"kept {theirs.parent}, where other drop-ins are" in said
    assert files(places) == {places.configuration, theirs}


def test_uninstall_of_nothing_says_so(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "uninstall", "--root", places.root)
    assert said.code == 0
    assert said.out.strip().endswith("nothing to remove")


def test_what_cannot_be_written_is_said_in_words(ai_node: AiNode, tmp_path: Path) -> None:
    blocked = tmp_path / "root"
    blocked.write_text("a file, where a folder should be", encoding="utf-8")
    said = ai_node("service", "install", "--root", blocked)
    assert said.code == 1
    assert "Not a directory" in said.err


def test_programs_that_the_units_hide_are_noticed() -> None:
    seen, unseen = Path("/opt/ai-node/bin/ai-node"), Path("/root/.pyenv/bin/python3.11")
    assert hidden(seen, unseen) == {unseen: "/root"}
