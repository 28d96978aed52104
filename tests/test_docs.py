"""What is written for people agrees with what the node is."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
from typer.main import get_command

from node.cli import app
from node.cli.families import registries
from node.config import Config, Document, check, frame, parse
from node.domain.peer import Peer
from node.manifest import understand
from node.shipped import folder
from node.tables import known_keys
from tests.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENING = "\n".join(README.splitlines()[:40])
CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
SHIPPED = (folder("config") / "node.toml").read_text(encoding="utf-8")

_OPTIONAL = re.compile(r"^# (?=\[\[\w+\]\]$|\[\w+\.\w+\]$|\w+ = |# )", re.MULTILINE)
"""A key or table that is there as a comment, and the comments of such a table."""


def everything() -> Document:
    """The shipped configuration with all that is commented out put to work."""
    return parse(_OPTIONAL.sub("", SHIPPED), "config/node.toml")


def shown(family: str) -> Iterator[tuple[str, set[str]]]:
    """Every table of a family in that file: its kind and its keys."""
    table = everything().table
    if family == "runtime":
        engines: Any = table["engine"]
        rows = [row for engine in engines for row in (engine["runtime"], *engine["fallback"])]
    else:
        rows = table[family]  # type: ignore[assignment]
    for row in rows:
        yield row["kind"], set(row)


MEMBERS: list[tuple[str, str, Any]] = [
    (family, kind, member)
    for family, kinds in registries().items()
    for kind, member in kinds.items()
]
"""Family, kind and class of every member that a configuration may name."""


@pytest.mark.parametrize(
    "words",
    [
        "receives DICOM studies",
        "**not** a medical device",
        "**not** a PACS",
        "**not** for diagnosis",
        "python3 -m venv ai-node-venv && ai-node-venv/bin/pip install . && "
        "ai-node-venv/bin/ai-node demo",
        "tests/run",
        "association -> Instance -> Study -> (Series, ...) -> Volume -> tensor -> [Finding]",
    ],
)
def test_the_readme_opens_with_what_a_newcomer_needs(words: str) -> None:
    assert words in OPENING


def test_the_readme_promises_what_holds() -> None:
    promise = "Exactly once per job record and per SOP UID; execution and sending are at least once"
    assert promise in README


def test_every_command_of_the_readme_exists() -> None:
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"(?:^|`|/)ai-node (\w+)", README, re.MULTILINE))
    assert used
    assert used <= names


@pytest.mark.parametrize(
    "family", ["engine", "trigger", "output", "runtime", "destination", "step"]
)
def test_contributing_and_readme_say_how_to_add_one(family: str) -> None:
    row = re.compile(rf"^\| an? {family} \|", re.MULTILINE)
    assert row.search(CONTRIBUTING)
    assert row.search(README)


def test_contributing_is_one_page() -> None:
    assert len(CONTRIBUTING.splitlines()) <= 60


def test_links_lead_somewhere() -> None:
    for text in (README, CONTRIBUTING):
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / link).exists(), link


def test_paths_in_the_tables_exist() -> None:
    for path in re.findall(r"`((?:node|tests|engines)/[\w/.]+)`", README + CONTRIBUTING):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("family", "kind", "member"), MEMBERS, ids=lambda value: getattr(value, "__name__", value)
)
def test_the_shipped_configuration_shows_every_option_of_a_member(
    family: str, kind: str, member: type[Any]
) -> None:
    options = {field.name for field in dataclasses.fields(member)}
    seen = [keys for shown_kind, keys in shown(family) if shown_kind == kind]
    assert seen, f"config/node.toml shows no {family} of kind {kind}"
    missing = options - set().union(*seen)
    assert not missing, f"config/node.toml lacks {missing} of {family} {kind}"


def frame_keys(cls: type[Any]) -> set[str]:
    """The keys of a table of the frame, as TOML has them."""
    from pydantic import TypeAdapter

    return set(known_keys(TypeAdapter[Any](cls).json_schema()))


def test_the_shipped_configuration_shows_every_key_of_the_frame() -> None:
    table: Mapping[str, Any] = everything().table
    assert frame_keys(Config) - set(table) == set()
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.default):
            section = type(field.default)
            assert frame_keys(section) - set(table[field.name]) == set(), field.name
    assert frame_keys(Peer) - set().union(*table["peer"]) == set()
    engine = frame(everything()).engines[0]
    assert frame_keys(type(engine)) - set().union(*table["engine"]) == set()


def test_the_shipped_configuration_is_sound_as_it_stands() -> None:
    config = check(parse(SHIPPED), registries())
    assert [engine.package for engine in config.engines] == ["mr-brain-lesion"]


def test_the_shipped_configuration_is_sound_with_everything_put_to_work() -> None:
    assert len(check(everything(), registries()).triggers) == 2


def test_sections_are_shown_with_their_defaults() -> None:
    shipped, default = frame(parse(SHIPPED)), Config()
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.default):
            assert getattr(shipped, field.name) == getattr(default, field.name)


@pytest.mark.parametrize(
    ("family", "kind", "member"), MEMBERS, ids=lambda value: getattr(value, "__name__", value)
)
def test_members_are_shown_with_their_defaults(family: str, kind: str, member: type[Any]) -> None:
    tables: Mapping[str, Any] = tomllib.loads(SHIPPED)
    rows = (
        [engine["runtime"] for engine in tables["engine"]]
        if family == "runtime"
        else tables[family]
    )
    for row in rows:
        for field in dataclasses.fields(member):
            if row["kind"] == kind and field.name in row and field.name != "peer":
                assert row[field.name] == field.default, field.name


def commented_keys() -> Iterator[tuple[str, str]]:
    """Every key of the shipped file with the comment above it (one comment may serve several)."""
    for paragraph in SHIPPED.split("\n\n"):
        comment = ""
        for above, line in pairwise(["", *paragraph.splitlines()]):
            key = _KEY.match(line)
            if key:
                yield key[1], comment
            elif line.startswith("#"):
                fresh = not above.startswith("#") or _KEY.match(above)
                comment = line if fresh else f"{comment} {line}"
            else:
                comment = ""


_KEY = re.compile(r"(?:# )?(\w+) = ")


@pytest.mark.parametrize(("ending", "word"), [("", "default"), ("_s", "second")])
def test_every_key_has_its_default_and_every_time_its_unit(ending: str, word: str) -> None:
    keys = [(key, comment) for key, comment in commented_keys() if key.endswith(ending)]
    explained = {key for key, comment in keys if word in comment.lower()}
    assert {key for key, _ in keys} - explained - {"kind"} == set()


def test_the_example_manifest_is_one() -> None:
    text = (ROOT / "engines/README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert understand(parse(example, "engines/README.md")).engine.name == "mr-lesion-example"


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "keepachangelog.com" in text
    assert "## [Unreleased]" in text


@pytest.mark.parametrize("script", ["tests/run", ".ci/run"])
def test_the_scripts_can_be_started(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
