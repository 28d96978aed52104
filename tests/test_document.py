"""TOML files and the lines of their keys."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.document import Where, parse, read
from node.domain.errors import ConfigError

TEXT = '''\
# a comment = "with a key"
title = "a # that is no comment, [nor] a = header"
dotted.key = 1

[node]
"quoted.key" = 1.5
long = """
[not.a.header]
""\\"
"""
[[peer]]
name = "a"  # first
hosts = [
  "one",  # with ]
  "two",
]
[[peer]]
name = 'b'
  [peer.limits]
  inner = { low = 1, rows = [{ x = 1 }, { x = 2979-05-27 07:32:00Z }] }
[[peer.port]]
number = 104
'''

LINES = {
    "title": 2,
    "dotted.key": 3,
    "node": 5,
    "node.quoted.key": 6,
    "node.long": 7,
    "peer[0]": 11,
    "peer[0].name": 12,
    "peer[0].hosts": 13,
    "peer[0].hosts[0]": 14,
    "peer[0].hosts[1]": 15,
    "peer[1]": 17,
    "peer[1].name": 18,
    "peer[1].limits": 19,
    "peer[1].limits.inner.low": 20,
    "peer[1].limits.inner.rows[1].x": 20,
    "peer[1].port[0]": 21,
    "peer[1].port[0].number": 22,
}


@pytest.mark.parametrize(("path", "line"), LINES.items())
def test_every_key_has_its_line(path: str, line: int) -> None:
    assert parse(TEXT).where.lines[path] == line


def test_the_index_has_the_paths_of_the_table_and_no_others() -> None:
    document = parse(TEXT)
    known = set(document.where.lines) - {"", "peer", "peer[1].port"}
    containers = {"peer", "peer[1].port"}
    assert known == set(_paths(document.table, "")) - containers


def _paths(value: object, path: str) -> Iterator[str]:
    """All paths of a table, told by tomllib's own reading of it."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{path}[{index}]")


_KEY = st.text("abc_-", min_size=1, max_size=3)
_SCALAR = st.sampled_from(
    ['"a]b#"', "'c = {'", "1.5", "-7", "true", "1979-05-27", "[1, [2]]", "{}"]
)


@given(st.dictionaries(_KEY, _SCALAR), st.lists(st.dictionaries(_KEY, _SCALAR), max_size=3))
def test_lines_hold_for_any_layout(root: dict[str, str], rows: list[dict[str, str]]) -> None:
    root.pop("a", None)
    lines = [f"{key} = {value}  # note" for key, value in root.items()]
    expected = {key: number for number, key in enumerate(root, 1)}
    for index, row in enumerate(rows):
        lines += ["", "[[a]]"]
        expected[f"a[{index}]"] = len(lines)
        for key, value in row.items():
            lines.append(f"  {key} = {value}")
            expected[f"a[{index}].{key}"] = len(lines)
    places = parse("\n".join(lines)).where.lines
    assert {path: places[path] for path in expected} == expected


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_are_counted_with_either_line_ending(ending: str) -> None:
    assert parse(f"a = 1{ending}b = 2{ending}").where.lines["b"] == 2


def test_a_place_tells_its_path_and_line() -> None:
    where = parse(TEXT, "node.toml").where.at("peer").item(1).at("name")
    assert (where.path, where.line) == ("peer[1].name", 18)
    assert str(where.fault("no")) == "node.toml:18: peer[1].name: no"


def test_an_absent_key_has_the_line_of_the_table_around_it() -> None:
    where = parse(TEXT).where
    assert where.at("peer").item(1).at("limits").at("absent").at("deeper").line == 19
    assert where.at("absent").line == 1


def test_a_place_in_no_file_has_line_0() -> None:
    assert Where().at("port").line == 0
    assert str(Where().at("port").fault("no")) == "port: no"


def test_a_place_lies_inside_its_table_but_not_inside_a_namesake() -> None:
    peer = Where(path="peer[1]")
    assert peer.at("port").inside(peer)
    assert not Where(path="peer[10]").inside(peer)
    assert not peer.inside(peer)


def test_a_syntax_error_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("a = 1\nb = = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{path}:2: .*column 5"):
        read(path)


def test_an_unfinished_text_is_wrong_at_its_last_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('a = 1\nb = """never closed\n')
    assert caught.value.faults[0].line == 2


def test_an_absent_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file.*ai-node init"):
        read(tmp_path / "node.toml")


def test_what_cannot_be_read_is_a_fault_too(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"a = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "latin")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_the_table_is_tomllibs() -> None:
    assert parse(TEXT).table == tomllib.loads(TEXT)
