"""Canaries: the tests' patients have names that nobody else has, and nothing that a node writes
besides the images themselves may sing them.

After every test the captured output and logs, the names of all files below its temporary folders,
the text files among them (logs of node processes, notes of the quarantine) and every column of the
ledgers that is not meant to hold identity are searched. ``tests/conftest.py`` puts it to work over
the whole suite; a test whose own subject is such a name says so with the mark ``names_patients``.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

PATIENT_NAME = "Canary^Sings"
PATIENT_ID = "CANARY-ID-7"
BIRTH_DATE = "19011231"
ACCESSION = "CANARYACC7"
"""The identity of the patients of the acceptance tests."""

_CANARIES = re.compile(
    rb"canary|19011231"
    # The defaults of node.testing.series, in any writing: a person's name may be turned about.
    rb"|phantom[\^ ,]+demo|demo[\^ ,]+phantom|DEMO-1\b|\b19600401\b",
    re.IGNORECASE,
)
_IMAGES = {".dcm", ".onnx", ".npy", ".npz", ".png", ".html"}
"""Files that are meant to hold what they hold; their names are searched all the same."""

_IDENTITY = {
    "instances": {"facts"},
    "studies": {"accession"},
    "pulls": {"accession"},
}
"""Columns of the ledger that are meant to hold identity."""

_LONGEST = 20_000_000


@dataclass(frozen=True)
class Found:
    """Where a canary sang: the place, and what stands around it."""

    place: str
    around: str

    def __str__(self) -> str:
        return f"{self.place}: ...{self.around}..."


def in_text(text: str | bytes, place: str) -> Iterator[Found]:
    """Every canary of a text."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    for found in _CANARIES.finditer(content):
        around = content[max(0, found.start() - 60) : found.end() + 60]
        yield Found(place, around.decode(errors="replace"))


def in_folder(folder: Path) -> Iterator[Found]:
    """Every canary below a folder, but for what belongs to a real peer (``orthanc``)."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if "orthanc" in inside.parts:
            continue
        yield from in_text(str(inside), "file name")
        if path.is_file() and not path.is_symlink():
            yield from _in_file(path, str(inside))


def _in_file(path: Path, place: str) -> Iterator[Found]:
    if path.stat().st_size > _LONGEST or path.suffix in _IMAGES:
        return
    content = path.read_bytes()
    if content.startswith(b"SQLite format 3\0"):
        yield from in_ledger(path)
    elif content[128:132] != b"DICM" and not path.name.endswith(("-wal", "-shm")):
        yield from in_text(content, place)


def in_ledger(path: Path) -> Iterator[Found]:
    """Every canary in the columns of a database that hold no identity."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            yield from _in_table(connection, table, path.name)


def _in_table(connection: sqlite3.Connection, table: str, file: str) -> Iterator[Found]:
    rows = connection.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - a name of the database
    columns = [column[0] for column in rows.description]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            if column not in _IDENTITY.get(table, ()):
                yield from in_text(str(value), f"{file}, {table}.{column}")


def words(found: Iterable[Found]) -> str:
    """What a test that fails by this says; "" when nothing was found."""
    places = [str(one) for one in found]
    more = f"\n({len(places) - 10} more)" if len(places) > 10 else ""
    return "patient data where none may be:\n" + "\n".join(places[:10]) + more if places else ""
