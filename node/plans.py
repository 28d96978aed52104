"""Plans on disk: what was compiled for a device, kept until it is used again or room is needed.

A plan is machine code that will run with the node's rights, so it is kept where nobody else may
write, is never taken from a peer, and is hashed before anybody gets it. What it was made of is its
name: another network, library, driver or card is another plan. Nothing here knows TensorRT.

::

    <root>/<sha256 of the key>/plan          what a device loads
                               meta.json     the key in words, the plan's sha256, what was told
                               timing.cache  what the builder measured, for the next build
                               used          its time of modification is that of the last use
    <root>/drafts/       what is being made; a process that dies leaves it, the next removes it
    <root>/quarantine/   what was damaged or did not load, each with reason.txt
    <root>/kernels/      what else is compiled for a device; others keep it there
    <root>/locks/        one file a key, held while it is built; <key>.pin while it is in use
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from node.domain.errors import InferenceError
from node.domain.plan import Kept as Kept
from node.domain.plan import Key as Key
from node.domain.plan import Rejected as Rejected
from node.domain.plan import StoreStage as StoreStage
from node.domain.plan import digest_of

_log = structlog.get_logger()

PLAN, TIMING = "plan", "timing.cache"
"""What a build writes into its folder; the second it may read first."""
_META, _USED, _REASON = "meta.json", "used", "reason.txt"
_OLD = ".old"
_FOLDERS = ("drafts", "quarantine", "locks", "kernels")
_KIN = ("flavour", "version", "driver", "capability", "device", "memory")
"""Keys that agree in these may share what their builders measured."""
_BETWEEN_S = 0.1

Build = Callable[[Path], Mapping[str, Any]]
"""Writes ``plan`` into a folder, where it may find and change ``timing.cache``; gives what is worth
keeping of how it was built, ready for JSON."""


class _Damaged(Exception):
    """What is kept is not what was kept."""


def _unwatched(stage: StoreStage) -> None:
    """Nobody watches."""


def _unhurried() -> None:
    """Nobody asks to stop waiting."""


@dataclass(frozen=True, slots=True)
class Plans:
    """The cache under ``root``. Safe to use from several processes, and from several threads.

    Every method raises InferenceError when the disk is full or fails, or when the folder belongs
    to another user.
    """

    root: Path
    limit: int
    """Bytes that plans and quarantine may take together; the plan last kept may exceed it."""
    clock: Callable[[], float] = time.time
    reached: Callable[[StoreStage], None] = field(default=_unwatched, compare=False)

    def __post_init__(self) -> None:
        """Make the folders, for ourselves alone."""
        with _explained("opening"):
            for folder in (self.root, *(self.root / name for name in _FOLDERS)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.root.stat().st_uid != os.geteuid():
                raise InferenceError(
                    f"the folder {self.root} belongs to another user, and plans are code: remove "
                    f"it, or run as its owner"
                )
            self.root.chmod(0o700)

    def load(self, key: Key | str) -> bytes | None:
        """The plan of a key (or of its digest), or None. One that is damaged is put aside."""
        digest = key if isinstance(key, str) else key.digest
        try:
            with _explained("reading"):
                return self._read(digest)
        except _Damaged:
            self._put_aside_if_damaged(digest)
            return None

    def store(self, key: Key, plan: bytes, told: Mapping[str, Any] | None = None) -> None:
        """Keep a plan instead of what the key had before; others may have to go for it."""

        def build(folder: Path) -> Mapping[str, Any]:
            with _explained("writing into"):
                _write(folder / PLAN, plan)
            return told or {}

        with self._alone(key.digest, _unhurried):
            self._make(key, build)

    def obtain(self, key: Key, build: Build, check: Callable[[], object] = _unhurried) -> bytes:
        """The plan of a key: the one that is kept, or the one that ``build`` makes now.

        Of several processes one builds, and the others wait for it; ``check`` is called while
        waiting and may raise to stop that. What ``build`` raises goes up, and nothing is kept.
        """
        plan = self.load(key)
        if plan is not None:
            return plan
        with self._alone(key.digest, check):
            try:
                plan = self._read(key.digest)
            except _Damaged as damage:
                self._put_aside(key.digest, str(damage))
            if plan is None:
                self._make(key, build)
                plan = self._read(key.digest)
        if plan is None:
            raise InferenceError(f"the plan {key.digest[:12]} vanished as soon as it was kept")
        return plan

    def quarantine(self, key: Key, reason: str) -> None:
        """Put a plan aside that does not load, so that the next is built anew.

        Nothing happens when there is none, or when somebody is building it just now.
        """
        with ExitStack() as stack, _explained("putting aside"):
            if stack.enter_context(self._tried(key.digest)):
                self._put_aside(key.digest, reason)

    @contextmanager
    def pinned(self, key: Key) -> Iterator[None]:
        """Keep a plan from being removed for want of room, for as long as this process holds it."""
        with self._open(f"{key.digest}.pin") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield

    def kept(self) -> tuple[Kept, ...]:
        """Every plan, the least recently used first."""
        folders = [path for path in self.root.iterdir() if path.name not in _FOLDERS]
        with _explained("listing"):
            found = [self._described(path) for path in folders]
        return tuple(sorted(found, key=lambda one: (one.used_at, one.digest)))

    def quarantined(self) -> tuple[Rejected, ...]:
        """Every plan in quarantine, the one put aside first at the front."""
        with _explained("listing"):
            folders = sorted(
                (_changed(path), path) for path in (self.root / "quarantine").iterdir()
            )
            return tuple(
                Rejected(path.name.partition("-")[0], _text(path / _REASON), _size(path), path)
                for _, path in folders
            )

    def evict(self) -> tuple[str, ...]:
        """Remove what is over the limit: quarantine first, then what was used longest ago.

        What somebody builds or has pinned stays. Gives the digests that are gone, and clears away
        what dead processes left.
        """
        with _explained("making room in"):
            self._clear_drafts()
            gone: list[str] = []
            candidates: tuple[Kept | Rejected, ...] = (*self.quarantined(), *self.kept())
            over = sum(one.size for one in candidates) - self.limit
            for one in candidates:
                if over <= 0:
                    break
                if self._removed(one):
                    over -= one.size
                    gone.append(one.digest)
            return tuple(gone)

    def _read(self, digest: str) -> bytes | None:
        """A plan whose hash is right. Raises _Damaged."""
        folder = self.root / digest
        try:
            meta = json.loads((folder / _META).read_bytes())
            plan = (folder / PLAN).read_bytes()
            if digest_of(meta["key"]) != digest:
                raise _Damaged("it is the plan of another key")
            wanted = str(meta["sha256"])
        except FileNotFoundError as error:
            if not folder.exists():
                return None
            raise _Damaged(f"{Path(str(error.filename)).name} is missing") from error
        except (ValueError, TypeError, LookupError) as error:
            raise _Damaged(f"{_META} is damaged") from error
        found = hashlib.sha256(plan).hexdigest()
        if found != wanted:
            raise _Damaged(f"its sha256 is {found}, it was kept as {wanted}")
        self._touch(folder)
        return plan

    def _make(self, key: Key, build: Build) -> None:
        """Build and keep; the key's lock is held."""
        folder = self.root / "drafts" / key.digest
        with _explained("preparing"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            self._seed(key, folder)
        try:
            told = build(folder)
            with _explained("keeping a plan in"):
                self._publish(key, folder, told)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.evict()  # not of this one: its lock is held

    def _publish(self, key: Key, folder: Path, told: Mapping[str, Any]) -> None:
        self.reached(StoreStage.BUILT)
        with (folder / PLAN).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        meta = {"key": asdict(key), "sha256": digest, "built_at": self.clock(), "told": dict(told)}
        _write(folder / _META, json.dumps(meta, indent=1, sort_keys=True).encode())
        _write(folder / _USED, b"")
        self._touch(folder)
        self.reached(StoreStage.WRITTEN)
        for path in (*folder.iterdir(), folder):
            _sync(path)
        self.reached(StoreStage.SYNCED)
        self._clear(key.digest)
        self.reached(StoreStage.CLEARED)
        folder.rename(self.root / key.digest)
        self.reached(StoreStage.NAMED)
        _sync(self.root)
        self.reached(StoreStage.DURABLE)

    def _clear(self, digest: str) -> None:
        """Remove a plan: out of sight at once, so that nobody finds a part of it."""
        away = self.root / "drafts" / (digest + _OLD)
        shutil.rmtree(away, ignore_errors=True)
        with suppress(FileNotFoundError):
            (self.root / digest).rename(away)
            shutil.rmtree(away)

    def _seed(self, key: Key, folder: Path) -> None:
        """What was measured last on the same device by the same library spares measuring again."""
        own = asdict(key)
        for one in reversed(self.kept()):
            if one.key and all(one.key.get(name) == own[name] for name in _KIN):
                with suppress(FileNotFoundError):
                    shutil.copyfile(one.folder / TIMING, folder / TIMING)
                    return

    def _put_aside_if_damaged(self, digest: str) -> None:
        """Look again, alone: what was damaged a moment ago may have been built anew since."""
        with ExitStack() as stack, _explained("putting aside"):
            if stack.enter_context(self._tried(digest)):
                try:
                    self._read(digest)
                except _Damaged as damage:
                    self._put_aside(digest, str(damage))

    def _put_aside(self, digest: str, reason: str) -> None:
        folder, count = self.root / digest, 0
        if not folder.exists():
            return
        while (place := self.root / "quarantine" / f"{digest}-{count}").exists():
            count += 1
        _write(folder / _REASON, reason.encode())
        folder.rename(place)
        os.utime(place, (self.clock(), self.clock()))
        _log.error("plan put aside", plan=digest[:12], reason=reason)

    def _removed(self, one: Kept | Rejected) -> bool:
        """Remove one that nobody builds or uses; whether it is gone."""
        if isinstance(one, Rejected):
            shutil.rmtree(one.folder)
            return True
        with ExitStack() as stack:
            if not all(
                stack.enter_context(self._tried(name)) for name in (one.digest, f"{one.digest}.pin")
            ):
                return False
            self._clear(one.digest)
        _log.info("plan removed", plan=one.digest[:12], size=one.size)
        return True

    def _clear_drafts(self) -> None:
        for draft in (self.root / "drafts").iterdir():
            with self._tried(draft.name.removesuffix(_OLD)) as ours:
                if ours:
                    shutil.rmtree(draft, ignore_errors=True)

    def _described(self, folder: Path) -> Kept:
        meta: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            meta = json.loads((folder / _META).read_bytes())
        fields = meta if isinstance(meta, dict) else {}
        key, told = fields.get("key"), fields.get("told")
        return Kept(
            digest=folder.name,
            key=key if isinstance(key, dict) and digest_of(key) == folder.name else {},
            told=told if isinstance(told, dict) else {},
            size=_size(folder),
            used_at=_changed(folder / _USED),
            folder=folder,
        )

    def _touch(self, folder: Path) -> None:
        now = self.clock()
        with suppress(OSError):  # of use only for the order in which plans are removed
            os.utime(folder / _USED, (now, now))

    @contextmanager
    def _alone(self, digest: str, check: Callable[[], object]) -> Iterator[None]:
        """Hold the key's lock; the kernel gives it back however this process ends."""
        with self._open(digest) as descriptor:
            while not _locked(descriptor):
                check()
                time.sleep(_BETWEEN_S)
            yield

    @contextmanager
    def _tried(self, name: str) -> Iterator[bool]:
        """Hold a lock if nobody has it; whether we do."""
        with self._open(name) as descriptor:
            yield _locked(descriptor)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.root / "locks" / name, flags, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which may vanish meanwhile."""
    size = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            size += path.stat().st_size
    return size


def _changed(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return "not known any more"


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Errors of the operating system in our words."""
    try:
        yield
    except OSError as error:
        raise InferenceError(
            f"{doing} the plan cache failed ({error.strerror}): see that its disk has room and "
            f"that the node may write there; until then the engine's next runtime serves"
        ) from error
