"""Each part in a process of its own: what becomes of one leaves the others serving."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.dicom import scu
from node.domain.errors import PeerRejected
from node.domain.peer import Network, Peer
from node.testing.archive import Archive
from node.testing.modality import Called, send
from tests.acceptance.hospital import AE_TITLE, MODALITY, Plan, small_study, tiny_engine
from tests.peers import free_port
from tests.places import ROOT

PATIENCE_S = 90.0


@dataclass
class Service:
    """``ai-node run`` and the service manager's end of its notify socket."""

    process: subprocess.Popen[str]
    manager: socket.socket
    port: int
    log: Path

    def told(self, wanted: str) -> None:
        """Wait until the service manager hears a line."""
        while wanted not in self.manager.recv(4096).decode():
            pass

    def lines(self, event: str) -> list[dict[str, object]]:
        """What the log says of an event."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]
        return [row for row in rows if row["event"] == event]

    def process_of(self, part: str) -> int:
        """The newest process of a part."""
        started = [row for row in self.lines("part started") if row["part"] == part]
        return int(str(started[-1]["process"]))

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Look again whenever the service manager hears that the parts are alive."""
        while not holds():
            self.told("WATCHDOG=1")


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as archive:
        yield archive


@pytest.fixture
def service(tmp_path: Path, archive: Archive) -> Iterator[Service]:
    port = free_port()
    config = Plan(tiny_engine(tmp_path), archive.port, port).write(tmp_path / "node")
    address = f"@ai-node-test-{os.getpid()}-{port}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address[1:]}")
        manager.settimeout(PATIENCE_S)
        log = tmp_path / "log"
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "node", "run", "--config", str(config)],
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"},
                stderr=stderr,
                text=True,
            ) as process,
        ):
            service = Service(process, manager, port, log)
            try:
                service.told("READY=1")
                yield service
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)


def called(service: Service) -> Called:
    return Called("127.0.0.1", service.port, AE_TITLE, MODALITY)


def answers(service: Service) -> bool:
    own = Peer("node", AE_TITLE, "127.0.0.1", service.port)
    return scu.echo(Network(MODALITY), own).latency_ms > 0


def test_a_study_goes_through_four_processes(service: Service, archive: Archive) -> None:
    assert send(small_study(), called(service)).accepted == 6
    assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("part", ["worker", "gateway"])
def test_a_part_that_is_killed_leaves_the_receiver_serving_and_comes_back(
    service: Service, archive: Archive, part: str
) -> None:
    victim = service.process_of(part)
    os.kill(victim, signal.SIGSEGV)
    assert answers(service)
    assert send(small_study(), called(service)).accepted == 6
    assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)
    assert service.process_of(part) != victim


def test_a_receiver_that_is_killed_listens_again(service: Service, archive: Archive) -> None:
    victim = service.process_of("receiver")
    os.kill(victim, signal.SIGKILL)
    service.wait_for(lambda: len(service.lines("receiver started")) == 2)
    assert send(small_study(), called(service)).accepted == 6
    assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)


def test_a_reload_takes_up_a_right_configuration_and_keeps_the_old_one_else(
    service: Service, archive: Archive, tmp_path: Path
) -> None:
    path = tmp_path / "node" / "node.toml"
    right = path.read_text()

    path.write_text(right.replace("quiet_period_s", "quiet_periods"))
    service.process.send_signal(signal.SIGHUP)
    wrong = "configuration is wrong, the old one stays"
    service.wait_for(lambda: len(service.lines(wrong)) == 3)
    assert "quiet_periods" in str(service.lines(wrong)[0]["faults"])
    assert send(small_study(), called(service)).accepted == 6
    assert archive.wait_for(lambda a: len(a.stored) == 2, PATIENCE_S)

    path.write_text(right.replace(f'"{MODALITY}"', '"NEWCOMER"'))
    service.process.send_signal(signal.SIGHUP)
    service.wait_for(lambda: len(service.lines("receiver started")) == 2)
    (change,) = service.lines("configuration read")[0]["changes"]  # type: ignore[misc]
    assert "NEWCOMER" in change
    with pytest.raises(PeerRejected):
        send(small_study(), called(service))
    newcomer = Called("127.0.0.1", service.port, AE_TITLE, "NEWCOMER")
    assert send(small_study(), newcomer).accepted == 6


def test_a_worker_may_not_take_all_of_the_memory(service: Service) -> None:
    limits = Path(f"/proc/{service.process_of('worker')}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert int(line.split()[3]) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
