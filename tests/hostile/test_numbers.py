"""Numbers that are none, in every attribute that geometry or pixels depend on: no result comes out.

From the spool to the results folder, so that whichever part ought to refuse, one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from node.domain.job import JobState
from node.domain.peer import Network
from node.indexer import Indexer
from node.ledger import Ledger
from node.pipeline import Setup
from node.queues.embedded import Embedded
from node.room import EngineIdentity, Room
from node.spool import Spool
from node.testing.series import SeriesSpec
from node.triggers.push import Push
from node.worker import Patience, Worker
from tests.acceptance.hospital import small_study
from tests.conftest import Clock
from tests.hostile.raw import arrived, element, with_element
from tests.ward import received, tiny_setup, tools

NUMBERS = {
    "ImagePositionPatient": "%s\\0\\0",
    "ImageOrientationPatient": "1\\0\\0\\0\\%s\\0",
    "PixelSpacing": "%s\\1",
    "SliceThickness": "%s",
    "SpacingBetweenSlices": "%s",
    "RescaleSlope": "%s",
    "RescaleIntercept": "%s",
    "Rows": "%s",
    "Columns": "%s",
    "BitsAllocated": "%s",
    "BitsStored": "%s",
    "PixelRepresentation": "%s",
}
BAD = ("nan", "inf", "-inf", "1e400", "-1e400", "abc")


class Ward:
    """A spool, a ledger and a worker, without a network."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.ledger = Ledger.open(directory / "ledger.sqlite")
        self.spool = Spool(directory / "spool", clock)
        self.setup: Setup = tiny_setup(directory)
        self._clock = clock
        self._worker = Worker(
            self.ledger, Embedded(self.ledger), {"tiny": self.setup}, tools(self.spool), Patience()
        )

    def assess(self, spec: SeriesSpec, keyword: str, value: str, slices: range) -> JobState:
        """A study arrives with a value put into some slices, and its job is run."""
        for number, dataset in enumerate(small_study(spec)):
            content = bytes(received(dataset).dataset)
            if number in slices:
                bad = value.encode() + b" " * (len(value) % 2)
                made = element(tag_for_keyword(keyword) or 0, "DS", bad)
                content = with_element(content, made)
            self.spool.keep(arrived(dataset, content))
        Indexer(self.spool, self.ledger, self._clock).step()
        identity = EngineIdentity("tiny", self.setup.bundle.digest, self.setup.config_digest)
        room = Room(self.ledger, Network("AINODE"), (identity,), 0.0, lambda: None)
        Push().fire(room, self._clock.advance(10.0))
        while self._worker.step(self._clock):
            pass
        with self.ledger.read() as books:
            (row,) = books.jobs.of_study(spec.study_uid)
        return row.job.state

    def results(self) -> list[Path]:
        return list((self.spool.root / "results").rglob("*.dcm"))

    def close(self) -> None:
        self._worker.close()
        self.setup.engine.close()
        self.ledger.close()


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    ward = Ward(tmp_path_factory.mktemp("ward"), Clock())
    yield ward
    ward.close()


def spec_of(name: str) -> SeriesSpec:
    return SeriesSpec(study=name, slope=1.0, intercept=0.0)


def test_good_numbers_make_results(tmp_path: Path, clock: Clock) -> None:
    ward = Ward(tmp_path, clock)
    assert ward.assess(spec_of("good"), "RescaleSlope", "1.0", range(6)) is JobState.DONE
    assert len(ward.results()) == 2
    ward.close()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("keyword", NUMBERS)
@pytest.mark.parametrize("slices", [range(6), range(2, 3)], ids=["every slice", "one slice"])
def test_no_result_comes_out_of_a_bad_number(
    ward: Ward, keyword: str, bad: str, slices: range
) -> None:
    spec = spec_of(f"{keyword} {bad} {slices}")
    state = ward.assess(spec, keyword, NUMBERS[keyword] % bad, slices)
    assert state in (JobState.REFUSED, JobState.FAILED)
    assert ward.results() == []
