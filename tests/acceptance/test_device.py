"""A device that is lost costs the worker its process, and the study nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import structlog

from node.cli.serve import DEVICE_LOST_EXIT
from node.domain.event import EventKind
from node.domain.job import JobState
from node.ledger import Ledger
from node.supervisor import Supervisor
from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, SPEC, Plan, small_study, tiny_engine
from tests.peers import free_port
from tests.places import ROOT

TURNS = 240


def test_a_lost_device_ends_the_worker_which_starts_anew_and_assesses_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    marker, port = tmp_path / "lost", free_port()
    with Archive("ARCHIVE") as archive, structlog.testing.capture_logs() as logs:
        config = Plan(tiny_engine(tmp_path), archive.port, port).write(tmp_path / "node")
        runtime = f'runtime = {{ kind = "losing", marker = "{marker}" }}\n'
        config.write_text(config.read_text().replace("mode = ", f"{runtime}mode = "))
        program = [sys.executable, "-m", "tests.acceptance.losing", "run", "--config", str(config)]
        commands = {part: [*program, "--only", part] for part in ("receiver", "gateway", "worker")}
        left = iter(range(TURNS))

        def strike() -> None:
            marker.touch()
            send(small_study(), Called("127.0.0.1", port, AE_TITLE, MODALITY))

        def stopping(turn_s: float) -> bool:
            return (
                archive.wait_for(lambda a: len(a.stored) == 2, turn_s) or next(left, None) is None
            )

        Supervisor(commands, ready=strike, alive=lambda: None).run(stopping)
        assert len(archive.stored) == 2
        (report,) = [one.read() for one in archive.instances if one.read().Modality == "SR"]
    ended = [row for row in logs if row["event"] == "part ended"]
    assert [(row["part"], row["status"]) for row in ended] == [("worker", DEVICE_LOST_EXIT)]
    assert not marker.exists()
    said = [str(one.value) for one in report.iterall() if one.keyword == "TextValue"]
    assert any("computed by a device that can be lost; verification " in words for words in said)
    ledger = Ledger.open(tmp_path / "node/state/ledger.sqlite")
    with ledger.read() as books:
        (row,) = books.jobs.of_study(SPEC.study_uid)
        alarms = [event.words for event in books.events.walk() if event.kind == EventKind.ALARM]
    ledger.close()
    assert (row.job.state, row.job.attempts) == (JobState.DONE, 2)
    assert len(alarms) == 1
    assert "the device of losing is lost: network: CUDA error 700" in alarms[0]
