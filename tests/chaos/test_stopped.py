"""A worker that is stopped by SIGSTOP says nothing and does nothing: its supervisor replaces it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from node.supervisor import Supervisor
from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, Plan, small_study, tiny_engine
from tests.chaos.course import PARTS
from tests.peers import free_port

_WATCHDOG_S = 6.0
_PATIENCE_S = 90.0


def test_a_worker_that_is_stopped_is_replaced_and_its_study_assessed(tmp_path: Path) -> None:
    port = free_port()
    ready, done = threading.Event(), threading.Event()
    with Archive() as archive:
        config = Plan(tiny_engine(tmp_path), archive.port, port).write(tmp_path / "node")
        command = [sys.executable, "-m", "node", "run", "--config", str(config), "--only"]
        supervisor = Supervisor(
            {part: [*command, part] for part in PARTS},
            ready=ready.set,
            alive=lambda: None,
            watchdog_s=_WATCHDOG_S,
        )
        running = threading.Thread(target=supervisor.run, args=(done.wait,))
        running.start()
        try:
            assert ready.wait(_PATIENCE_S)
            stopped = supervisor.children["worker"].process
            assert stopped is not None
            os.kill(stopped.pid, signal.SIGSTOP)
            sent = send(small_study(), Called("127.0.0.1", port, AE_TITLE, MODALITY))
            assert sent.accepted == 6
            assert archive.wait_for(lambda a: len(a.stored) == 2, _PATIENCE_S)
            assert stopped.poll() == -signal.SIGKILL
        finally:
            done.set()
            running.join()
