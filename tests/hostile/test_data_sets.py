"""Hostile data sets over real associations: refused at once, or usable, or aside with a reason.

The ordinary run takes some hundred of them, ``--slow`` more than two thousand. The seed is in the
name of each: ``mutant(number, seed)`` makes it again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from node.dicom.contexts import STORAGE_CLASSES, TRANSFER_SYNTAXES
from node.testing.series import SeriesSpec, make
from tests.hostile.bombs import HEADER_BOMBS, Bomb
from tests.hostile.corpus import Hostile, mutants
from tests.hostile.peak import grown
from tests.hostile.site import REFUSALS, SUCCESS, Fortress, Report, fortress

MOST_MEMORY = 300 * 2**20
WITHIN_S = 10.0
"""Between acknowledgement and quarantine, on a machine that has other work."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Fortress]:
    with fortress(tmp_path) as site:
        yield site


def bundled() -> Iterator[Hostile]:
    """pydicom's own files, the malformed ones too, each under a UID of its own if it has none."""
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        if path.suffix not in (".py", ".pyc", ".json", ".xml", ".txt", ".md"):
            yield _as_it_is(path, number)


def _as_it_is(path: Path, number: int) -> Hostile:
    """The bytes after the file meta information, announced as the file announces itself."""
    content = path.read_bytes()
    syntax, sop_class = str(ExplicitVRLittleEndian), str(MRImageStorage)
    instance = f"1.2.3.{number}"
    begin = 0
    if content[128:132] == b"DICM" and content[132:136] == b"\x02\x00\x00\x00":
        begin = 144 + struct.unpack_from("<I", content, 140)[0]
        meta = dcmread(path, stop_before_pixels=True, force=True, specific_tags=[]).file_meta
        syntax = _known(meta.get("TransferSyntaxUID"), TRANSFER_SYNTAXES, syntax)
        sop_class = _known(meta.get("MediaStorageSOPClassUID"), STORAGE_CLASSES, sop_class)
        instance = str(meta.get("MediaStorageSOPInstanceUID", instance)) or instance
    return Hostile(path.name, syntax, sop_class, instance, content[begin:])


def _known(value: object, known: tuple[str, ...], otherwise: str) -> str:
    return str(value) if value in known else otherwise


def assert_nothing_is_lost(site: Fortress, inputs: list[Hostile], report: Report) -> None:
    """Each input was answered, and each acknowledged one is usable or aside with a reason."""
    names = {one.sop_instance_uid: one.name for one in inputs}
    odd = {names[uid]: s for uid, s in report.answers.items() if s not in {SUCCESS, *REFUSALS}}
    assert odd == {}
    lost = []
    for uid in report.acknowledged:
        entries = site.aside(uid)
        if not entries and not site.usable(uid):
            lost.append(names[uid])
        assert all(entry.reason and entry.path.is_file() for entry in entries)
    assert lost == []


def assert_the_node_is_well(site: Fortress, report: Report) -> None:
    """It answered echoes all the while, and every entry of the quarantine came soon."""
    assert max(report.echoes) < 1.0
    with site.node.ledger.read() as books:
        rows = books.quarantine.rows()
    waited = [row.at - int(row.path.name.split("-")[0]) / 1e6 for row in rows]
    assert max(waited, default=0.0) < WITHIN_S
    assert site.events()["quarantined"] == len(rows)
    assert not site.node.wait(0.0)


def attacked(site: Fortress, inputs: list[Hostile]) -> Report:
    with grown() as peak:
        report = site.attack(inputs)
        site.settle()
    assert peak() < MOST_MEMORY
    assert_nothing_is_lost(site, inputs, report)
    assert_the_node_is_well(site, report)
    return report


@pytest.mark.filterwarnings("ignore")
def test_spoilt_objects_are_refused_or_usable_or_aside(
    site: Fortress,
) -> None:
    report = attacked(site, list(mutants(345)))
    assert len(report.answers) == 345


@pytest.mark.filterwarnings("ignore")
def test_the_files_of_pydicom_are_refused_or_usable_or_aside(site: Fortress) -> None:
    inputs = list(bundled())
    assert len(inputs) > 80
    attacked(site, inputs)


def test_no_context_is_accepted_in_which_a_data_set_is_deflated(site: Fortress) -> None:
    with site.calling([(str(MRImageStorage), str(DeflatedExplicitVRLittleEndian))]) as association:
        accepted = [context.transfer_syntax for context in association.accepted_contexts]
    assert [str(DeflatedExplicitVRLittleEndian)] not in accepted


@pytest.mark.slow
def test_bombs_are_contained_while_the_node_serves(site: Fortress) -> None:
    """Up to the full limits of the child, 20 s each; echoes are answered all the while."""
    inputs = [_bomb(bomb, number) for number, bomb in enumerate(HEADER_BOMBS)]
    report = site.attack(inputs)
    site.settle()
    assert_nothing_is_lost(site, inputs, report)
    assert max(report.echoes) < 1.0
    for bomb, one in zip(HEADER_BOMBS, inputs, strict=True):
        entries = site.aside(one.sop_instance_uid)
        refused = report.answers[one.sop_instance_uid] in REFUSALS
        assert refused or entries or not bomb.words
        assert all(bomb.words in entry.reason for entry in entries)


def _bomb(bomb: Bomb, number: int) -> Hostile:
    dataset = make(SeriesSpec(), np.zeros((1, 8, 8), np.int16))[0]
    dataset.SOPInstanceUID, dataset.StudyInstanceUID = f"1.2.9.{number}", f"1.2.8.{number}"
    whole = bomb.made(dataset)
    syntax, sop_class = whole.transfer_syntax_uid, whole.sop_class_uid
    return Hostile(bomb.name, syntax, sop_class, whole.sop_instance_uid, bytes(whole.dataset))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_spoilt_objects(site: Fortress, capsys: pytest.CaptureFixture[str]) -> None:
    report = attacked(site, [*mutants(2300, seed=1)])
    with capsys.disabled():
        print(f"\nhostile data sets: {report}")  # noqa: T201
    assert len(report.answers) == 2300
