"""Headers are read in a child: what kills it is refused in words, and the next object is read."""

from __future__ import annotations

import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from node.domain.errors import HeaderError, SandboxError, SpoolError
from node.domain.study import Instance
from node.sandbox import InProcess, Limits, Sandbox
from node.spool import Spool
from node.testing.series import SeriesSpec, make
from tests.hostile import bombs
from tests.hostile.raw import arrived
from tests.ward import received

TIGHT = Limits(memory=512 * 2**20, cpu_s=2, wall_s=5.0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(TIGHT)
    yield sandbox
    sandbox.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", time.time)


def images(count: int = 1, spec: SeriesSpec | None = None) -> list[Dataset]:
    return make(spec or SeriesSpec(), np.zeros((count, 8, 8), np.int16))


def kept(spool: Spool, count: int = 1) -> list[Path]:
    return [spool.keep(received(image)).path for image in images(count)]


def children() -> set[int]:
    """Our living children. Asked of each process: a list of children may leave some out."""
    return {
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/status")
        if _lives_under_us(status)
    }


def _lives_under_us(status: Path) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return False  # it has just ended
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(said["PPid"]) == os.getpid() and not said["State"].startswith("Z")


def test_a_child_reads_what_this_process_would(sandbox: Sandbox, spool: Spool) -> None:
    files = kept(spool, 40)
    assert sandbox.read(files) == InProcess().read(files)


def test_nothing_to_read_starts_nothing() -> None:
    before = children()
    assert Sandbox().read([]) == []
    assert children() == before


def test_what_a_header_is_refused_for_comes_back_in_the_same_words(
    sandbox: Sandbox, spool: Spool
) -> None:
    (image,) = images()
    del image.StudyInstanceUID
    files = [spool.keep(received(image)).path, *kept(spool)]
    refused, fine = sandbox.read(files)
    (alike, _) = InProcess().read(files)
    assert isinstance(refused, HeaderError)
    assert str(refused) == str(alike)
    assert isinstance(fine, Instance)


def test_a_file_that_is_not_there_is_not_the_objects_fault(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (missing,) = sandbox.read([tmp_path / "gone.dcm"])
    assert isinstance(missing, SpoolError)


@pytest.mark.parametrize("bomb", bombs.HEADER_BOMBS, ids=lambda bomb: bomb.name)
def test_a_bomb_ends_in_the_child_and_the_next_object_is_read(
    bomb: bombs.Bomb, sandbox: Sandbox, spool: Spool
) -> None:
    before, after = kept(spool, 2)
    bomb_file = spool.keep(bomb.made(images()[0])).path
    started = time.monotonic()
    first, contained, last = sandbox.read([before, bomb_file, after])
    assert isinstance(first, Instance)
    assert isinstance(last, Instance)
    if isinstance(contained, HeaderError):
        assert bomb.words in str(contained)
    else:
        # What the facts do not touch is stepped over, and that is as good.
        assert isinstance(contained, Instance)
        assert bomb.words == ""
    assert time.monotonic() - started < 15.0


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(cpu_s=1, wall_s=60.0), r"CPU limit \(1 s\)"),
        (Limits(memory=192 * 2**20, cpu_s=60, wall_s=60.0), r"memory limit \(0.188 GiB\)"),
    ],
)
def test_the_reason_names_the_limit(limits: Limits, words: str, spool: Spool) -> None:
    sandbox, bomb = Sandbox(limits), bombs.HEADER_BOMBS[0]
    (refused,) = sandbox.read([spool.keep(bomb.made(images()[0])).path])
    sandbox.close()
    assert isinstance(refused, HeaderError)
    assert re.search(words, str(refused))


def test_deflated_bytes_are_never_inflated(sandbox: Sandbox, spool: Spool) -> None:
    """A megabyte of them is a gigabyte; no such context is accepted, and none is read."""
    (image,) = images()
    squeezed = zlib.compress(bytes(256 * 2**20), 9)
    deflated = replace(arrived(image, squeezed), transfer_syntax_uid="1.2.840.10008.1.2.1.99")
    started = time.monotonic()
    (refused,) = sandbox.read([spool.keep(deflated).path])
    assert "deflated data sets are not read" in str(refused)
    assert time.monotonic() - started < 2.0


def test_a_child_that_hangs_is_killed_at_its_deadline(spool: Spool) -> None:
    sandbox = Sandbox(Limits(wall_s=1.0))
    hanging = spool.root / "incoming" / "pipe.dcm"
    os.mkfifo(hanging)
    (fine,) = kept(spool)
    refused, read = sandbox.read([hanging, fine])
    sandbox.close()
    assert "time limit (1 s)" in str(refused)
    assert isinstance(read, Instance)


def test_a_child_that_is_killed_from_outside_puts_no_blame_on_the_object(spool: Spool) -> None:
    sandbox, before = Sandbox(), children()
    files = kept(spool, 3)
    sandbox.read(files[:1])
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    assert all(isinstance(one, Instance) for one in sandbox.read(files))
    sandbox.close()
    assert children() == before


def test_a_child_is_replaced_after_so_many_objects(spool: Spool) -> None:
    sandbox, before = Sandbox(Limits(served=10)), children()
    files = kept(spool, 25)
    assert sandbox.read(files) == InProcess().read(files)
    (third,) = children() - before
    assert sandbox.read(files[:5]) == InProcess().read(files[:5])
    assert third not in children()
    sandbox.close()


def test_a_child_that_has_grown_is_replaced(spool: Spool) -> None:
    sandbox, before = Sandbox(Limits(grown=1)), children()
    files = kept(spool, 3)
    assert sandbox.read(files) == InProcess().read(files)
    assert children() == before


def test_where_no_child_starts_no_object_is_blamed(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = kept(spool, 2)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SandboxError, match="arrivals wait in the spool"):
        Sandbox().read(files)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(SandboxError, match="No such file"):
        Sandbox().read(files)


def test_a_child_may_not_write_or_start_anything(spool: Spool) -> None:
    sandbox, before = Sandbox(), children()
    sandbox.read(kept(spool))
    (child,) = children() - before
    status = Path(f"/proc/{child}/status").read_text()
    limits = Path(f"/proc/{child}/limits").read_text()
    sandbox.close()
    assert "NoNewPrivs:\t1" in status
    for name in ("Max file size", "Max core file size", "Max processes"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.split()[-3 if "units" in line else -2].isdigit()
        assert line.removeprefix(name).split()[:2] == ["0", "0"]


def test_a_child_knows_no_secret_of_ours(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/secret")
    sandbox, before = Sandbox(), children()
    sandbox.read(kept(spool))
    (child,) = children() - before
    environment = Path(f"/proc/{child}/environ").read_bytes()
    sandbox.close()
    assert b"secret" not in environment


CHANGES = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_no_change_of_a_file_ends_without_an_answer(
    changes: list[tuple[int, int]], sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"), time.time)
    (file,) = kept(spool)
    content = bytearray(file.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    file.write_bytes(content)
    (answer,) = sandbox.read([file])
    (alike,) = InProcess().read([file])
    assert type(answer) is type(alike)
    assert not isinstance(answer, Instance) or answer == alike


def test_the_offset_of_native_pixels_is_where_they_begin(sandbox: Sandbox, spool: Spool) -> None:
    (image,) = images()
    image.PixelData = struct.pack("<64H", *range(64))
    file = spool.keep(received(image)).path
    (instance,) = sandbox.read([file])
    assert isinstance(instance, Instance)
    assert instance.pixel_offset is not None
    assert file.read_bytes()[instance.pixel_offset :] == image.PixelData
