"""Names, references and addresses: what no table shows alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.document import parse
from node.rules import ae_title_reason, rule_faults

PEER = '[[peer]]\nname = "{}"\nae_title = "{}"\n'


def told(text: str) -> list[str]:
    """The faults of a text, without the line."""
    return [f"{fault.path}: {fault.message}" for fault in rule_faults(parse(text))]


@pytest.mark.parametrize("title", ["A", "AE TITLE", "SIXTEEN_LETTERS_", "a-b_c.9", "0"])
def test_legal_ae_titles_pass(title: str) -> None:
    assert ae_title_reason(title) == ""


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("", "at least one character"),
        ("   ", "at least one character"),
        (" A", "spaces around"),
        ("SEVENTEEN_LETTERS", "at most 16 characters, not 17"),
        ("A\\B", "no backslash"),
        ("Ä", "printable ASCII"),
        ("A\tB", "printable ASCII"),
    ],
)
def test_illegal_ae_titles_are_told_why(title: str, reason: str) -> None:
    assert reason in ae_title_reason(title)


def test_sound_tables_break_no_rule() -> None:
    text = (
        '[[peer]]\nname = "pacs"\nae_title = "P"\nhost = "h"\nport = 104\n'
        '[[peer]]\nname = "mr"\nae_title = "M"\nhosts = ["192.0.2.0/24", "fd00::/8", "mr.local"]\n'
        '[[output]]\nkind = "seg"\nname = "seg"\n'
        '[[destination]]\nkind = "store"\nname = "pacs"\npeer = "pacs"\n'
        '[[engine]]\npackage = "x"\noutputs = ["seg"]\ndestinations = ["pacs"]\n'
        '[[trigger]]\nkind = "push"\n[[trigger]]\nkind = "query"\npeer = "pacs"\n'
    )
    assert told(text) == []


@pytest.mark.parametrize("family", ["peer", "output", "destination"])
def test_a_table_without_a_name_is_told(family: str) -> None:
    assert f"{family}[0].name: is missing, and it has no default" in told(f"[[{family}]]\n")


@pytest.mark.parametrize("family", ["peer", "trigger", "output", "destination"])
def test_a_name_is_given_once(family: str) -> None:
    text = f'[[{family}]]\nname = "a"\n[[{family}]]\nname = "b"\n[[{family}]]\nname = "a"\n'
    assert told(text) == [
        f"{family}[2].name: another {family} is called 'a' already (line 1); give each its own name"
    ]


def test_two_triggers_of_one_kind_need_names() -> None:
    unnamed = '[[trigger]]\nkind = "query"\n'
    assert told(unnamed * 2)[0].startswith("trigger[1].name: another trigger is called 'query'")
    assert told(unnamed + unnamed + 'name = "nightly"\n') == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('ae_title = "A\\\\B"', "ae_title: an AE title has printable ASCII"),
        ('ae_title = "A"\nport = 70000\nhost = "h"', "port: must be 0 to 65535, got 70000"),
        ('ae_title = "A"\nport = -1\nhost = "h"', "port: must be 0 to 65535, got -1"),
        (
            'ae_title = "A"\nport = 104',
            "host: is missing; a peer with a port is called at its host",
        ),
        ('ae_title = "A"\nquiet_period_s = 0', "quiet_period_s: must be greater than 0, got 0"),
        ('ae_title = "A"\ndeadline_s = inf', "deadline_s: must be greater than 0, got inf"),
        (
            'ae_title = "A"\nhosts = ["ok", "192.0.2.0/33"]',
            "hosts[1]: '192.0.2.0/33' is no network",
        ),
    ],
)
def test_a_peer_must_be_one_that_can_exist(line: str, fault: str) -> None:
    (only,) = told(f'[[peer]]\nname = "a"\n{line}\n')
    assert only.startswith(f"peer[0].{fault}")


def test_a_caller_is_one_peer() -> None:
    hosts = 'hosts = ["192.0.2.1", "192.0.2.2"]\n'
    text = PEER.format("a", "MR") + hosts + PEER.format("b", "MR") + 'hosts = ["192.0.2.2"]\n'
    (only,) = told(text)
    assert "the peer of line 1 calls as 'MR' from 192.0.2.2 too" in only


def test_the_same_ae_title_at_another_address_is_another_caller() -> None:
    text = PEER.format("a", "MR") + 'host = "h1"\n' + PEER.format("b", "MR") + 'host = "h2"\n'
    assert told(text) == []


@pytest.mark.parametrize("key", ["output", "destination"])
def test_an_engine_refers_to_what_exists(key: str) -> None:
    text = (
        f'[[{key}]]\nname = "archive"\n[[engine]]\npackage = "x"\n{key}s = ["archive", "achive"]\n'
    )
    assert told(text) == [
        f"engine[0].{key}s[1]: no {key} is called 'achive'; did you mean 'archive'? "
        "(known: archive)"
    ]


def test_a_reference_to_an_absent_family_says_how_to_add_one() -> None:
    (only,) = told('[[engine]]\npackage = "x"\ndestinations = ["pacs"]\n')
    assert only.endswith("(known: none; add one with a [[destination]] table)")


@pytest.mark.parametrize("family", ["trigger", "destination"])
def test_who_is_called_is_a_peer_with_a_port(family: str) -> None:
    called = f'[[{family}]]\nkind = "x"\nname = "x"\npeer = "pacs"\n'
    assert told(called) == [
        f"{family}[0].peer: no peer is called 'pacs' (known: none; add one with a [[peer]] table)"
    ]
    assert told(called + PEER.format("pacs", "P")) == [
        f"{family}[0].peer: the peer 'pacs' has no port, so it cannot be called"
    ]


def test_one_package_runs_once() -> None:
    engine = '[[engine]]\npackage = "x"\n'
    assert told(engine * 2) == ["engine[1].package: the engine of line 1 is 'x' too; disable one"]
    assert told(engine + engine + "enabled = false\n") == []


_FAMILIES = st.sampled_from(["peer", "trigger", "output", "destination", "engine"])
_KEYS = st.sampled_from(
    [
        "name",
        "kind",
        "ae_title",
        "host",
        "hosts",
        "port",
        "peer",
        "outputs",
        "package",
        "deadline_s",
    ]
)
_VALUES = st.sampled_from(['"a"', "1", "true", "[1]", '["a"]', "{}", "nan", '"a/b"'])


@given(st.lists(st.tuples(_FAMILIES, st.dictionaries(_KEYS, _VALUES)), max_size=4))
def test_wrong_shapes_are_stepped_over(tables: list[tuple[str, dict[str, str]]]) -> None:
    lines = [
        line
        for family, table in tables
        for line in [f"[[{family}]]", *(f"{key} = {value}" for key, value in table.items())]
    ]
    assert all(fault.line > 0 for fault in rule_faults(parse("\n".join(lines))))


@pytest.mark.parametrize("text", ["peer = 1", "peer = [1]", "engine = {}", "output = 'x'"])
def test_what_is_no_array_of_tables_is_left_to_the_frame(text: str) -> None:
    assert told(text) == []
