"""The roster: which engines may run, and that each is verified before it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node import bundle as bundles
from node.config import Config, EngineSection, Entry, NodeSection
from node.domain.errors import ConfigError
from node.domain.event import EventKind
from node.domain.volume import Volume
from node.ladder import Footing, Ladder, Losses, NoRung, Rung
from node.residency import Residency
from node.roster import (
    Surroundings,
    Tenant,
    config_digest,
    identities,
    on_device,
    planner,
    resident,
    setups,
    unnoticed,
)
from node.verdicts import Records
from tests.acceptance.hospital import tiny_engine
from tests.conftest import Clock
from tests.engines.package import PARTS, package
from tests.rungs import Device, Fate

OUTPUTS = (Entry("seg", "seg"), Entry("sr", "sr"))


def configured(state: Path, *engines: EngineSection) -> Config:
    return Config(node=NodeSection(state=state), outputs=OUTPUTS, engines=engines)


def section(package: Path, **changes: object) -> EngineSection:
    return replace(EngineSection(f"{package}", ("seg", "sr")), **changes)  # type: ignore[arg-type]


def broken_engine(directory: Path) -> Path:
    """A package that reads, with a model that nothing can load."""
    folder = directory / "broken"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"no model")
    package(folder, *PARTS)
    (folder / "CARD.md").write_text("# Broken\n")
    manifest = folder / "engine.toml"
    manifest.write_text(manifest.read_text().replace('name = "tester"', 'name = "broken"'))
    return folder


def test_an_engine_is_verified_before_it_serves_and_the_verdict_is_kept(tmp_path: Path) -> None:
    told: list[tuple[EventKind, str]] = []
    config = configured(tmp_path / "state", section(tiny_engine(tmp_path)))
    for _ in range(2):
        setup = setups(config, Surroundings(lambda *event: told.append(event)))["tester"]
        setup.engine.close()
    (event,) = told
    assert event[0] is EventKind.ENGINE
    assert "passed its verification" in event[1]
    (kept,) = (tmp_path / "state/verified").glob("*.json")
    assert json.loads(kept.read_text())["passed"] is True


def test_a_live_engine_without_a_model_card_is_refused_and_one_in_shadow_is_not(
    tmp_path: Path,
) -> None:
    folder = tiny_engine(tmp_path)
    (folder / "CARD.md").unlink()
    live = configured(tmp_path / "state", section(folder))
    for asked in (identities, setups):
        with pytest.raises(ConfigError, match="CARD.md"):
            asked(live)
    shadow = configured(tmp_path / "state", section(folder, mode="shadow", destinations=("pacs",)))
    setup = setups(shadow)["tester"]
    assert setup.recipients == ()
    setup.engine.close()


def test_an_engine_that_nothing_computes_leaves_the_others_serving(tmp_path: Path) -> None:
    told: list[tuple[EventKind, str]] = []
    sections = (section(broken_engine(tmp_path)), section(tiny_engine(tmp_path)))
    around = Surroundings(lambda *event: told.append(event))
    made = setups(configured(tmp_path / "state", *sections), around)
    assert sorted(made) == ["broken", "tester"]
    assert [kind for kind, _ in told] == [EventKind.ALARM, EventKind.ENGINE]
    with pytest.raises(NoRung, match="nothing can compute the engine broken"):
        made["broken"].engine.examine({}, "job")
    for setup in made.values():
        setup.engine.close()


def test_where_nothing_computes_any_engine_nothing_starts(tmp_path: Path) -> None:
    config = configured(tmp_path / "state", section(broken_engine(tmp_path)))
    with pytest.raises(NoRung, match="onnx: .*is no ONNX model"):
        setups(config)


def test_engines_share_a_device_and_the_one_used_longest_ago_makes_room(tmp_path: Path) -> None:
    """Three networks of 400 bytes on a device of 1000: two stay."""
    residency = Residency[Ladder](1000, context=0)
    volumes = {"flair": Volume(np.zeros((3, 16, 16), np.float32), np.eye(4), "1.2")}
    fates = {name: Fate(used=400) for name in "abc"}
    bundle = bundles.read(tiny_engine(tmp_path))
    for name, fate in fates.items():
        footing = Footing(
            Records(tmp_path / name), Losses(tmp_path / name / "losses"), unnoticed, 0.0
        )
        ladder = Ladder(bundle, [Rung("gpu", Device("GPU", fate))], footing)
        residency.admit(resident(name, ladder))
    for name in "abcab":
        assert Tenant(name, residency).examine(volumes, "job").findings == ()
    assert residency.loaded == ("a", "b")
    assert [fate.loads for fate in fates.values()] == [2, 2, 1]
    for name in fates:
        Tenant(name, residency).close()
    assert [fate.closed for fate in fates.values()] == [2, 2, 1]


def test_an_engine_that_the_hospital_added_is_found_by_its_name(tmp_path: Path) -> None:
    tiny_engine(tmp_path / "state/engines")
    (found,) = identities(configured(tmp_path / "state", section(Path("tiny"))))
    assert found.name == "tester"


def test_what_may_compute_a_result_makes_another_job_and_where_it_goes_does_not() -> None:
    plain = section(Path("x"))
    config = configured(Path("state"), plain)
    digest = config_digest(plain, config)
    lower = replace(plain, fallback=(Entry("onnx", "onnx"),))
    assert config_digest(lower, config) != digest
    assert config_digest(replace(plain, mode="shadow"), config) == digest
    assert config_digest(replace(plain, destinations=("pacs",)), config) == digest


def test_a_gpu_in_a_fallback_is_a_gpu_and_one_of_a_disabled_engine_is_none() -> None:
    gpu = section(Path("x"), fallback=(Entry("tensorrt", "tensorrt"),))
    assert on_device(configured(Path("state"), gpu))
    assert not on_device(configured(Path("state"), replace(gpu, enabled=False)))
    assert not on_device(configured(Path("state"), section(Path("x"))))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA device")
def test_without_a_gpu_an_engine_for_one_says_what_is_missing_and_serves_from_the_cpu(
    tmp_path: Path,
) -> None:
    told: list[tuple[EventKind, str]] = []
    entries = {"runtime": Entry("tensorrt", "tensorrt"), "fallback": (Entry("onnx", "onnx"),)}
    config = configured(tmp_path / "state", section(tiny_engine(tmp_path), **entries))
    plans = planner(config, lambda *event: told.append(event), Clock())
    around = Surroundings(lambda *event: told.append(event), Clock(), planner=plans)
    setup = setups(config, around)["tester"]
    (alarm,) = [words for kind, words in told if kind is EventKind.ALARM]
    assert alarm.startswith("tester steps down from tensorrt: ")
    assert "driver" in alarm
    assert "onnx is next" in alarm
    assert "ONNX Runtime" in setup.computation.runtime
    setup.engine.close()
