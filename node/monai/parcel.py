"""A trained model as it was handed over: a folder, or a zip that may have been made to do harm.

A zip is never unpacked as a whole. Names that lead out of it, links, encrypted entries and entries
that are far larger than they look are refused; what is read is read up to a limit.
"""

from __future__ import annotations

import atexit
import lzma
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from node.domain.errors import ImportRefused

T = TypeVar("T")

LARGEST_TEXT = 4 * 2**20
"""Bytes of a file that is read as text."""
LARGEST_FILE = 8 * 2**30
"""Bytes of a network that is taken out of a zip."""
MOST_FILES = 10_000
"""Files in a folder or zip."""
DEEPEST = 4
"""Folders in one another that are looked into; hidden ones are not."""
HIGHEST_RATIO = 200
"""How many times larger than packed an entry of a zip may be; weights hardly shrink at all."""
_SMALL = 2**20
"""Bytes up to which the ratio is of no concern."""
_CHUNK = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files by their names, as ``configs/metadata.json``; ``prefix`` is left out of them."""

    source: Path
    files: frozenset[str]
    prefix: str = ""

    def within(self, prefix: str) -> Parcel:
        """The files below a folder, by their names from there."""
        inside = {name[len(prefix) :] for name in self.files if name.startswith(prefix)}
        return Parcel(self.source, frozenset(inside), self.prefix + prefix)

    def text(self, name: str) -> str:
        """A file as text, UTF-8. Raises ImportRefused."""
        with _reading(self, name) as file:
            content = file.read(LARGEST_TEXT + 1)
        if len(content) > LARGEST_TEXT:
            raise ImportRefused(f"{name} is larger than {LARGEST_TEXT // 2**20} MiB")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ImportRefused(f"{name} is not text in UTF-8") from None

    def placed(self, names: Iterable[str]) -> dict[str, Path]:
        """Where files lie, side by side under their own names. Those of a zip are taken out of
        it, until the process ends. Raises ImportRefused.
        """
        if self.source.is_dir():
            return {name: _inside(self.source, self.prefix + name) for name in names}
        folder = Path(tempfile.mkdtemp(prefix="ai-node-import-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        taken = {name: folder / PurePosixPath(name).name for name in names}
        for name, path in taken.items():
            with _reading(self, name) as packed, path.open("xb") as file:
                _copy(packed, file, name)
        return taken


def opened(source: Path) -> Parcel:
    """The files of a folder or zip. Raises ImportRefused."""
    if source.is_dir():
        return Parcel(source, frozenset(_bounded(_walked(source))))
    with _zip(source) as archive:
        entries = _bounded(entry for entry in archive.infolist() if not entry.is_dir())
        for entry in entries:
            _refuse_harmful(entry)
        return Parcel(source, frozenset(entry.filename for entry in entries))


def _walked(folder: Path) -> Iterator[str]:
    for place, inner, names in os.walk(folder):
        path = Path(place).relative_to(folder)
        inner[:] = [n for n in inner if not n.startswith(".") and len(path.parts) < DEEPEST]
        yield from ((path / name).as_posix() for name in names)


def _bounded(found: Iterator[T]) -> list[T]:
    kept: list[T] = []
    for one in found:
        kept.append(one)
        if len(kept) > MOST_FILES:
            raise ImportRefused(f"it holds more than {MOST_FILES} files; name the bundle itself")
    return kept


@contextmanager
def _zip(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (OSError, EOFError, NotImplementedError, RuntimeError, *_BROKEN) as error:
        raise ImportRefused(f"{source.name} cannot be read as a zip: {error}") from None


def _refuse_harmful(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = PurePosixPath(name).parts
    signs = {"\\", "\0"} & set(name)
    if not parts or name.startswith("/") or ".." in parts or signs or ":" in parts[0]:
        raise ImportRefused(f"the zip holds {name!r}, a name that leads out of it")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ImportRefused(f"the zip holds {name!r}, a link; pack the file itself")
    if entry.flag_bits & 1:
        raise ImportRefused(f"the zip holds {name!r}, which is encrypted; pack it without password")
    if entry.file_size > max(_SMALL, entry.compress_size * HIGHEST_RATIO):
        raise ImportRefused(
            f"the zip holds {name!r}, which says to be {entry.file_size} bytes of "
            f"{entry.compress_size} packed ones: no model shrinks like that"
        )


@contextmanager
def _reading(parcel: Parcel, name: str) -> Iterator[IO[bytes]]:
    if name not in parcel.files:
        raise ImportRefused(f"there is no file {name} in {parcel.source.name}")
    if parcel.source.is_dir():
        with _inside(parcel.source, parcel.prefix + name).open("rb") as file:
            yield file
        return
    with _zip(parcel.source) as archive, archive.open(parcel.prefix + name) as packed:
        yield packed


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ImportRefused(f"{name} is a link that leads out of the folder; copy the file there")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ImportRefused(f"{name} is no file that can be read")  # a pipe would wait for ever
    return path


def _copy(packed: IO[bytes], file: IO[bytes], name: str) -> None:
    """What a zip says of an entry's size is not believed: the bytes are counted."""
    written = 0
    while chunk := packed.read(_CHUNK):
        written += len(chunk)
        if written > LARGEST_FILE:
            raise ImportRefused(f"{name} is larger than {LARGEST_FILE // 2**30} GiB")
        file.write(chunk)
