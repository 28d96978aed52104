"""Killed at every stage, again and again: nothing acknowledged is lost, no result comes twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.course import Outcome
from tests.chaos.kills import Progress, endure
from tests.chaos.trial import STAGES, Draft, Place
from tests.chaos.vault import Vault

_SEED = 20261120


def endured(place: Place, state: Path, kills: int) -> Progress:
    progress = Progress(state / "progress.jsonl", _SEED)
    endure(place, progress, kills)
    assert not progress.faults
    return progress


def test_a_node_killed_at_every_stage_loses_nothing_and_makes_nothing_twice(
    place: Place, tmp_path: Path
) -> None:
    progress = endured(place, tmp_path, 40)
    assert progress.kills.total() >= 40
    assert len(progress.kills) >= 20


@pytest.mark.slow
def test_a_thousand_kills_lose_nothing_and_make_nothing_twice(
    place: Place, tmp_path: Path, tell: Tell
) -> None:
    progress = endured(place, tmp_path, 1000)
    tell("kills", progress.figures())
    assert progress.kills.total() >= 1000
    assert len(progress.kills) >= 20


def test_a_trial_follows_from_its_seed_and_number() -> None:
    assert Draft.of(7, 3, 4) == Draft.of(7, 3, 4)
    first = [Draft.of(7, number, 4).dooms[0].stage for number in range(len(STAGES))]
    assert first == list(STAGES)


def test_progress_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    Progress(path, 7).add(Outcome(0, ["indexed", "loaded"], acknowledged=5))
    Progress(path, 8).add(Outcome(0, ["checked"]))
    with path.open("a") as stream:
        stream.write('{"seed": 7, "numb')
    progress = Progress(path, 7)
    assert progress.kills == {"indexed": 1, "loaded": 1}
    assert progress.figures()["objects acknowledged"] == 5


def test_what_is_lost_or_twice_is_found_out(place: Place) -> None:
    with Vault() as vault:
        course = place.course(place.pool[:1], vault, "found-out")
        course.settle()
        course.ward.kill()
        course.judge(resends=0)
        assert not course.outcome.faults
        next((course.state / "spool" / "studies").rglob("*.dcm")).unlink()
        vault.stored.append(vault.stored[0])
        course.judge(resends=0)
    assert course.outcome.lost_objects == 1
    assert any("sent again" in fault for fault in course.outcome.faults)
