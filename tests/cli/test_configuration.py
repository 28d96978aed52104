"""``check``, ``init`` and ``schema``."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from node.config import load
from tests.acceptance.hospital import Plan, tiny_engine
from tests.cli.conftest import Said

AiNode = Callable[..., Said]


def test_the_configuration_that_init_writes_passes_check(ai_node: AiNode, tmp_path: Path) -> None:
    assert ai_node("init", tmp_path / "d").code == 0
    said = ai_node("check", "--config", tmp_path / "d/node.toml")
    assert (said.code, said.err) == (0, "")
    assert "sound. AINODE on port 11112, peers: 1, engines: mr-brain-lesion" in said.out


def test_init_fills_in_the_answers(ai_node: AiNode, tmp_path: Path) -> None:
    ai_node(
        "init", tmp_path, "--ae-title", "BRAIN", "--port", 10400,
        "--pacs", "archive, ORTHANC, pacs.example, 4242", "--state", "/srv/ai",
    )  # fmt: skip
    config = load(tmp_path / "node.toml")
    assert (config.node.ae_title, config.scp.port, config.node.state) == (
        "BRAIN", 10400, Path("/srv/ai"),
    )  # fmt: skip
    (peer,) = config.peers
    assert (peer.name, peer.ae_title, peer.host, peer.port) == (
        "archive", "ORTHANC", "pacs.example", 4242,
    )  # fmt: skip
    assert config.destinations[0].table["peer"] == "archive"


def test_init_keeps_the_comments(ai_node: AiNode, tmp_path: Path) -> None:
    ai_node("init", tmp_path, "--port", 104)
    assert "\n# TCP port; 0 lets the system choose one. Default: 11112\nport = 104\n" in (
        tmp_path / "node.toml"
    ).read_text(encoding="utf-8")


def test_the_state_lies_beside_the_written_file(ai_node: AiNode, tmp_path: Path) -> None:
    ai_node("init", tmp_path)
    assert load(tmp_path / "node.toml").node.state == tmp_path / "state"


def test_init_overwrites_only_by_force(ai_node: AiNode, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("mine", encoding="utf-8")
    said = ai_node("init", tmp_path)
    assert (said.code, path.read_text(encoding="utf-8")) == (1, "mine")
    assert "--force replaces it" in said.err
    assert ai_node("init", tmp_path, "--force").code == 0
    assert path.read_text(encoding="utf-8") != "mine"


@pytest.mark.parametrize(
    ("option", "answer", "reason"),
    [
        ("--ae-title", "SEVENTEEN_LETTERS", "node.ae_title: an AE title has at most 16"),
        ("--port", "99999", "scp.port: must be less than or equal to 65535"),
        ("--pacs", "only,three,parts", "expected NAME,AE,HOST,PORT"),
        ("--pacs", "a,b,c,port", "expected NAME,AE,HOST,PORT"),
        ("--pacs", "a,b,c,104,more", "expected NAME,AE,HOST,PORT"),
        ("--pacs", 'a,"\\",c,104', "no backslash"),
    ],
)
def test_init_writes_nothing_for_an_illegal_answer(
    ai_node: AiNode, tmp_path: Path, option: str, answer: str, reason: str
) -> None:
    said = ai_node("init", tmp_path / "d", option, answer)
    assert said.code == 2
    assert reason in said.err
    assert not (tmp_path / "d").exists()


def test_init_names_the_next_commands(ai_node: AiNode, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    said = ai_node("init", tmp_path)
    assert f"ai-node check --config {path}" in said.out
    assert f"ai-node run --config {path}" in said.out


def test_check_prints_every_wrong_key_with_its_place(ai_node: AiNode, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[scp]\nprot = 1\n[jobs]\nattempts = 'x'\n", encoding="utf-8")
    said = ai_node("check", "--config", path)
    assert (said.code, said.out) == (2, "")
    first, second = said.err.splitlines()
    assert first.startswith(f"{path}:2: scp.prot: unknown key; did you mean 'port'?")
    assert second == f"{path}:4: jobs.attempts: expected a whole number, got text 'x'"


def test_check_answers_in_json(ai_node: AiNode, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[scp]\nport = 'x'\n", encoding="utf-8")
    said = ai_node("check", "--config", path, "--json")
    message = "expected a whole number, got text 'x'"
    fault = {"path": "scp.port", "message": message, "line": 2, "file": str(path)}
    assert said.code == 2
    assert said.json == {"ok": False, "file": str(path), "faults": [fault]}
    path.write_text("", encoding="utf-8")
    assert ai_node("check", "--config", path, "--json").json["ok"] is True


def test_check_of_an_absent_file_says_how_to_get_one(ai_node: AiNode, tmp_path: Path) -> None:
    said = ai_node("check", "--config", tmp_path / "node.toml")
    assert said.code == 2
    assert "there is no such file; `ai-node init DIR` writes a commented one" in said.err


def test_check_reads_the_file_that_the_environment_names(
    ai_node: AiNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_NODE_CONFIG", str(tmp_path / "elsewhere.toml"))
    assert str(tmp_path / "elsewhere.toml") in ai_node("check").err


def test_check_finds_an_engine_that_is_not_there(ai_node: AiNode, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    ai_node("init", tmp_path)
    text = path.read_text(encoding="utf-8").replace('"mr-brain-lesion"', '"mr-brian-lesion"')
    path.write_text(text, encoding="utf-8")
    said = ai_node("check", "--config", path)
    assert said.code == 2
    assert "engine[0].package: " in said.err
    assert "mr-brain-lesion" in said.err


def test_check_refuses_a_live_engine_without_a_model_card_and_says_what_to_do(
    ai_node: AiNode, tmp_path: Path
) -> None:
    folder = tiny_engine(tmp_path)
    path = Plan(folder, 104).write(tmp_path / "node")
    assert ai_node("check", "--config", path).code == 0
    (folder / "CARD.md").unlink()
    said = ai_node("check", "--config", path)
    assert said.code == 2
    assert "engine[0].mode: tester cannot be live: " in said.err
    assert "`ai-node engine enable tester --shadow`" in said.err
    path.write_text(path.read_text().replace('mode = "live"', 'mode = "shadow"'))
    assert ai_node("check", "--config", path).code == 0


def test_check_knows_the_engines_that_the_hospital_added(ai_node: AiNode, tmp_path: Path) -> None:
    folder = tiny_engine(tmp_path / "node/state/engines")
    path = Plan(folder, 104).write(tmp_path / "node")
    path.write_text(path.read_text().replace(str(folder), "tiny"))
    assert ai_node("check", "--config", path).code == 0


def test_the_schema_knows_every_kind_of_every_family(ai_node: AiNode) -> None:
    schema = ai_node("schema").json
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    kinds = {
        family: {entry["properties"]["kind"]["const"] for entry in schema["$defs"][family]["oneOf"]}
        for family in ("trigger", "output", "destination", "runtime")
    }
    assert kinds["trigger"] == {"push", "query"}
    assert {"seg", "sr"} <= kinds["output"]
    assert {"store", "folder"} <= kinds["destination"]
    assert "onnx" in kinds["runtime"]


def test_every_reference_of_the_schema_leads_somewhere(ai_node: AiNode) -> None:
    said = ai_node("schema")
    references = {part.split('"')[0] for part in said.out.split('"$ref": "#/$defs/')[1:]}
    assert references <= set(said.json["$defs"])


def test_the_schema_allows_the_shipped_keys_and_no_others(ai_node: AiNode, tmp_path: Path) -> None:
    ai_node("init", tmp_path)
    table = tomllib.loads((tmp_path / "node.toml").read_text(encoding="utf-8"))
    schema = ai_node("schema").json
    assert set(table) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    for output in table["output"]:
        (entry,) = [
            entry
            for entry in schema["$defs"]["output"]["oneOf"]
            if entry["properties"]["kind"]["const"] == output["kind"]
        ]
        assert set(entry["required"]) <= set(output) <= set(entry["properties"])


def test_help_answers_at_once_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from node.cli import app; app(['--help'], standalone_mode=False); "
        "heavy = {'pydicom', 'pynetdicom', 'highdicom', 'onnxruntime', 'numpy', 'pydantic'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    # Generous: the machine may be busy. Alone it takes a quarter of a second.
    assert time.perf_counter() - began < 5


def test_the_package_can_be_run_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "node", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ai-node ")
