"""The difference between two configurations, in words, and what a running node can take up."""

from __future__ import annotations

import pytest

from node.config import Config, frame, parse
from node.reload import HIDDEN, Change, changed_keys, difference, digest, keys_digests, reloadable

BASE = """
[node]
ae_title = "BRAIN"
[scp]
port = 11112
[[peer]]
name = "mr1"
ae_title = "MR1"
hosts = ["192.0.2.17"]
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example"
port = 104
[[trigger]]
kind = "push"
quiet_period_s = 10
[[output]]
kind = "seg"
name = "seg"
series_number = 9101
[[destination]]
kind = "store"
name = "archive"
peer = "pacs"
[[engine]]
package = "brain"
outputs = ["seg"]
runtime = { kind = "onnx", threads = 2 }
[logging]
level = "info"
"""


def config(text: str = BASE) -> Config:
    return frame(parse(text, "/etc/node.toml"))


def changed(old: str, new: str, text: str = BASE) -> tuple[Change, ...]:
    assert old in text
    return difference(config(text), config(text.replace(old, new)))


def test_equal_configurations_have_no_difference() -> None:
    assert difference(config(), config()) == ()
    assert difference(config(), config("# a comment\n" + BASE)) == ()
    assert digest(config()) == digest(config())


@pytest.mark.parametrize(
    ("old", "new", "words", "at_once"),
    [
        ("port = 104", "port = 105", "peer pacs.port: 104 becomes 105", True),
        ('"MR1"', '"MR2"', 'peer mr1.ae_title: "MR1" becomes "MR2"', True),
        ('["192.0.2.17"]', "[]", 'peer mr1.hosts: ["192.0.2.17"] becomes []', True),
        ("period_s = 10", "period_s = 20", "trigger push.quiet_period_s: 10 becomes 20", True),
        ('"info"', '"debug"', 'logging.level: "info" becomes "debug"', True),
        ("= 11112", "= 11113", "scp.port: 11112 becomes 11113", False),
        ('"BRAIN"', '"OTHER"', 'node.ae_title: "BRAIN" becomes "OTHER"', False),
        ("9101", "9102", "output seg.series_number: 9101 becomes 9102", False),
        ("threads = 2", "threads = 4", "engine brain.runtime.threads: 2 becomes 4", False),
        ('peer = "pacs"', 'peer = "mr1"\nproof = "auto"', "", True),
    ],
)
def test_a_change_is_told_in_words_and_sorted(
    old: str, new: str, words: str, at_once: bool
) -> None:
    if not words:
        text = BASE.replace('hosts = ["192.0.2.17"]', 'host = "mr1"\nport = 104')
        changes = changed(old, new, text)
        assert [change.path for change in changes] == [
            "destination archive.peer",
            "destination archive.proof",
        ]
    else:
        changes = changed(old, new)
        assert [change.words for change in changes] == [words]
    sorted_changes = reloadable(changes)
    assert (sorted_changes.now, sorted_changes.restart) == (
        (changes, ()) if at_once else ((), changes)
    )


def test_one_more_peer_is_not_a_change_of_those_behind_it() -> None:
    peer = '[[peer]]\nname = "ct1"\nae_title = "CT1"\n[[peer]]\nname = "mr1"'
    changes = changed('[[peer]]\nname = "mr1"', peer)
    assert {change.path.partition(".")[0] for change in changes} == {"peer ct1"}
    assert 'peer ct1.ae_title: "CT1" is new' in [change.words for change in changes]
    assert reloadable(changes).restart == ()


def test_a_peer_that_went_is_told_key_by_key() -> None:
    one = '[[peer]]\nname = "mr1"\nae_title = "MR1"\nhosts = ["192.0.2.17"]\n'
    words = [change.words for change in changed(one, "")]
    assert 'peer mr1.ae_title: "MR1" is gone' in words


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_destination_that_is_new_or_gone_wants_a_restart(kind: str) -> None:
    more = f'[[destination]]\nkind = "{kind}"\nname = "copies"\npath = "/srv"\n[[destination]]\n'
    text = BASE.replace("[[destination]]\n", more)
    for old, new in ((BASE, text), (text, BASE)):
        changes = difference(config(old), config(new))
        assert changes
        assert reloadable(changes).now == ()


def test_a_destination_of_another_kind_wants_a_restart() -> None:
    changes = changed('kind = "store"\nname', 'kind = "folder"\npath = "/x"\nname')
    assert reloadable(changes).now == ()


def test_secrets_are_never_shown() -> None:
    old = BASE.replace(
        'peer = "pacs"\n', 'peer = "pacs"\npassword = "one"\nurl = "https://u:p@h"\n'
    )
    new = old.replace('"one"', '"two"').replace("u:p@", "u:q@")
    changes = difference(config(old), config(new))
    assert [change.words for change in changes] == [
        f"destination archive.password: {HIDDEN} becomes {HIDDEN}",
        f'destination archive.url: "https://{HIDDEN}@h" becomes "https://{HIDDEN}@h"',
    ]
    gone = [change.words for change in difference(config(old), config())]
    assert f"destination archive.password: {HIDDEN} is gone" in gone


def test_digests_of_keys_tell_which_changed_and_not_their_values() -> None:
    before = keys_digests(config(), "salt")
    after = keys_digests(config(BASE.replace("port = 104", "port = 105")), "salt")
    assert changed_keys(before, after) == ("peer pacs.port",)
    assert changed_keys(before, keys_digests(config(), "salt")) == ()
    assert before != keys_digests(config(), "other salt")
    assert not any("pacs.example" in value for value in before.values())


def test_mixed_changes_are_sorted_one_by_one() -> None:
    text = BASE.replace("port = 104", "port = 105").replace("= 11112", "= 11113")
    found = reloadable(difference(config(), config(text)))
    assert [change.path for change in found.now] == ["peer pacs.port"]
    assert [change.path for change in found.restart] == ["scp.port"]
