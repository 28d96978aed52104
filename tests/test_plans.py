"""The cache of plans: what it gives is what was kept, whatever happened in between."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.domain.errors import InferenceError, JobCancelled
from node.plans import PLAN, TIMING, Key, Plans, StoreStage
from tests.chaos.tracing import strace
from tests.conftest import Clock
from tests.places import ROOT

KEY = Key("a" * 64, "tensorrt", "11.4.0.106", "fp16", "13000", "9.0", "NVIDIA H200", 150 << 30)
OTHER = replace(KEY, weights="b" * 64)
PLENTY = 1 << 30
TOLD = {"layers": 7}


def plans(folder: Path, limit: int = PLENTY, clock: Clock | None = None) -> Plans:
    return Plans(folder / "plans", limit, clock or Clock())


def files(cache: Plans, key: Key = KEY) -> Path:
    return cache.root / key.digest


def unbuildable(folder: Path) -> Mapping[str, Any]:
    pytest.fail("it is there and must not be built")


def test_plan_is_what_was_kept_also_for_the_next_process(tmp_path: Path) -> None:
    plans(tmp_path).store(KEY, b"machine code", TOLD)
    assert plans(tmp_path).load(KEY) == b"machine code"
    assert plans(tmp_path).load(OTHER) is None
    (kept,) = plans(tmp_path).kept()
    assert kept.told == TOLD
    assert kept.key["device"] == "NVIDIA H200"
    assert kept.size >= len(b"machine code")


def test_another_anything_is_another_plan() -> None:
    others: dict[str, Any] = {
        "memory": 80 << 30,
        "profiles": (("image", (1, 1), (2, 1), (4, 1)),),
        "settings": (("tf32", True),),
        "schema": 2,
    }
    digests = {KEY.digest}
    for one in fields(Key):
        digests.add(replace(KEY, **{one.name: others.get(one.name, "another")}).digest)
    assert len(digests) == 1 + len(fields(Key))


def test_key_of_a_recipe_holds_all_of_it() -> None:
    identity = json.loads(json.dumps(asdict(KEY))) | {
        "profiles": [{"tensor": "image", "smallest": [1], "usual": [2], "largest": [4]}],
        "settings": {"workspace": 5, "level": 3},
    }
    key = Key.of(identity)
    assert key.profiles == (("image", (1,), (2,), (4,)),)
    assert key.settings == (("level", 3), ("workspace", 5))
    assert Key.of(identity | {"settings": {"level": 3, "workspace": 5}}).digest == key.digest
    for wrong in ({"colour": "red"}, {}):
        broken = {k: v for k, v in identity.items() if k != "weights"} | wrong
        with pytest.raises(TypeError):
            Key.of(broken)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan changed", "its sha256 is"),
        ("plan cut", "its sha256 is"),
        ("plan gone", "plan is missing"),
        ("meta gone", "meta.json is missing"),
        ("meta changed", "meta.json is damaged"),
        ("meta of another", "the plan of another key"),
    ],
)
def test_damaged_plan_is_never_given_and_put_aside_with_the_reason(
    tmp_path: Path, name: str, words: str
) -> None:
    cache = plans(tmp_path)
    cache.store(KEY, b"machine code" * 100)
    cache.store(OTHER, b"other code" * 100)
    folder, other = files(cache), files(cache, OTHER)
    meta = folder / "meta.json"
    damage: dict[str, Callable[[], object]] = {
        "plan changed": lambda: flip(folder / PLAN),
        "plan cut": lambda: cut(folder / PLAN),
        "plan gone": (folder / PLAN).unlink,
        "meta gone": meta.unlink,
        "meta changed": lambda: meta.write_text("{"),
        "meta of another": lambda: meta.write_bytes((other / "meta.json").read_bytes()),
    }
    damage[name]()
    assert cache.load(KEY) is None
    (rejected,) = cache.quarantined()
    assert rejected.digest == KEY.digest
    assert words in rejected.reason
    assert cache.load(OTHER) == b"other code" * 100
    assert cache.obtain(KEY, lambda folder: written(folder, b"anew")) == b"anew"


def written(folder: Path, plan: bytes) -> Mapping[str, Any]:
    (folder / PLAN).write_bytes(plan)
    return TOLD


def test_plan_that_does_not_load_is_put_aside_and_built_again(tmp_path: Path) -> None:
    cache = plans(tmp_path)
    for plan in (b"1", b"2"):
        assert cache.obtain(KEY, partial(written, plan=plan)) == plan
        cache.quarantine(KEY, "the library gave None")
    cache.quarantine(KEY, "there is nothing to put aside")
    assert [one.reason for one in cache.quarantined()] == ["the library gave None"] * 2
    assert cache.load(KEY) is None


def test_failed_build_keeps_nothing_and_goes_up(tmp_path: Path) -> None:
    cache = plans(tmp_path)

    def build(folder: Path) -> Mapping[str, Any]:
        written(folder, b"half of")
        raise InferenceError("node 7 is unknown")

    with pytest.raises(InferenceError, match="node 7"):
        cache.obtain(KEY, build)
    assert cache.kept() == ()
    assert list((cache.root / "drafts").iterdir()) == []


def test_what_was_measured_goes_to_the_next_build_on_the_same_device(tmp_path: Path) -> None:
    cache, found = plans(tmp_path), []

    def build(folder: Path) -> Mapping[str, Any]:
        cache_file = folder / TIMING
        found.append(cache_file.read_bytes() if cache_file.exists() else None)
        cache_file.write_bytes(b"measured")
        return written(folder, b"plan")

    for key in (KEY, OTHER, replace(KEY, driver="14000"), replace(KEY, precision="fp32")):
        cache.obtain(key, build)
    assert found == [None, b"measured", None, b"measured"]


def test_nobody_else_may_read_or_write(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir(mode=0o777)
    cache = plans(tmp_path)
    cache.store(KEY, b"machine code")
    for path in (cache.root, *cache.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    plans(tmp_path)
    os.chown(tmp_path / "plans", 12345, -1)
    with pytest.raises(InferenceError, match="belongs to another user"):
        plans(tmp_path)


def test_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    cache = plans(tmp_path)
    cache.store(KEY, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InferenceError, match="see that its disk has room"):
            cache.store(KEY, b"new" * 100)
        with pytest.raises(InferenceError, match="see that its disk has room"):
            cache.store(OTHER, b"small, but its meta.json is not")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache.load(KEY) == b"old"
    assert [one.digest for one in cache.kept()] == [KEY.digest]


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_of_two_one_builds_and_the_other_waits_for_it(tmp_path: Path) -> None:
    building, waiting = threading.Event(), threading.Event()

    def build(folder: Path) -> Mapping[str, Any]:
        building.set()
        assert waiting.wait(30)
        return written(folder, b"once")

    first, made = in_thread(lambda: plans(tmp_path).obtain(KEY, build))
    assert building.wait(30)
    assert plans(tmp_path).obtain(KEY, unbuildable, waiting.set) == b"once"
    first.join(30)
    assert made == [b"once"]


def test_another_process_builds_and_waiting_can_be_stopped(tmp_path: Path) -> None:
    with builder(tmp_path) as process:

        def impatient() -> None:
            raise JobCancelled("nobody wants it any more")

        with pytest.raises(JobCancelled):
            plans(tmp_path).obtain(KEY, unbuildable, impatient)
        plans(tmp_path).quarantine(KEY, "it is being built: nothing happens")
        assert plans(tmp_path).evict() == ()

        def go_on() -> None:
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()

        assert plans(tmp_path).obtain(KEY, unbuildable, go_on) == b"built elsewhere"


def test_builder_that_is_killed_holds_up_nobody(tmp_path: Path) -> None:
    with builder(tmp_path) as process:
        process.kill()
        process.wait(30)
        assert plans(tmp_path).obtain(KEY, lambda folder: written(folder, b"here")) == b"here"
    assert list((tmp_path / "plans" / "drafts").iterdir()) == []


@contextmanager
def builder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun to build ``KEY`` and ends that when its standard input does."""
    code = f"""
import sys
from pathlib import Path
from node.plans import Plans
from tests.test_plans import KEY, written
def build(folder):
    print("building", flush=True)
    sys.stdin.read()
    return written(folder, b"built elsewhere")
Plans(Path({str(folder / "plans")!r}), {PLENTY}).obtain(KEY, build)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        yield process


KILLED = """
import os, signal, sys
from pathlib import Path
from node.plans import Plans
from tests.test_plans import KEY
def reached(stage):
    if stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
Plans(Path(sys.argv[1]), 1 << 30, reached=reached).store(KEY, b"new code" * 1000, {})
"""


@pytest.mark.parametrize("before", [None, b"old code" * 1000], ids=["fresh", "replacing"])
@pytest.mark.parametrize("stage", list(StoreStage))
def test_kill_while_a_plan_is_kept_leaves_a_whole_plan_or_none(
    tmp_path: Path, stage: StoreStage, before: bytes | None
) -> None:
    cache = plans(tmp_path)
    if before:
        cache.store(KEY, before)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(cache.root), stage], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    named = stage in {StoreStage.NAMED, StoreStage.DURABLE}
    left = None if stage is StoreStage.CLEARED else before
    assert cache.load(KEY) == (b"new code" * 1000 if named else left)
    assert cache.quarantined() == ()
    cache.store(KEY, b"next")
    assert cache.load(KEY) == b"next"
    assert list((cache.root / "drafts").iterdir()) == []


def test_plan_is_named_only_when_it_is_on_disk(tmp_path: Path) -> None:
    """The order of system calls: every file and the folder, then the name, then its folder."""
    cache, calls = plans(tmp_path), tmp_path / "calls"
    traced = [strace(), "-f", "-y", "-o", str(calls), "-e", "trace=fsync,rename"]
    command = [*traced, sys.executable, "-c", KILLED, str(cache.root), "never"]
    subprocess.run(command, cwd=ROOT, check=True)
    ours = [line for line in calls.read_text().splitlines() if str(cache.root) in line]
    draft = cache.root / "drafts" / KEY.digest
    (renamed,) = [n for n, line in enumerate(ours) if f'rename("{draft}"' in line]
    before, after = ours[:renamed], ours[renamed + 1 :]
    for name in ("", "/plan", "/meta.json", "/used"):
        assert any(f"<{draft}{name}>" in line and line.endswith("= 0") for line in before), name
    assert [f"<{cache.root}>" in line for line in after] == [True]


# A random history against a model: what is there, in which order it goes, what is put aside.

UNIT = 20_000
"""Bytes: enough for the few hundred of meta.json not to matter."""
NAMES = "abc"
LIMIT = 5
NAME = st.sampled_from(NAMES)
STEP = st.one_of(
    st.tuples(st.just("store"), NAME, st.integers(1, 4)),
    st.tuples(st.sampled_from(["store", "load"]), NAME, st.integers(1, 4)),
    st.tuples(st.sampled_from(["corrupt", "reject", "pin", "unpin", "evict"]), NAME, st.just(0)),
)


def key_of(name: str) -> Key:
    return replace(KEY, weights=name * 64)


class Model:
    """What the cache should hold: units, whole or not, in the order of use."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[int, bool, int]] = {}
        self.aside: list[tuple[str, int]] = []
        self.pins: set[str] = set()

    def store(self, name: str, units: int, turn: int) -> None:
        self.kept.pop(name, None)
        self.kept[name] = (units, True, turn)
        self.evict(name)

    def load(self, name: str, turn: int) -> int | None:
        if name not in self.kept:
            return None
        units, whole, _ = self.kept.pop(name)
        if not whole:
            self.aside.append((name, units))
            return None
        self.kept[name] = (units, True, turn)
        return units

    def reject(self, name: str) -> None:
        if name in self.kept:
            self.aside.append((name, self.kept.pop(name)[0]))

    def corrupt(self, name: str) -> None:
        if name in self.kept:
            units, _, turn = self.kept[name]
            self.kept[name] = (units, False, turn)

    def evict(self, keep: str = "") -> None:
        while self.aside and self._over():
            self.aside.pop(0)
        for name in list(self.kept):
            if self._over() and name != keep and name not in self.pins:
                del self.kept[name]

    def _over(self) -> bool:
        kept = sum(units for units, _, _ in self.kept.values())
        return kept + sum(units for _, units in self.aside) > LIMIT


class Real:
    """The cache, told the same."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.cache = Plans(root, LIMIT * UNIT + UNIT // 2, clock)
        self.pins: dict[str, ExitStack] = {}

    def do(self, step: str, name: str, units: int) -> int | None:
        key, folder = key_of(name), self.cache.root / key_of(name).digest
        match step:
            case "store":
                self.cache.store(key, name.encode() * UNIT * units)
            case "load":
                plan = self.cache.load(key)
                assert plan is None or set(plan) == set(name.encode())
                return None if plan is None else len(plan) // UNIT
            case "corrupt" if folder.exists():
                # Once more would make it whole again.
                (folder / PLAN).write_bytes(b"!" * (folder / PLAN).stat().st_size)
            case "reject":
                self.cache.quarantine(key, "does not load")
            case "pin":
                self.pins.setdefault(name, ExitStack()).enter_context(self.cache.pinned(key))
            case "unpin" if name in self.pins:
                self.pins.pop(name).close()
            case "evict":
                self.cache.evict()
        return None


def imagine(model: Model, step: str, name: str, units: int, turn: int) -> int | None:
    match step:
        case "store":
            model.store(name, units, turn)
        case "load":
            return model.load(name, turn)
        case "corrupt":
            model.corrupt(name)
        case "reject":
            model.reject(name)
        case "pin":
            model.pins.add(name)
        case "unpin":
            model.pins.discard(name)
        case "evict":
            model.evict()
    return None


@settings(max_examples=50)
@given(steps=st.lists(STEP, min_size=10, max_size=20))
def test_any_history_is_that_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    clock, model = Clock(), Model()
    real = Real(tmp_path_factory.mktemp("plans"), clock)
    digests = {key_of(name).digest: name for name in NAMES}
    for turn, (step, name, units) in enumerate(steps):
        clock.advance(1)
        assert real.do(step, name, units) == imagine(model, step, name, units, turn)
        assert [digests[one.digest] for one in real.cache.kept()] == list(model.kept)
        aside = [digests[one.digest] for one in real.cache.quarantined()]
        assert aside == [name for name, _ in model.aside]
    for stack in real.pins.values():
        stack.close()


def test_sha256_is_kept_beside_the_plan(tmp_path: Path) -> None:
    cache = plans(tmp_path)
    cache.store(KEY, b"machine code")
    meta = json.loads((files(cache) / "meta.json").read_bytes())
    assert meta["sha256"] == hashlib.sha256(b"machine code").hexdigest()
