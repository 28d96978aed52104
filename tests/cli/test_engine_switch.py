"""``engine enable`` and ``disable``: the file keeps what people wrote, and nothing half-ready is
live."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.cli.engine import editing
from node.cli.engine.editing import ConfigurationStays
from node.config import EngineSection, parse
from node.domain.event import EventKind
from node.ledger import Ledger
from node.shipped import folder
from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path, ai_node: Command) -> Shop:
    """With the engine ``bright`` on the shelf."""
    shop = opened(tmp_path)
    assert ai_node("engine", "add", shop.network, "--config", shop.config).code == 0
    return shop


def section(shop: Shop) -> EngineSection | None:
    """The engine's table in the configuration."""
    found = [one for one in shop.settings.engines if one.package == "bright"]
    return found[0] if found else None


def switch(shop: Shop, ai_node: Command, *words: object) -> Said:
    return ai_node("engine", words[0], "bright", *words[1:], "--config", shop.config)


def test_shadow_adds_a_table_and_keeps_every_line_of_the_file(shop: Shop, ai_node: Command) -> None:
    before = shop.config.read_text().splitlines()
    said = switch(shop, ai_node, "enable", "--shadow")
    assert said.code == 0, said.err
    after = shop.config.read_text().splitlines()
    fresh = [
        "[[engine]]", 'package = "bright"', 'outputs = ["seg", "sr"]',
        'destinations = ["archive"]', 'mode = "shadow"', "",
    ]  # fmt: skip
    start = next(n for n in range(len(before)) if before[n] != after[n])
    assert after[:start] + after[start + len(fresh) :] == before
    assert sorted(after[start : start + len(fresh)]) == sorted(fresh)
    assert '+mode = "shadow"' in said.out
    assert "systemctl reload" in said.out
    assert ai_node("check", "--config", shop.config).code == 0


def test_outputs_and_destinations_can_be_chosen(shop: Shop, ai_node: Command) -> None:
    switch(shop, ai_node, "enable", "--shadow", "--output", "sr", "--destination", "archive")
    chosen = section(shop)
    assert chosen is not None
    assert chosen.outputs == ("sr",)
    switch(shop, ai_node, "enable", "--shadow", "--output", "seg", "--output", "sr")
    chosen = section(shop)
    assert chosen is not None
    assert chosen.outputs == ("seg", "sr")


def test_what_would_make_the_file_wrong_changes_nothing(shop: Shop, ai_node: Command) -> None:
    before = shop.config.read_bytes()
    said = switch(shop, ai_node, "enable", "--shadow", "--destination", "nowhere")
    assert said.code == 2
    assert "nowhere" in said.err
    assert shop.config.read_bytes() == before


def test_one_of_shadow_and_live_has_to_be_said(shop: Shop, ai_node: Command) -> None:
    assert switch(shop, ai_node, "enable").code == 2
    assert switch(shop, ai_node, "enable", "--shadow", "--live").code == 2


def test_live_is_refused_with_everything_that_is_missing(shop: Shop, ai_node: Command) -> None:
    before = shop.config.read_bytes()
    said = switch(shop, ai_node, "enable", "--live")
    assert said.code == 1
    for words in ("no CARD.md", "not verified", "still guessed", "--reason"):
        assert words in said.err
    assert shop.config.read_bytes() == before


@pytest.mark.parametrize("lacking", ["card", "verdict", "guesses", "reason", ""])
def test_live_wants_a_card_a_verdict_no_guess_and_a_reason(
    shop: Shop, ai_node: Command, lacking: str
) -> None:
    if lacking != "guesses":
        shop.correct()
    if lacking != "card":
        shop.write_card()
    if lacking != "verdict":
        assert ai_node("engine", "verify", "bright", "--config", shop.config).code == 0
    reason = () if lacking == "reason" else ("--reason", "trial is over")
    said = switch(shop, ai_node, "enable", "--live", *reason)
    assert said.code == (1 if lacking else 0), said.err
    assert said.err.count("  - ") == bool(lacking)
    found = section(shop)
    assert (found.mode if found else "") == ("" if lacking else "live")


def test_guesses_can_be_accepted(shop: Shop, ai_node: Command) -> None:
    shop.write_card()
    ai_node("engine", "verify", "bright", "--config", shop.config)
    said = switch(
        shop, ai_node, "enable", "--live", "--accept-guesses", "--reason", "they are right"
    )
    assert said.code == 0, said.err


def test_a_verdict_of_another_package_does_not_count(shop: Shop, ai_node: Command) -> None:
    ai_node("engine", "verify", "bright", "--config", shop.config)
    shop.correct()
    shop.write_card()
    said = switch(shop, ai_node, "enable", "--live", "--reason", "x")
    assert "not verified" in said.err


def test_a_verification_that_failed_keeps_an_engine_from_patients(
    shop: Shop, ai_node: Command
) -> None:
    shop.correct()
    shop.write_card()
    golden = shop.added / "golden"
    golden.mkdir()
    np.save(golden / "input.npy", np.full((1, 1, 8, 8), 5.0, np.float32))
    np.save(golden / "expected.npy", np.zeros((1, 1, 8, 8), np.float32))
    assert ai_node("engine", "verify", "bright", "--config", shop.config).code == 1
    said = switch(shop, ai_node, "enable", "--live", "--reason", "x")
    assert said.code == 1
    assert "its verification failed: golden" in said.err


def test_shadow_becomes_live_in_the_same_table(shop: Shop, ai_node: Command) -> None:
    switch(shop, ai_node, "enable", "--shadow")
    shop.correct()
    shop.write_card()
    ai_node("engine", "verify", "bright", "--config", shop.config)
    said = switch(shop, ai_node, "enable", "--live", "--reason", "shadow showed no fault")
    assert said.code == 0, said.err
    assert [one.mode for one in shop.settings.engines] == ["live", "live"]
    assert '-mode = "shadow"\n+mode = "live"' in said.out


def test_disable_keeps_the_table_and_enable_brings_it_back(shop: Shop, ai_node: Command) -> None:
    switch(shop, ai_node, "enable", "--shadow", "--output", "sr")
    switch(shop, ai_node, "disable")
    found = section(shop)
    assert found is not None
    assert (found.enabled, found.outputs) == (False, ("sr",))
    switch(shop, ai_node, "enable", "--shadow")
    found = section(shop)
    assert found is not None
    assert (found.enabled, found.outputs) == (True, ("sr",))


def test_what_is_so_already_changes_nothing(shop: Shop, ai_node: Command) -> None:
    switch(shop, ai_node, "enable", "--shadow")
    before = shop.config.stat().st_ino
    said = switch(shop, ai_node, "enable", "--shadow")
    assert "already" in said.out
    assert shop.config.stat().st_ino == before


def test_disable_of_what_is_not_configured_is_refused(shop: Shop, ai_node: Command) -> None:
    assert "no [[engine]] table for bright" in switch(shop, ai_node, "disable").err


def test_a_dry_run_shows_the_difference_only(shop: Shop, ai_node: Command) -> None:
    before = shop.config.read_bytes()
    said = switch(shop, ai_node, "enable", "--shadow", "--dry-run")
    assert '+package = "bright"' in said.out
    assert shop.config.read_bytes() == before


def test_who_did_it_and_why_is_on_record(shop: Shop, ai_node: Command) -> None:
    ledger = Ledger.open(shop.folder / "state" / "ledger.sqlite")
    said = switch(shop, ai_node, "enable", "--shadow", "--reason", "a first look", "--actor", "kim")
    assert "On record by kim" in said.out
    with ledger.read() as books:
        event = books.events.latest(EventKind.OPERATOR)
    ledger.close()
    assert event is not None
    assert (event.actor, event.words) == ("kim", "engine bright: enabled, shadow: a first look")


def test_the_file_keeps_its_mode_and_stays_a_link(shop: Shop, ai_node: Command) -> None:
    place = shop.folder / "elsewhere.toml"
    shop.config.rename(place)
    shop.config.symlink_to(place)
    place.chmod(0o640)
    owner = place.stat().st_uid
    switch(shop, ai_node, "enable", "--shadow")
    assert shop.config.is_symlink()
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert place.stat().st_uid == owner
    assert not list(shop.folder.glob(".*node.toml*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_file_keeps_its_owner(shop: Shop, ai_node: Command) -> None:
    os.chown(shop.config, 1234, 2345)
    switch(shop, ai_node, "enable", "--shadow")
    assert (shop.config.stat().st_uid, shop.config.stat().st_gid) == (1234, 2345)


def test_a_file_that_somebody_else_changes_is_left_alone(shop: Shop) -> None:
    before = shop.config.read_text()
    shop.config.write_text(before + "# by somebody else\n")
    with pytest.raises(ConfigurationStays, match="changed by somebody else"):
        editing.replace_file(shop.config, before, before + "# by us\n")
    assert shop.config.read_text() == before + "# by somebody else\n"
    assert not list(shop.folder.glob(".node.toml-*"))


# ---- The text --------------------------------------------------------------------------------

SHIPPED = (folder("config") / "node.toml").read_text(encoding="utf-8")
PLAIN = """\
[node]
ae_title = "A"  # ours

# ---- Engines

[[engine]]
package = "one"
# what it makes
outputs = [
  "seg",  # first
  "sr",
]
# nothing else

# ---- Jobs
[jobs]
attempts = 2
"""


def test_a_new_table_stands_before_the_heading_of_what_follows() -> None:
    text = editing.with_engine(PLAIN, {"package": "two", "outputs": ["sr"]})
    assert text == PLAIN.replace(
        "# nothing else\n", '# nothing else\n\n[[engine]]\npackage = "two"\noutputs = ["sr"]\n'
    )


def test_a_new_key_stands_in_its_table_not_below_the_next_heading() -> None:
    text = editing.with_values(PLAIN, 0, {"mode": "shadow"})
    assert text == PLAIN.replace("# nothing else\n", '# nothing else\nmode = "shadow"\n')


def test_what_is_written_behind_a_value_stays() -> None:
    text = PLAIN.replace("# nothing else", 'mode = "shadow"  # since May')
    changed = editing.with_values(text, 0, {"mode": "live"})
    assert changed == text.replace('"shadow"', '"live"')


def test_a_first_engine_is_added_to_a_file_without_any() -> None:
    text = editing.with_engine('[node]\nae_title = "A"\n', {"package": "two"})
    assert parse(text).table["engine"] == [{"package": "two"}]
    assert text.startswith('[node]\nae_title = "A"\n')


def test_the_only_engine_is_taken_away_without_what_surrounds_it() -> None:
    text = editing.without_engine(PLAIN, 0)
    assert "[[engine]]" not in text
    assert text.index("# ---- Engines") < text.index("# ---- Jobs") < text.index("[jobs]")
    assert parse(text).table == {key: value for key, value in parse(PLAIN).table.items()
                                 if key != "engine"}  # fmt: skip


@settings(max_examples=40)
@given(names=st.lists(st.sampled_from("abcd"), min_size=1, unique=True), data=st.data())
def test_tables_that_come_and_go_leave_the_file_as_it_was(
    names: list[str], data: st.DataObject
) -> None:
    changed = PLAIN
    for name in names:
        changed = editing.with_engine(changed, {"package": name, "outputs": ["sr"]})
    tables = parse(changed).table["engine"]
    assert isinstance(tables, list)
    assert [one["package"] for one in tables] == ["one", *names]
    for left in range(len(names), 0, -1):
        changed = editing.without_engine(changed, data.draw(st.integers(1, left)))
    assert changed == PLAIN


def test_the_shipped_configuration_is_left_as_it_was() -> None:
    count = len(tables) if isinstance(tables := parse(SHIPPED).table["engine"], list) else 0
    changed = editing.with_engine(SHIPPED, {"package": "two", "outputs": ["sr"]})
    assert changed.count("[[engine]]") == SHIPPED.count("[[engine]]") + 1
    assert editing.without_engine(changed, count) == SHIPPED
