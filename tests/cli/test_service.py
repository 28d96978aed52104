"""``service install`` and ``service uninstall``, under another root folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.service import Places
from node.config import load
from tests.cli.conftest import Said

AiNode = Callable[..., Said]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Where the files go when ``--root`` is a folder of the test."""
    return Places(tmp_path)


def test_install_writes_the_unit_and_a_configuration(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--root", places.root)
    assert said.code == 0
    assert f"wrote {places.unit}" in said.out
    assert load(places.configuration).node.state == Path("/var/lib/ai-node")


def test_the_installed_unit_starts_the_installed_program(ai_node: AiNode, places: Places) -> None:
    ai_node("service", "install", "--root", places.root)
    (start,) = [
        line for line in places.unit.read_text().splitlines() if line.startswith("ExecStart=")
    ]
    program, arguments = start.removeprefix("ExecStart=").split(" run ")
    assert Path(program.split()[0]).exists()
    assert arguments == "--config /etc/ai-node/node.toml"


def test_install_keeps_a_configuration(ai_node: AiNode, places: Places) -> None:
    places.configuration.parent.mkdir(parents=True)
    places.configuration.write_text("mine", encoding="utf-8")
    assert (
        f"kept {places.configuration}" in ai_node("service", "install", "--root", places.root).out
    )
    assert places.configuration.read_text(encoding="utf-8") == "mine"


def test_install_twice_is_harmless(ai_node: AiNode, places: Places) -> None:
    ai_node("service", "install", "--root", places.root)
    before = places.unit.read_text(encoding="utf-8")
    assert ai_node("service", "install", "--root", places.root).code == 0
    assert places.unit.read_text(encoding="utf-8") == before


def test_another_root_never_reaches_systemctl(ai_node: AiNode, places: Places) -> None:
    assert not places.live
    said = ai_node("service", "install", "--root", places.root)
    assert "not run here: systemctl daemon-reload" in said.out


def test_a_dry_run_writes_nothing(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "install", "--root", places.root, "--dry-run")
    assert f"would write {places.unit}" in said.out
    assert f"would write {places.configuration}" in said.out
    assert list(places.root.iterdir()) == []


def test_uninstall_removes_the_unit_only(ai_node: AiNode, places: Places) -> None:
    ai_node("service", "install", "--root", places.root)
    assert f"would remove {places.unit}" in ai_node(
        "service", "uninstall", "--root", places.root, "--dry-run"
    ).out  # fmt: skip
    assert places.unit.exists()
    said = ai_node("service", "uninstall", "--root", places.root)
    assert f"removed {places.unit}" in said.out
    assert not places.unit.exists()
    assert places.configuration.exists()


def test_uninstall_of_nothing_says_so(ai_node: AiNode, places: Places) -> None:
    said = ai_node("service", "uninstall", "--root", places.root)
    assert (said.code, said.out.strip()) == (0, f"{places.unit} is not there; nothing to remove")
