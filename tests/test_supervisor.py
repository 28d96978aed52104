"""The supervisor restarts what ends, ends what is silent, and gives up on what never worked."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.domain.errors import ConfigError
from node.supervisor import WATCHDOG_S, Child, NeverReady, Supervisor

PATIENCE_S = 30.0

SPEAK = """
import os, signal, socket, sys
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""


def script(directory: Path, name: str, body: str) -> list[str]:
    path = directory / f"{name}.py"
    path.write_text(SPEAK + textwrap.dedent(body))
    return [sys.executable, str(path)]


class World:
    """Turns of the supervisor until what is waited for has happened."""

    def __init__(self, commands: dict[str, list[str]]) -> None:
        self.announced = 0
        self.now = 0.0
        self.turn_s = 0.05
        self.supervisor = Supervisor(commands, self._ready, lambda: None, clock=lambda: self.now)
        self.starts: dict[str, set[int]] = {name: set() for name in commands}

    def _ready(self) -> None:
        self.announced += 1

    def until(self, holds: object, turns: int = 600) -> bool:
        """Run; the wait between two turns is one for a child to end."""
        left = iter(range(turns))
        done = False

        def stopping(_: float) -> bool:
            nonlocal done
            self.now += self.turn_s
            for child in self.supervisor.children.values():
                if child.process is not None:
                    self.starts[child.name].add(child.process.pid)
            done = bool(holds(self))  # type: ignore[operator]
            return done or next(left, None) is None or self._pause()

        self.supervisor.run(stopping)
        return done

    def _pause(self) -> bool:
        for child in self.supervisor.children.values():
            if child.process is not None:
                _wait(child)
                break
        return False


def _wait(child: Child) -> None:
    import subprocess

    assert child.process is not None
    try:
        child.process.wait(0.05)
    except subprocess.TimeoutExpired:
        return


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_the_node_is_ready_when_every_part_is(scripts: Path) -> None:
    serve = 'out.send(b"READY=1")\nsignal.pause()'
    world = World({name: script(scripts, name, serve) for name in ("one", "two")})
    assert world.until(lambda w: w.announced)
    assert world.announced == 1


def test_a_part_that_ends_is_started_again(scripts: Path) -> None:
    crash = 'out.send(b"READY=1")\nos.kill(os.getpid(), signal.SIGSEGV)'
    world = World({"one": script(scripts, "one", crash)})
    assert world.until(lambda w: len(w.starts["one"]) >= 2)


def test_a_part_that_falls_silent_is_ended_and_started_again(scripts: Path) -> None:
    serve = 'out.send(b"READY=1")\nsignal.pause()'
    world = World({"one": script(scripts, "one", serve)})

    def falls_silent(world: World) -> bool:
        world.turn_s = WATCHDOG_S / 4 if world.announced else 0.05
        return len(world.starts["one"]) >= 2

    assert world.until(falls_silent)


def test_a_wrong_configuration_ends_the_node_at_once(scripts: Path) -> None:
    world = World({"one": script(scripts, "one", "sys.exit(2)")})
    with pytest.raises(ConfigError):
        world.until(lambda w: False)


def test_a_part_that_can_never_start_ends_the_node(scripts: Path) -> None:
    world = World({"one": script(scripts, "one", "sys.exit(1)")})
    with pytest.raises(NeverReady, match="one could not start"):
        world.until(lambda w: False)


def test_another_process_cannot_speak_for_a_part(scripts: Path) -> None:
    lie = """
    if os.fork() == 0:
        out.send(b"READY=1")
        os._exit(0)
    signal.pause()
    """
    world = World({"one": script(scripts, "one", lie)})
    assert not world.until(lambda w: w.announced, turns=40)
