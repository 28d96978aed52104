"""``audit verify`` and ``audit export``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.audit import Anchor
from node.domain.event import EventKind
from node.ledger import Ledger
from tests.cli.conftest import Said

AiNode = Callable[..., Said]


@dataclass(frozen=True)
class Place:
    """A configuration and its state folder."""

    config: Path
    state: Path

    def tamper(self, statement: str) -> None:
        with sqlite3.connect(self.state / "ledger.sqlite") as connection:
            connection.execute("DROP TRIGGER events_no_update")
            connection.execute("DROP TRIGGER events_no_delete")
            connection.execute(statement)
        connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nstate = "state"\n')
    state = tmp_path / "state"
    ledger = Ledger.open(state / "ledger.sqlite")
    with ledger.write() as books:
        for number in range(4):
            at = 1_700_000_000.0 + 86400 * number
            books.events.note(at, EventKind.OPERATOR, f"did {number}", actor="root")
    Anchor(state / "audit.head").follow(ledger, at_once=True)
    ledger.close()
    return Place(config, state)


def test_verify_of_a_sound_log_prints_its_head(ai_node: AiNode, place: Place) -> None:
    said = ai_node("audit", "verify", "--config", place.config)
    assert said.code == 0
    assert said.out.startswith("sound: 4 events; the head is event 4 of ")


def test_verify_names_the_first_broken_event(ai_node: AiNode, place: Place) -> None:
    place.tamper("UPDATE events SET words = 'did nothing' WHERE id = 2")
    said = ai_node("audit", "verify", "--config", place.config)
    assert said.code == 1
    assert said.out.startswith("BROKEN at event 2 of 2023-11-1")
    said = ai_node("audit", "verify", "--json", "--config", place.config)
    assert (said.code, said.json["ok"], said.json["broken"]["id"]) == (1, False, 2)


def test_verify_finds_a_log_that_was_cut_off(ai_node: AiNode, place: Place) -> None:
    place.tamper("DELETE FROM events WHERE id = 4")
    said = ai_node("audit", "verify", "--json", "--config", place.config)
    assert (said.code, said.json["broken"]) == (1, None)
    assert "missing" in said.json["fault"]


def test_a_head_that_was_kept_elsewhere_must_be_in_the_log(ai_node: AiNode, place: Place) -> None:
    head = ai_node("audit", "verify", "--json", "--config", place.config).json["head"]["chain"]
    arguments = ("audit", "verify", "--config", place.config, "--head")
    assert ai_node(*arguments, head).code == 0
    said = ai_node(*arguments, "f" * 64)
    assert said.code == 1
    assert "no event has the given digest" in said.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["did 0", "did 1", "did 2", "did 3"]),
        (("--since", "2023-11-15T22:13:20+00:00"), ["did 1", "did 2", "did 3"]),
        (("--until", "2023-11-15T22:13:20Z"), ["did 0"]),
        (("--since", "2023-11-15T12:00Z", "--until", "2023-11-17T12:00Z"), ["did 1", "did 2"]),
    ],
)
def test_export_gives_a_span_of_time(
    ai_node: AiNode, place: Place, options: tuple[str, ...], words: list[str]
) -> None:
    said = ai_node("audit", "export", "--config", place.config, *options)
    assert [json.loads(line)["words"] for line in said.out.splitlines()] == words
    assert "the log's head is event 4" in said.err


@pytest.mark.parametrize("form", ["jsonl", "csv", "xml"])
def test_export_writes_a_file_in_every_form(ai_node: AiNode, place: Place, form: str) -> None:
    out = place.state / "log"
    said = ai_node("audit", "export", "--config", place.config, "--format", form, "--out", out)
    assert (said.code, said.out) == (0, "")
    assert out.read_text().count("did ") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "pdf"), "--format: there is no form 'pdf' (known: jsonl, csv, xml)"),
        (("--since", "yesterday"), "--since: 'yesterday' is no time"),
    ],
)
def test_a_wrong_option_is_told(
    ai_node: AiNode, place: Place, options: tuple[str, ...], message: str
) -> None:
    said = ai_node("audit", "export", "--config", place.config, *options)
    assert said.code == 2
    assert message in said.err


def test_without_a_ledger_there_is_no_log(ai_node: AiNode, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nstate = "nowhere"\n')
    said = ai_node("audit", "verify", "--config", config)
    assert said.code == 1
    assert "has not run yet" in said.err
    assert not (tmp_path / "nowhere").exists()
