"""``ai-node quarantine``: what is kept aside is listed, shown, read again or removed, on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.config import load
from node.indexer import Indexer
from node.ledger import Ledger
from node.spool import Spool
from node.testing.series import SeriesSpec
from tests.acceptance.hospital import SPEC, Plan, small_study
from tests.cli.conftest import Said
from tests.conftest import Clock
from tests.ward import received

Command = Callable[..., Said]


@dataclass(frozen=True)
class Ward:
    """A node's state without a running node, and its configuration."""

    config: Path
    spool: Spool
    ledger: Ledger
    indexer: Indexer

    def arrive(self, *datasets: object) -> None:
        for dataset in datasets:
            self.spool.keep(received(dataset))  # type: ignore[arg-type]
        while self.indexer.step():
            pass

    def instances(self) -> int:
        with self.ledger.read() as books:
            return len(books.arrivals.study(SPEC.study_uid).instances)

    def words(self) -> list[str]:
        with self.ledger.read() as books:
            return [f"{e.kind} {e.actor}: {e.words}" for e in books.events.after(0, 100)]


@pytest.fixture
def ward(tmp_path: Path, clock: Clock) -> Iterator[Ward]:
    path = Plan(tmp_path / "engine", 104).write(tmp_path)
    state = load(path).node.state
    spool, ledger = Spool(state / "spool", clock), Ledger.open(state / "ledger.sqlite")
    yield Ward(path, spool, ledger, Indexer(spool, ledger, clock))
    ledger.close()


@pytest.fixture
def conflict(ward: Ward) -> Ward:
    """One object twice, with two contents."""
    (dataset, *_) = small_study()
    ward.arrive(dataset)
    dataset.SeriesDescription = "CHANGED"
    ward.arrive(dataset)
    return ward


def test_an_empty_quarantine_lists_nothing(ward: Ward, ai_node: Command) -> None:
    assert ai_node("quarantine", "list", "--json", "--config", ward.config).json == []


def test_without_a_ledger_it_says_so(tmp_path: Path, ai_node: Command) -> None:
    path = Plan(tmp_path / "engine", 104).write(tmp_path)
    said = ai_node("quarantine", "list", "--config", path)
    assert said.code == 1
    assert "has not run yet" in said.err


def test_what_is_kept_aside_is_listed_with_its_reason(conflict: Ward, ai_node: Command) -> None:
    (entry,) = ai_node("quarantine", "list", "--json", "--config", conflict.config).json
    assert (entry["kind"], entry["state"]) == ("conflict", "open")
    assert "other bytes" in entry["reason"]
    assert "conflict" in ai_node("quarantine", "list", "--config", conflict.config).out


def test_one_is_shown_with_its_sender_and_without_its_patient(
    conflict: Ward, ai_node: Command
) -> None:
    said = ai_node("quarantine", "show", 1, "--config", conflict.config)
    assert said.code == 0
    assert "modality" in said.out
    assert "127.0.0.1" in said.out
    assert SPEC.patient_name not in said.out
    assert SPEC.patient_id not in said.out


def test_a_number_that_is_not_there_is_refused(ward: Ward, ai_node: Command) -> None:
    for command in (["show", 7], ["release", 7, "--reason", "x"], ["discard", 7, "--reason", "x"]):
        said = ai_node("quarantine", *command, "--config", ward.config)
        assert said.code == 1
        assert "nothing has the number 7" in said.err


def test_no_decision_without_a_reason(conflict: Ward, ai_node: Command) -> None:
    for command in ("release", "discard"):
        assert ai_node("quarantine", command, 1, "--config", conflict.config).code == 2
        said = ai_node("quarantine", command, 1, "--reason", "  ", "--config", conflict.config)
        assert said.code == 2
    assert list((conflict.spool.root / "quarantine").glob("*.dcm"))


def test_a_conflict_is_not_released_while_the_first_object_is_here(
    conflict: Ward, ai_node: Command
) -> None:
    said = ai_node("quarantine", "release", 1, "--reason", "try", "--config", conflict.config)
    assert said.code == 1
    assert "came first is still here" in said.err
    assert list((conflict.spool.root / "quarantine").glob("*.dcm"))
    assert not any(words.startswith("operator") for words in conflict.words())


def test_what_is_discarded_is_gone_and_its_entry_stays(conflict: Ward, ai_node: Command) -> None:
    said = ai_node(
        "quarantine", "discard", 1, "--reason", "sent by mistake", "--config", conflict.config
    )
    assert said.code == 0
    assert list((conflict.spool.root / "quarantine").iterdir()) == []
    assert ai_node("quarantine", "list", "--json", "--config", conflict.config).json == []
    (entry,) = ai_node("quarantine", "list", "--all", "--json", "--config", conflict.config).json
    assert entry["state"] == "discarded"
    assert entry["actor"]
    (words,) = [words for words in conflict.words() if words.startswith("operator")]
    assert words.endswith("discarded number 1 of the quarantine: sent by mistake")
    assert entry["actor"] in words
    again = ai_node("quarantine", "discard", 1, "--reason", "twice", "--config", conflict.config)
    assert again.code == 1
    assert "already" in again.err


def test_what_is_released_is_read_again(ward: Ward, ai_node: Command) -> None:
    (dataset, *_) = small_study()
    dataset.StudyInstanceUID = ""
    ward.arrive(dataset)
    (aside,) = (ward.spool.root / "quarantine").glob("*.dcm")
    whole = small_study()[0]
    # Whoever put it right: here, the file itself.
    aside.unlink()
    ward.spool.keep(received(whole)).path.replace(aside)
    said = ai_node("quarantine", "release", 1, "--reason", "put right", "--config", ward.config)
    assert said.code == 0
    assert ward.indexer.step() == 1
    assert ward.instances() == 1
    assert ai_node("quarantine", "list", "--json", "--config", ward.config).json == []
    (words,) = [words for words in ward.words() if words.startswith("operator")]
    assert words.endswith("released number 1 of the quarantine: put right")


def test_what_is_released_and_still_wrong_gets_a_new_number(ward: Ward, ai_node: Command) -> None:
    (first, second, *_) = small_study()
    second.PatientID = "ANOTHER"
    ward.arrive(first, second)
    ai_node("quarantine", "release", 1, "--reason", "try", "--config", ward.config)
    while ward.indexer.step():
        pass
    (entry,) = ai_node("quarantine", "list", "--json", "--config", ward.config).json
    assert (entry["id"], entry["kind"]) == (2, "patient")
    assert ward.instances() == 1


def test_a_release_that_died_half_way_can_be_made_again(ward: Ward, ai_node: Command) -> None:
    (first, second, *_) = small_study(SeriesSpec(spacing=(5.0, 1.0, 1.0)))
    second.StudyInstanceUID = ""
    ward.arrive(first, second)
    (aside,) = (ward.spool.root / "quarantine").glob("*.dcm")
    ward.spool.release(aside)
    said = ai_node("quarantine", "release", 1, "--reason", "again", "--config", ward.config)
    assert said.code == 0
    assert len(list(ward.spool.arrivals())) == 1
