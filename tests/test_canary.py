"""The canary is heard where it must not sing, and is not listened to where it may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.domain.event import EventKind
from node.indexer import Indexer
from node.ledger import Ledger
from node.spool import Spool
from tests import canary
from tests.acceptance.hospital import SPEC, small_study
from tests.conftest import Clock
from tests.places import ROOT
from tests.ward import received

pytestmark = pytest.mark.names_patients


@pytest.fixture
def state(tmp_path: Path, clock: Clock) -> Path:
    """The state folder of a node that has received a study."""
    spool, ledger = Spool(tmp_path / "spool", clock), Ledger.open(tmp_path / "ledger.sqlite")
    for dataset in small_study():
        spool.keep(received(dataset))
    Indexer(spool, ledger, clock).step()
    ledger.close()
    return tmp_path


def places(folder: Path) -> list[str]:
    return [found.place for found in canary.in_folder(folder)]


def test_a_node_holds_the_patient_where_it_may_and_nowhere_else(state: Path) -> None:
    ledger = Ledger.open(state / "ledger.sqlite")
    with ledger.read() as books:
        (first, *_) = books.arrivals.study(SPEC.study_uid).instances
    ledger.close()
    assert first.facts["PatientName"] == canary.PATIENT_NAME
    assert canary.PATIENT_ID.encode() in first.path.read_bytes()
    assert places(state) == []


def note(state: Path) -> None:
    ledger = Ledger.open(state / "ledger.sqlite")
    with ledger.write() as books:
        books.events.note(1.0, EventKind.DONE, f"assessed {SPEC.patient_name}")
    ledger.close()


LEAKS: dict[str, Callable[[Path], object]] = {
    "ledger.sqlite, events.words": note,
    "log": lambda state: (state / "log").write_text(f"sent {SPEC.patient_id.lower()}"),
    "quarantine/1.txt": lambda state: (
        (state / "quarantine").mkdir(),
        (state / "quarantine" / "1.txt").write_text(f"born {SPEC.birth_date}"),
    ),
    "file name": lambda state: (state / f"{SPEC.accession_number}.dcm").touch(),
    "audit.xml": lambda state: (state / "audit.xml").write_text("Demo, Phantom"),
}


@pytest.mark.parametrize("place", LEAKS)
def test_a_leak_is_heard(state: Path, place: str) -> None:
    LEAKS[place](state)
    assert places(state) == [place]


@pytest.mark.parametrize("text", ["canary", "1.2.19011231.4", "PHANTOM^DEMO", "id DEMO-1,"])
def test_any_writing_of_a_canary_is_heard(text: str) -> None:
    assert [found.place for found in canary.in_text(text, "here")] == ["here"]


@pytest.mark.parametrize("text", ["phantom", "a demo of the phantom", "DEMO-12", "219604012"])
def test_other_words_are_no_canary(text: str) -> None:
    assert list(canary.in_text(text, "here")) == []


LEAKING = """
import logging
import pytest

def test_prints():
    print("CANARY")

def test_logs():
    logging.getLogger("x").warning("CANARY")

def test_writes(tmp_path):
    (tmp_path / "log").write_text("CANARY")

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")

@pytest.mark.names_patients
def test_may(tmp_path):
    print("CANARY")
    (tmp_path / "log").write_text("CANARY")

def test_is_silent(tmp_path):
    (tmp_path / "log").write_text("nothing")

def test_writes_into_a_shared_folder(shared):
    (shared / "log").write_text("CANARY")
"""


def test_a_test_that_names_a_patient_fails(tmp_path: Path) -> None:
    """Each leak is an error of its test; the shared folder's of the last test of the module."""
    file = tmp_path / "test_leaking.py"
    file.write_text(LEAKING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-q", "-rE", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True)
    told = done.stdout
    failing = [
        line.split("::")[1].split(" ")[0] for line in told.splitlines() if line.startswith("ERROR ")
    ]
    assert failing == [
        "test_prints",
        "test_logs",
        "test_writes",
        "test_writes_into_a_shared_folder",
    ], told
    assert "6 passed" in told
