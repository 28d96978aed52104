"""The frame of the configuration, and the members of its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from node.config import Config, Entry, check, find, frame, load, parse
from node.domain.errors import ConfigError
from node.domain.job import BackOff
from node.domain.peer import Peer


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Paint:
    """A member of a family."""

    colour: str
    layers: int = 1


REGISTRIES: dict[str, dict[str, type[Any]]] = {
    "trigger": {"push": Paint},
    "output": {"paint": Paint},
    "destination": {"paint": Paint},
    "runtime": {"onnx": Paint},
}

WHOLE = """\
[node]
ae_title = "BRAIN"
state = "state"
[scp]
port = 0
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "192.0.2.1"
port = 104
quiet_period_s = 3
[[trigger]]
kind = "push"
colour = "red"
[[output]]
kind = "paint"
name = "door"
colour = "blue"
layers = 2
[[destination]]
kind = "paint"
name = "wall"
colour = "white"
[[engine]]
package = "engines/mine"
outputs = ["door"]
destinations = ["wall"]
runtime = { kind = "onnx", colour = "grey" }
fallback = [{ kind = "onnx", colour = "black" }]
[delivery]
attempts = 4
factor = 3
"""


def faults_of(text: str) -> list[str]:
    """Everything that ``check`` says of a text."""
    with pytest.raises(ConfigError) as caught:
        check(parse(text, "n.toml"), REGISTRIES)
    return [str(fault) for fault in caught.value.faults]


def test_an_empty_file_is_a_whole_configuration() -> None:
    config = frame(parse(""))
    assert (config.node.ae_title, config.scp.port, config.peers) == ("AINODE", 11112, ())


def test_without_triggers_there_is_one_push() -> None:
    (trigger,) = frame(parse("")).triggers
    assert (trigger.kind, trigger.name, trigger.table) == ("push", "push", {})


def test_every_section_is_read() -> None:
    config = frame(parse(WHOLE))
    assert config.peers == (Peer("pacs", "PACS", "192.0.2.1", 104, quiet_period_s=3.0),)
    assert config.outputs == (Entry("paint", "door", {"colour": "blue", "layers": 2}),)
    assert config.engines[0].runtime == Entry("onnx", "onnx", {"colour": "grey"})
    assert config.engines[0].outputs == ("door",)
    assert config.scp.port == 0


def test_an_entry_becomes_the_member_of_its_family() -> None:
    config = check(parse(WHOLE), REGISTRIES)
    assert config.outputs[0].construct(REGISTRIES["output"]) == Paint("blue", 2)
    assert config.engines[0].runtime.construct(REGISTRIES["runtime"]) == Paint("grey")
    (lower,) = config.engines[0].fallback
    assert lower.construct(REGISTRIES["runtime"]) == Paint("black")


def test_an_entry_knows_its_line_when_its_member_is_wrong() -> None:
    config = frame(parse(WHOLE.replace("layers = 2", "layer = 2"), "n.toml"))
    with pytest.raises(
        ConfigError, match=r"n.toml:19: output\[0\].layer: unknown key; did you mean"
    ):
        config.outputs[0].construct(REGISTRIES["output"])


def test_every_wrong_key_of_a_file_is_told_at_once() -> None:
    text = (
        WHOLE.replace('ae_title = "BRAIN"', 'ae_titel = "BRAIN"')
        .replace("port = 104", "port = 99999")
        .replace('colour = "red"', "colour = 1")
        .replace("layers = 2", 'layers = "two"')
        .replace('"white"', '"white"\nunheard = 1')
        .replace('["wall"]', '["well"]')
        .replace('"grey"', "[]")
        .replace('colour = "black"', 'colour = "black", colours = 2')
        .replace("factor = 3", "factor = 0.5")
    )
    told = faults_of(text)
    assert [line.split(": ")[0:2] for line in told] == [
        ["n.toml:2", "node.ae_titel"],
        ["n.toml:10", "peer[0].port"],
        ["n.toml:14", "trigger[0].colour"],
        ["n.toml:19", "output[0].layers"],
        ["n.toml:24", "destination[0].unheard"],
        ["n.toml:28", "engine[0].destinations[0]"],
        ["n.toml:29", "engine[0].runtime.colour"],
        ["n.toml:30", "engine[0].fallback[0].colours"],
        ["n.toml:33", "delivery.factor"],
    ]


def test_a_place_is_told_once() -> None:
    told = faults_of('[[output]]\nname = "a"\n[[peer]]\n[[engine]]\noutputs = 1\nruntime = {}')
    assert len({line.split(": ")[1] for line in told}) == len(told)
    assert any(
        line.startswith("n.toml:1: output[0].kind: is missing; known kinds: paint") for line in told
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scpp]", "scpp: unknown key; did you mean 'scp'?"),
        ("[[peers]]", "peers: unknown key; did you mean 'peer'?"),
        ("[node]\nae_title = 'SEVENTEEN_LETTERS'", "at most 16 characters, not 17"),
        ("[scp]\nport = 65536", "scp.port: must be less than or equal to 65535, got 65536"),
        ("[scp]\nport = '104'", "scp.port: expected a whole number, got text '104'"),
        ("[scp]\nmaximum_associations = 0", "must be greater than or equal to 1, got 0"),
        ("[network]\nanswer_timeout_s = inf", "must be a finite number, got inf"),
        ("[network]\nanswer_timeout_s = 0", "must be greater than 0, got 0"),
        ("[logging]\nlevel = 'warn'", "did you mean 'warning'?"),
        ("[jobs]\nattempts = 0", "must be greater than or equal to 1, got 0"),
        ("[[engine]]\npackage = 'x'", "engine[0].outputs: is missing"),
        ("[[engine]]\npackage = 'x'\noutputs = []", "must have at least 1 item"),
        ("[[output]]\nname = 'x'\nkind = 1", "output[0].kind: expected text, got 1"),
        ("[[output]]\nname = ''\nkind = 'paint'\ncolour = ''", "must have at least 1 character"),
        ("[audit]\nsyslog = 'http://h'", "expected udp://HOST:PORT, tcp://HOST:PORT or tls://"),
        ("[audit]\nsyslog = 'tls://h:99999'", "audit.syslog: "),
        ("[audit]\nsyslog = 'tls://:6514'", "audit.syslog: "),
        ("[[engine]]\nmode = 'dark'", "engine[0].mode: "),
        ("[[engine]]\nfallback = [{}]", "engine[0].fallback[0].kind: is missing"),
        ("[inference]\nbuild_hours = '22-6'", "write quiet hours as 22:00-06:00, not '22-6'"),
        ("[inference]\nbuild_hours = '22:00-24:00'", "inference.build_hours: "),
        ("[inference]\nverify_every_h = -1", "inference.verify_every_h: "),
        ("output = 1", "output: expected an array, got 1"),
        ("output = [1]", "output[0]: expected a table, got 1"),
        ("[[engine]]\nruntime = 'onnx'", "engine[0].runtime: expected a table, got text 'onnx'"),
    ],
)
def test_a_wrong_frame_is_told(text: str, message: str) -> None:
    assert any(message in fault for fault in faults_of(text))


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(WHOLE, encoding="utf-8")
    config = load(path)
    assert config.node.state == tmp_path / "state"
    assert config.engines[0].package == str(tmp_path / "engines/mine")


def test_absolute_paths_and_engine_names_stay(tmp_path: Path) -> None:
    text = WHOLE.replace('"state"', '"/srv/state"').replace("engines/mine", "mr-brain-lesion")
    config = frame(parse(text, str(tmp_path / "node.toml")))
    assert config.node.state == Path("/srv/state")
    assert config.engines[0].package == "mr-brain-lesion"


def test_waits_between_tries_are_those_of_the_file() -> None:
    config = frame(parse(WHOLE))
    assert config.delivery.back_off == BackOff(5.0, 3.0, 900.0)
    assert config.jobs.back_off == BackOff(30.0, 2.0, 900.0)


def test_peers_are_known_by_name() -> None:
    network = frame(parse(WHOLE)).known_network
    assert (network.ae_title, list(network.peers)) == ("BRAIN", ["pacs"])
    assert network.peers["pacs"].port == 104


def test_a_configuration_can_be_made_without_a_file() -> None:
    assert Config(peers=(Peer("a", "A"),)).peers[0].name == "a"


def test_the_given_file_comes_first_then_the_environment(tmp_path: Path) -> None:
    environment = {"AI_NODE_CONFIG": "/e.toml"}
    assert find(tmp_path, environment) == tmp_path
    assert find(None, environment) == Path("/e.toml")
    assert find(None, {}) in (Path("/etc/ai-node/node.toml"), Path("node.toml"))
