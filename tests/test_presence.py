"""Who holds a name is there; who ended, however it ended, is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.presence import AlreadyPresent, Presence
from tests.places import ROOT

HOLDER = """
import sys
from pathlib import Path
from node.presence import Presence
with Presence(Path(sys.argv[1])).hold("worker"):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_part_is_there_for_as_long_as_it_holds_its_name(tmp_path: Path) -> None:
    presence = Presence(tmp_path / "presence")
    assert presence.names() == frozenset()
    with presence.hold("gateway"), presence.hold("worker"):
        assert presence.names() == {"gateway", "worker"}
    assert presence.names() == frozenset()


def test_a_name_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.presence._TRIES", 1)
    presence = Presence(tmp_path)
    with (
        presence.hold("worker"),
        pytest.raises(AlreadyPresent, match="a worker of this node runs already"),
        Presence(tmp_path).hold("worker"),
    ):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_gone_and_one_that_was_stopped_is_not(
    tmp_path: Path, end: signal.Signals
) -> None:
    presence = Presence(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGSTOP)
        assert presence.names() == {"worker"}
        process.send_signal(signal.SIGCONT)
        process.send_signal(end)
        process.wait(30)
    assert presence.names() == frozenset()
    with presence.hold("worker"):
        assert presence.names() == {"worker"}
