"""Real opponents: Orthanc and DCMTK, started and asked by the tests.

Everything runs with ``TCP_NODELAY=1``: DCMTK, and Orthanc with it, otherwise waits 44 ms with each
message for an acknowledgement, which measures the operating system and not the node.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from node.domain.peer import Peer
from tests.places import tool

HOST = "127.0.0.1"
READY_S = 60.0
"""Longest wait for a program to be ready, in seconds; a loaded machine is slow."""
_TRIES = 3


def environment() -> dict[str, str]:
    """The environment in which the opponents run."""
    return {**os.environ, "TCP_NODELAY": "1"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def storescu(
    files: Sequence[Path], port: int, called_ae: str, *options: str, calling_ae: str = "STORESCU"
) -> subprocess.CompletedProcess[str]:
    """Send files with DCMTK's storescu over one association; folders are searched for files."""
    command = [tool("storescu"), "+sd", "+r", "-aet", calling_ae, "-aec", called_ae, *options]
    return _run([*command, HOST, str(port), *map(str, files)])


def echoscu(port: int, called_ae: str, calling_ae: str = "ECHOSCU") -> bool:
    """Whether DCMTK's echoscu is answered."""
    command = [tool("echoscu"), "-aet", calling_ae, "-aec", called_ae, HOST, str(port)]
    return _run(command).returncode == 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


@dataclass
class Orthanc:
    """Orthanc 1.10 in a folder of its own. ``with Orthanc(tmp_path) as orthanc: ...``

    ``modalities`` are the DICOM nodes that it knows, by name: AE title, host and port. It keeps
    its ports and what it holds over a restart.
    """

    directory: Path
    ae_title: str = "ORTHANC"
    modalities: Mapping[str, tuple[str, str, int]] = field(default_factory=dict)
    dicom_port: int = 0
    http_port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> Peer:
        """Orthanc as a peer of the node, by the name ``orthanc``."""
        return Peer("orthanc", self.ae_title, HOST, self.dicom_port)

    def start(self) -> None:
        """Start, and return when REST and DICOM answer."""
        program = tool("Orthanc")
        keeps_ports = self.dicom_port != 0
        for _ in range(1 if keeps_ports else _TRIES):
            if not keeps_ports:
                self.dicom_port, self.http_port = free_port(), free_port()
            self._launch(program)
            if self._becomes_ready():
                return
            self.stop()
        raise AssertionError(f"Orthanc does not start:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """Stop it as the service manager would."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start on the same ports with what it holds."""
        self.stop()
        self.start()

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it without ceremony, which takes it seconds: nobody needs what it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def upload(self, content: Path | bytes) -> str:
        """Put an object in by REST; its Orthanc identifier."""
        body = content.read_bytes() if isinstance(content, Path) else content
        return str(self.rest("POST", "/instances", body)["ID"])

    def know(self, name: str, ae_title: str, port: int, host: str = HOST) -> None:
        """Make a DICOM node known, among others as a move destination."""
        self.modalities = {**self.modalities, name: (ae_title, host, port)}
        body = json.dumps({"AET": ae_title, "Host": host, "Port": port}).encode()
        self.rest("PUT", f"/modalities/{name}", body)

    def instances(self) -> dict[str, str]:
        """SOP Instance UID to Orthanc identifier of everything that it holds."""
        held = self.rest("GET", "/instances?expand")
        return {entry["MainDicomTags"]["SOPInstanceUID"]: entry["ID"] for entry in held}

    def studies(self) -> set[str]:
        """Study Instance UID of everything that it holds."""
        held = self.rest("GET", "/studies?expand")
        return {entry["MainDicomTags"]["StudyInstanceUID"] for entry in held}

    def file(self, sop_instance_uid: str) -> bytes:
        """A held object as the Part 10 file that it stores."""
        return self._request("GET", f"/instances/{self.instances()[sop_instance_uid]}/file")

    def wait_for(self, condition: Callable[[Orthanc], bool], timeout_s: float) -> bool:
        """Ask again and again until a condition holds; False when time ran out."""
        assert self._process is not None
        return poll(lambda: condition(self), timeout_s, self._process)

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON answer to a REST request; None where the answer is empty."""
        answer = self._request(method, path, body)
        return json.loads(answer) if answer.strip() else None

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = HTTPConnection(HOST, self.http_port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status == 200, f"{method} {path}: {response.status} {content[:200]!r}"
        return content

    @property
    def _log_path(self) -> Path:
        return self.directory / "orthanc.log"

    def _launch(self, program: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration()))
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(configuration)],
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "opponent",
            "StorageDirectory": str(self.directory / "storage"),
            "IndexDirectory": str(self.directory / "storage"),
            "Plugins": [],
            "HttpPort": self.http_port,
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {name: list(place) for name, place in self.modalities.items()},
            "DicomAssociationCloseDelay": 0,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "SaveJobs": False,
            "SyncStorageArea": False,
        }

    def _becomes_ready(self) -> bool:
        return self.wait_for(Orthanc._answers, READY_S)

    def _answers(self) -> bool:
        try:
            self.rest("GET", "/system")
            socket.create_connection((HOST, self.dicom_port), timeout=1).close()
        except (OSError, HTTPException, ValueError):
            return False
        return True


def poll(holds: Callable[[], bool], timeout_s: float, process: subprocess.Popen[bytes]) -> bool:
    """Ask until something holds; False when time ran out or the process asked about has ended.

    The wait for the process to end is the pause between two questions.
    """
    until = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until or _ends(process, within_s=0.05):
            return False
    return True


def _ends(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True
