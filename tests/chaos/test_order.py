"""No 0x0000 leaves before the object is durable, by the order of the receiver's system calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.load import Modality, copies
from tests.chaos.tracing import Verdict, judge, recorded
from tests.chaos.trial import Place
from tests.chaos.zygote import Order, Zygote

_ASSOCIATIONS = 4


def traced_reception(place: Place, zygote: Zygote, home: Path, count: int) -> Verdict:
    """Send so many objects over four associations to a receiver whose system calls are recorded."""
    objects = copies(place.pool[0], count, home.parent / "objects")
    modalities = [Modality(objects[number::_ASSOCIATIONS]) for number in range(_ASSOCIATIONS)]
    trace = home.parent / "trace"
    body = zygote.start(Order(str(home), str(home.with_name("log")), "receiver"))
    try:
        with recorded(body.process, trace), ThreadPoolExecutor() as lanes:
            list(lanes.map(lambda modality: modality.send(body.port), modalities))
    finally:
        body.kill()
    assert all(modality.done for modality in modalities)
    return judge(trace)


def test_no_acknowledgement_leaves_before_fsync(place: Place, zygote: Zygote, home: Path) -> None:
    verdict = traced_reception(place, zygote, home, 200)
    assert verdict.acknowledged == 200
    assert not verdict.premature


@pytest.mark.slow
def test_no_acknowledgement_leaves_before_fsync_in_ten_thousand_objects(
    place: Place, zygote: Zygote, home: Path, tell: Tell
) -> None:
    verdict = traced_reception(place, zygote, home, 10_000)
    tell("acknowledgements before fsync", f"{len(verdict.premature)} of {verdict.acknowledged}")
    assert verdict.acknowledged == 10_000
    assert not verdict.premature


@pytest.mark.parametrize("missing", ["fsync of the file", "rename", "fsync of the folder"])
def test_the_judge_sees_what_is_missing(tmp_path: Path, missing: str) -> None:
    steps = {
        "write": f'7 write(3<{_hex("/in/1.part")}>, "{_hex(_ENVELOPE)}", 20) = 20',
        "fsync of the file": f"7 fsync(3<{_hex('/in/1.part')}>) = 0",
        "rename": f'7 rename("{_hex("/in/1.part")}", "{_hex("/in/1.dcm")}") = 0',
        "fsync of the folder": f"7 fsync(3<{_hex('/in')}>) = 0",
        "answer": f'8 sendto(4<{_hex("socket:[1]")}>, "{_hex(_ANSWER)}", 40, 0, NULL, 0) = 40',
    }
    trace = tmp_path / "trace"
    trace.write_text("\n".join(steps.values()))
    assert judge(trace) == Verdict(1, [])
    trace.write_text("\n".join(line for step, line in steps.items() if step != missing))
    assert judge(trace) == Verdict(1, ["1.2.3"])


_ENVELOPE = "\x02\x00\x03\x00UI\x06\x001.2.3\x00"
_COMMAND = (
    "\x00\x00\x00\x01\x02\x00\x00\x00\x01\x80\x00\x00\x20\x01\x02\x00\x00\x00\x00\x00"
    "\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00\x00\x00\x00\x10\x06\x00\x00\x001.2.3\x00"
)
_ANSWER = (
    f"\x04\x00\x00\x00\x00{chr(len(_COMMAND) + 6)}\x00\x00\x00{chr(len(_COMMAND) + 2)}\x01\x03"
)
_ANSWER += _COMMAND


def _hex(text: str) -> str:
    return "".join(f"\\x{ord(character):02x}" for character in text)
