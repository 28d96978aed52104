"""The event log as evidence: anchored in a second place, exported, fed by counted notes."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from node.audit import (
    WRITERS,
    Anchor,
    AnchorError,
    Keeper,
    Notes,
    note_configuration,
    verify,
    write_csv,
    write_jsonl,
    write_xml,
)
from node.config import Config, NodeSection
from node.dicom.scp import Outcome
from node.domain.event import Event, EventKind
from node.domain.peer import Peer
from node.ledger import Ledger
from tests.conftest import Clock

CALLER = Outcome("SCANNER", "AINODE", "192.0.2.7", "", "no peer has this AE title")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path)
    yield ledger
    ledger.close()


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    return Anchor(tmp_path / "audit.head", every=10)


def fill(ledger: Ledger, count: int) -> None:
    with ledger.write() as books:
        for number in range(count):
            books.events.note(float(number), EventKind.DONE, str(number))


def told(ledger: Ledger) -> list[Event]:
    with ledger.read() as books:
        return list(books.events.walk())


def cut(path: Path, last: int) -> None:
    """Remove the newest events, as somebody with the file in hand could."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_no_delete")
        connection.execute("DELETE FROM events WHERE id > ?", [last])
    connection.close()


def test_the_anchor_moves_on_after_so_many_events(ledger: Ledger, anchor: Anchor) -> None:
    fill(ledger, 9)
    assert anchor.follow(ledger) is None
    fill(ledger, 1)
    head = anchor.follow(ledger)
    assert head == anchor.read()
    assert head is not None
    assert head.id == 10


def test_at_the_end_the_anchor_holds_the_last_event(ledger: Ledger, anchor: Anchor) -> None:
    fill(ledger, 3)
    anchor.follow(ledger, at_once=True)
    kept = anchor.read()
    assert kept is not None
    assert kept.id == 3
    assert verify(ledger, anchor).sound


def test_without_an_anchor_the_chain_alone_is_proven(ledger: Ledger, anchor: Anchor) -> None:
    fill(ledger, 3)
    assert verify(ledger, anchor).sound


def test_a_log_cut_off_at_its_end_is_found_out_and_the_anchor_stays(
    ledger: Ledger, anchor: Anchor, tmp_path: Path
) -> None:
    fill(ledger, 12)
    anchor.follow(ledger)
    kept = anchor.read()
    cut(tmp_path / "ledger.sqlite", 5)
    assert not verify(ledger, anchor).sound
    fill(ledger, 3)
    assert anchor.follow(ledger, at_once=True) is None
    assert anchor.read() == kept
    assert not verify(ledger, anchor).sound


def test_a_log_that_grew_again_after_it_was_cut_is_found_out(
    ledger: Ledger, anchor: Anchor, tmp_path: Path
) -> None:
    fill(ledger, 12)
    anchor.follow(ledger)
    cut(tmp_path / "ledger.sqlite", 5)
    fill(ledger, 20)
    proof = verify(ledger, anchor)
    assert proof.broken is not None
    assert proof.broken.id == 12


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 1, "other": 2}', "\udcff"])
def test_a_spoilt_anchor_is_an_error_in_words(ledger: Ledger, anchor: Anchor, content: str) -> None:
    anchor.path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(AnchorError, match=r"audit\.head cannot be read"):
        verify(ledger, anchor)


def test_the_log_of_a_new_ledger_begins_with_an_anchor_of_its_own(
    ledger: Ledger, anchor: Anchor
) -> None:
    assert anchor.set_aside(5.0) is None
    fill(ledger, 3)
    anchor.follow(ledger, at_once=True)
    aside = anchor.set_aside(5.0)
    assert aside is not None
    assert json.loads(aside.read_text())["id"] == 3
    assert anchor.read() is None


def test_equal_rejections_are_one_event_with_their_number(
    ledger: Ledger, path: Path, clock: Clock
) -> None:
    notes = Notes(clock)
    notes.observe(CALLER)
    first = clock.now
    clock.advance(5.0)
    notes.observe(CALLER)
    notes.observe(replace(CALLER, address="192.0.2.8"))
    assert notes.flush(path) == 2
    one, other = told(ledger)
    assert (one.kind, one.actor, one.at) == ("rejected", "SCANNER@192.0.2.7", first)
    assert one.words == "no peer has this AE title (2 times)"
    assert other.words == "no peer has this AE title"
    assert notes.flush(path) == 0


def test_who_was_let_in_is_no_rejection(ledger: Ledger, path: Path, clock: Clock) -> None:
    notes = Notes(clock)
    notes.observe(replace(CALLER, reason=""))
    assert notes.flush(path) == 0


def test_a_flood_of_callers_is_a_bounded_number_of_events(
    ledger: Ledger, path: Path, clock: Clock
) -> None:
    notes = Notes(clock, most=10)
    for number in range(5000):
        notes.observe(replace(CALLER, calling_ae=f"AE{number}"))
    assert notes.flush(path) == 11
    assert told(ledger)[-1].words == "others, too many to tell apart (4990 times)"


def test_no_rejection_is_lost_when_many_threads_observe(
    ledger: Ledger, path: Path, clock: Clock
) -> None:
    notes = Notes(clock)
    threads = [
        threading.Thread(target=lambda: [notes.observe(CALLER) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notes.flush(path)
    assert told(ledger)[0].words.endswith("(2000 times)")


def test_notes_wait_for_a_ledger_that_does_not_take_them(
    ledger: Ledger, path: Path, clock: Clock
) -> None:
    notes = Notes(clock)
    notes.observe(CALLER)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert notes.flush(path, patience_s=0.05) == 0
        other.execute("ROLLBACK")
    other.close()
    notes.observe(CALLER)
    assert notes.flush(path) == 1
    assert told(ledger)[0].words.endswith("(2 times)")


def test_notes_do_not_make_a_ledger_and_survive_a_broken_one(path: Path, clock: Clock) -> None:
    notes = Notes(clock)
    notes.note(EventKind.STARTED, "receiver 0.1.0")
    assert notes.flush(path) == 0
    assert not path.exists()
    path.write_bytes(b"not a database" * 1000)
    assert notes.flush(path) == 0
    path.unlink()
    ledger = Ledger.open(path)
    assert notes.flush(path) == 1
    assert [event.kind for event in told(ledger)] == ["started"]
    ledger.close()


def test_a_keeper_moves_the_anchor_and_finds_a_sound_log_sound(
    ledger: Ledger, anchor: Anchor
) -> None:
    keeper = Keeper(ledger, anchor, newest=20)
    for day in range(5):
        fill(ledger, 30)
        keeper.step(86_400.0 * day)
        kept = anchor.read()
        assert kept is not None
        assert kept.id == 30 * (day + 1)
    assert {event.kind for event in told(ledger)} == {"done"}
    fill(ledger, 1)
    keeper.end()
    kept = anchor.read()
    assert kept is not None
    assert kept.id == 151


@pytest.mark.parametrize("statement", ["UPDATE events SET words = 'x' WHERE id = 95", "cut"])
def test_a_keeper_raises_an_alarm_once_a_day_when_the_log_was_changed(
    ledger: Ledger, anchor: Anchor, path: Path, statement: str
) -> None:
    fill(ledger, 100)
    keeper = Keeper(ledger, anchor, newest=20)
    keeper.step(0.0)
    if statement == "cut":
        cut(path, 90)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TRIGGER events_no_update")
            connection.execute(statement)
        connection.close()
    keeper.step(1000.0)
    assert told(ledger)[-1].kind == "done"
    keeper.step(86_400.0)
    keeper.step(86_401.0)
    alarms = [event for event in told(ledger) if event.kind == "alarm"]
    assert len(alarms) == 1
    assert "the event log is broken" in alarms[0].words


def test_a_keeper_raises_an_alarm_for_a_spoilt_anchor(ledger: Ledger, anchor: Anchor) -> None:
    anchor.path.write_text("{")
    Keeper(ledger, anchor).step(0.0)
    assert "audit.head cannot be read" in told(ledger)[-1].words


@dataclass(frozen=True)
class State:
    """A configuration in a state folder."""

    folder: Path

    def config(self, *peers: Peer) -> Config:
        return Config(node=NodeSection("AINODE", self.folder), peers=peers)


def test_a_configuration_is_noted_once_and_again_when_it_changed(
    ledger: Ledger, tmp_path: Path
) -> None:
    state = State(tmp_path)
    pacs = Peer("pacs", "PACS", "hidden-host", 104)
    assert note_configuration(ledger, state.config(pacs), 1.0)
    assert not note_configuration(ledger, state.config(pacs), 2.0)
    assert note_configuration(ledger, state.config(replace(pacs, port=105)), 3.0, "root")
    first, second = told(ledger)
    assert first.words.endswith(": first seen")
    assert second.words.endswith(": peer pacs.port")
    assert (second.kind, second.actor) == ("configured", "root")
    assert "hidden-host" not in (tmp_path / "configuration.seen").read_text()
    assert (tmp_path / "configuration.seen").stat().st_mode & 0o077 == 0


def test_a_lost_memory_of_the_configuration_makes_it_new(ledger: Ledger, tmp_path: Path) -> None:
    state = State(tmp_path)
    note_configuration(ledger, state.config(), 1.0)
    (tmp_path / "configuration.seen").write_text("{")
    assert note_configuration(ledger, state.config(), 2.0)


EVENTS = [
    Event(1.25, "done", "1.2", "j", 'quotes " and <tags> and ümlauts', "a", "c1", 1),
    Event(2.5, "rejected", "", "", "words", "=HYPERLINK(1)@192.0.2.7", "c2", 2),
]


def test_every_event_is_one_line_of_json_that_proves_its_link() -> None:
    out = io.StringIO()
    write_jsonl(EVENTS, out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    rows[0].pop("time")
    assert Event(**rows[0]) == EVENTS[0]
    assert rows[1]["time"] == "1970-01-01T00:00:02.500000+00:00"


def test_csv_has_a_header_and_no_formulas() -> None:
    out = io.StringIO()
    write_csv(EVENTS, out)
    first, second = csv.DictReader(io.StringIO(out.getvalue()))
    assert first["words"] == EVENTS[0].words
    assert second["actor"] == "'=HYPERLINK(1)@192.0.2.7"


def test_xml_is_read_back_as_it_was() -> None:
    out = io.StringIO()
    write_xml(EVENTS, out)
    first, second = ElementTree.fromstring(out.getvalue())  # noqa: S314 - written above
    assert first.attrib["words"] == EVENTS[0].words
    assert second.attrib["id"] == "2"


@pytest.mark.parametrize("form", WRITERS)
def test_an_empty_log_can_be_exported_in_every_form(form: str) -> None:
    out = io.StringIO()
    WRITERS[form]((), out)
    assert "event " not in out.getvalue()
