"""The log of events: appended to, chained, and proven link by link."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, delete, update
from sqlalchemy.exc import IntegrityError

from node.domain.event import Event, EventKind, Head, prove
from node.ledger import Ledger
from node.ledger.migrations import upgrade
from node.ledger.tables import events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path)
    yield ledger
    ledger.close()


def fill(ledger: Ledger, count: int = 5) -> None:
    """So many events, each in a transaction of its own."""
    for number in range(count):
        with ledger.write() as books:
            books.events.note(
                100.5 + number, EventKind.COMPLETE, f"words {number}", study_uid="1.2", actor="a"
            )


def told(ledger: Ledger) -> list[Event]:
    with ledger.read() as books:
        return list(books.events.walk())


def forced(path: Path, *statements: str) -> None:
    """What somebody with the file in hand can do: the triggers are no lock."""
    with sqlite3.connect(path) as connection:
        for verb in ("update", "delete"):
            connection.execute(f"DROP TRIGGER events_no_{verb}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_an_event_is_read_back_as_it_was_noted(ledger: Ledger) -> None:
    with ledger.write() as books:
        books.events.note(1, "operator", "retry", study_uid="1.2", job="j", actor="root")
    (event,) = told(ledger)
    assert replace(event, chain="") == Event(1.0, "operator", "1.2", "j", "retry", "root", "", 1)
    assert len(event.chain) == 64


def test_events_cannot_be_changed_or_removed(ledger: Ledger) -> None:
    fill(ledger)
    for statement in (update(events).values(words="other"), delete(events)):
        with pytest.raises(IntegrityError, match="only ever appended"), ledger.write() as books:
            books.connection.execute(statement)
    assert prove(told(ledger)).events == 5


def test_an_untouched_log_is_sound_and_its_head_is_the_last_event(ledger: Ledger) -> None:
    fill(ledger)
    proof = prove(told(ledger))
    assert (proof.sound, proof.events, proof.before) == (True, 5, 0)
    with ledger.read() as books:
        assert proof.head == books.events.head() == Head(5, 104.5, told(ledger)[-1].chain)


def test_an_empty_log_is_sound(ledger: Ledger) -> None:
    assert prove(told(ledger)).sound
    with ledger.read() as books:
        assert books.events.head() == Head()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET words = 'other' WHERE id = 3",
        "UPDATE events SET at = 1.0 WHERE id = 3",
        "UPDATE events SET kind = 'alarm' WHERE id = 3",
        "UPDATE events SET actor = 'b' WHERE id = 3",
        "UPDATE events SET study_uid = '1.3' WHERE id = 3",
        "UPDATE events SET job_id = 'x' WHERE id = 3",
        "UPDATE events SET chain = '' WHERE id = 3",
    ],
)
def test_a_changed_event_is_named(ledger: Ledger, path: Path, statement: str) -> None:
    fill(ledger)
    forced(path, statement)
    proof = prove(told(ledger))
    assert not proof.sound
    assert proof.broken is not None
    assert proof.broken.id == 3


def test_a_removed_event_shows_at_the_one_behind_it(ledger: Ledger, path: Path) -> None:
    fill(ledger)
    forced(path, "DELETE FROM events WHERE id = 3")
    proof = prove(told(ledger))
    assert proof.broken is not None
    assert (proof.broken.id, proof.broken.at) == (4, 103.5)


def test_events_that_changed_places_show(ledger: Ledger, path: Path) -> None:
    fill(ledger)
    forced(
        path,
        "UPDATE events SET id = 99 WHERE id = 2",
        "UPDATE events SET id = 2 WHERE id = 3",
        "UPDATE events SET id = 3 WHERE id = 99",
    )
    proof = prove(told(ledger))
    assert proof.broken is not None
    assert proof.broken.id == 2


def test_a_log_that_was_cut_off_shows_against_its_anchor(ledger: Ledger, path: Path) -> None:
    fill(ledger)
    anchor = prove(told(ledger)).head
    forced(path, "DELETE FROM events WHERE id > 3")
    assert prove(told(ledger)).sound
    proof = prove(told(ledger), anchor)
    assert (proof.sound, proof.broken) == (False, None)
    assert "missing" in proof.fault


def test_a_chain_that_was_written_anew_shows_against_its_anchor(
    ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger)
    anchor = prove(told(ledger)).head
    other = Ledger.open(tmp_path / "other.sqlite")
    for event in told(ledger):
        with other.write() as books:
            books.events.note(event.at, event.kind, event.words + "!", study_uid=event.study_uid)
    assert prove(told(other)).sound
    proof = prove(told(other), anchor)
    assert proof.broken is not None
    assert proof.broken.id == anchor.id
    other.close()


def test_a_log_goes_on_behind_its_anchor(ledger: Ledger) -> None:
    fill(ledger)
    anchor = prove(told(ledger)).head
    fill(ledger)
    assert prove(told(ledger), anchor).sound


def test_events_from_before_the_chain_are_counted_and_the_chain_begins_behind_them(
    path: Path,
) -> None:
    engine = create_engine(f"sqlite:///{path}")
    upgrade(engine, "0001")
    row = {"at": 1.0, "kind": "complete", "study_uid": "1.2", "job_id": "", "words": "old"}
    with engine.begin() as connection:
        for _ in range(2):
            connection.exec_driver_sql(
                "INSERT INTO events (at, kind, study_uid, job_id, words) VALUES (?, ?, ?, ?, ?)",
                tuple(row.values()),
            )
    engine.dispose()
    ledger = Ledger.open(path)
    fill(ledger, 3)
    proof = prove(told(ledger))
    assert (proof.sound, proof.events, proof.before) == (True, 5, 2)
    ledger.close()


def test_many_writers_make_one_chain(ledger: Ledger) -> None:
    def write(number: int) -> None:
        with ledger.write() as books:
            books.events.note(float(number), EventKind.DONE, "first")
            books.events.note(float(number), EventKind.DONE, "second")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    proof = prove(told(ledger))
    assert (proof.sound, proof.events) == (True, 80)


def test_a_transaction_that_fails_leaves_no_gap_in_the_chain(ledger: Ledger) -> None:
    fill(ledger, 2)
    with pytest.raises(ZeroDivisionError), ledger.write() as books:
        books.events.note(9.0, EventKind.DONE, "never")
        _ = 1 / 0
    fill(ledger, 2)
    assert prove(told(ledger)).sound


def test_a_note_is_one_insert(ledger: Ledger) -> None:
    with ledger.write() as books:
        books.events.note(1.0, EventKind.DONE, "first")
        before = books.connection.exec_driver_sql("SELECT total_changes()").scalar_one()
        books.events.note(2.0, EventKind.DONE, "second")
        after = books.connection.exec_driver_sql("SELECT total_changes()").scalar_one()
    assert after - before == 1


def test_words_are_one_line_of_printable_text(ledger: Ledger) -> None:
    with ledger.write() as books:
        books.events.note(1.0, EventKind.REJECTED, "a\nb\x1b[31m\udcff", actor="x\0" * 60)
    (event,) = told(ledger)
    assert event.words == "a b [31m "
    assert event.actor == "x " * 32
    assert prove([event]).sound


def test_a_walk_goes_over_every_page(ledger: Ledger) -> None:
    with ledger.write() as books:
        for number in range(2100):
            books.events.note(float(number), EventKind.DONE, str(number))
    with ledger.read() as books:
        assert [event.words for event in books.events.walk()] == [str(n) for n in range(2100)]
        assert books.events.after(2098, 10)[0].words == "2098"


def test_the_latest_of_a_kind_is_found(ledger: Ledger) -> None:
    fill(ledger, 3)
    with ledger.write() as books:
        books.events.note(1.0, EventKind.STARTED, "started")
    with ledger.read() as books:
        latest = books.events.latest(EventKind.COMPLETE)
        assert latest is not None
        assert latest.words == "words 2"
        assert books.events.latest(EventKind.ALARM) is None


SOME = st.text(max_size=8)
NOTES = st.lists(
    st.tuples(st.floats(0, 2**33, allow_nan=False), SOME, SOME, SOME, SOME, SOME),
    min_size=2,
    max_size=8,
)


@settings(max_examples=200)
@given(notes=NOTES, place=st.integers(0, 100), change=st.sampled_from(range(6)), value=SOME)
def test_no_single_change_goes_unseen(
    notes: list[tuple[float, str, str, str, str, str]], place: int, change: int, value: str
) -> None:
    chain, log = "", []
    for number, (at, kind, study, job, words, actor) in enumerate(notes, start=1):
        event = Event(at, kind, study, job, words, actor, "", number)
        chain = event.link(chain)
        log.append(replace(event, chain=chain))
    assert prove(log).sound
    place %= len(log)
    field = ("at", "kind", "study_uid", "job_id", "words", "actor")[change]
    fresh = float(len(value)) if field == "at" else value
    log[place] = replace(log[place], **{field: fresh})
    same = fresh == notes[place][change]
    assert prove(log).sound == same
