"""``ledger check`` and ``rebuild``; ``cancel`` and ``reprocess``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.domain.job import JobEvent, JobState
from node.ledger import Ledger
from node.ledger.jobs import JobRow
from node.presence import Presence
from tests.acceptance.hospital import SPEC
from tests.cli.conftest import Said
from tests.conftest import Clock
from tests.ward import at_work

AiNode = Callable[..., Said]


@dataclass(frozen=True)
class Place:
    """A configuration whose node has received a study and stands still since."""

    config: Path
    state: Path

    def jobs(self) -> tuple[JobRow, ...]:
        ledger = Ledger.open(self.state / "ledger.sqlite")
        with ledger.read() as books:
            rows = books.jobs.of_study(SPEC.study_uid)
        ledger.close()
        return rows

    def advance(self, *events: JobEvent) -> None:
        ledger = Ledger.open(self.state / "ledger.sqlite")
        with ledger.write() as books:
            for event in events:
                books.jobs.advance(self.jobs()[0].job.id, event, 1.0)
        ledger.close()


@pytest.fixture
def place(tmp_path: Path, clock: Clock) -> Iterator[Place]:
    (tmp_path / "node.toml").write_text('[node]\nstate = "state"\n')
    state = tmp_path / "state"
    with at_work(state, clock) as bench:
        bench.receive()
        yield Place(tmp_path / "node.toml", state)


def test_a_sound_ledger_passes_the_check(ai_node: AiNode, place: Place) -> None:
    said = ai_node("ledger", "check", "--json", "--config", place.config)
    assert said.code == 0
    assert said.json == {"faults": [], "missing files": [], "unknown files": []}


def test_the_check_names_files_that_are_missing_and_files_that_nobody_knows(
    ai_node: AiNode, place: Place
) -> None:
    (first, *_) = (place.state / "spool" / "studies").glob("*/*.dcm")
    first.rename(first.with_name("other.dcm"))
    said = ai_node("ledger", "check", "--json", "--config", place.config)
    assert said.code == 1
    assert said.json["missing files"] == [str(first)]
    assert said.json["unknown files"] == [str(first.with_name("other.dcm"))]
    assert "ai-node ledger rebuild" in said.err


def test_a_rebuild_makes_arrivals_of_everything_and_keeps_the_old_file(
    ai_node: AiNode, place: Place
) -> None:
    said = ai_node("ledger", "rebuild", "--config", place.config)
    assert said.code == 0
    assert "6 objects are to be entered again" in said.out
    assert len(list((place.state / "spool" / "incoming").glob("*.dcm"))) == 6
    assert len(list(place.state.glob("ledger.sqlite.broken-*"))) >= 1
    ledger = Ledger.open(place.state / "ledger.sqlite")
    with ledger.read() as books:
        event = books.events.latest("rebuilt")
    ledger.close()
    assert event is not None
    assert "asked for" in event.words


def test_the_ledger_of_a_node_that_runs_is_not_rebuilt(ai_node: AiNode, place: Place) -> None:
    with Presence(place.state / "presence").hold("gateway"):
        said = ai_node("ledger", "rebuild", "--config", place.config)
    assert said.code == 1
    assert "the node runs (gateway)" in said.err
    assert not list(place.state.glob("ledger.sqlite.broken-*"))


def test_a_queued_job_is_cancelled_and_processed_again_with_who_and_why(
    ai_node: AiNode, place: Place
) -> None:
    number = place.jobs()[0].job.id
    said = ai_node("cancel", number, "--reason", "wrong study", "--config", place.config)
    assert said.code == 0
    assert place.jobs()[0].job.state is JobState.CANCELLED
    said = ai_node(
        "reprocess", SPEC.study_uid, "--reason", "it was right", "--config", place.config
    )
    assert said.code == 0
    assert place.jobs()[0].job.state is JobState.QUEUED
    ledger = Ledger.open(place.state / "ledger.sqlite")
    with ledger.read() as books:
        event = books.events.latest("operator")
    ledger.close()
    assert event is not None
    assert event.actor
    assert "it was right" in event.words
    assert event.job_id == number


def test_a_running_job_is_asked_to_stop(ai_node: AiNode, place: Place) -> None:
    place.advance(JobEvent.CLAIM)
    ai_node("cancel", SPEC.study_uid, "--reason", "no", "--config", place.config)
    assert place.jobs()[0].job.state is JobState.CANCELLING


def test_what_is_done_is_not_done_again(ai_node: AiNode, place: Place) -> None:
    place.advance(JobEvent.CLAIM, JobEvent.FINISH)
    for command in ("reprocess", "cancel"):
        said = ai_node(command, SPEC.study_uid, "--reason", "why not", "--config", place.config)
        assert said.code == 1
        assert "is done" in said.err


def test_a_number_that_nothing_has_is_told(ai_node: AiNode, place: Place) -> None:
    said = ai_node("cancel", "1.2.3", "--reason", "no", "--config", place.config)
    assert said.code == 1
    assert "1.2.3" in said.err
