"""Every result says who made it and when, in words that DICOM can hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom.provenance import analysed, contribution, legible, line, person
from node.domain.errors import EncodingError
from node.testing.series import SeriesSpec
from tests.results import ALGORITHM, assessment, of_algorithm, source


@pytest.fixture
def in_vienna() -> Iterator[None]:
    """This machine stands in Vienna."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Vienna"
    time.tzset()
    yield
    del os.environ["TZ"]
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def stated(offset: str) -> str:
    header = source(SeriesSpec(extra={"TimezoneOffsetFromUTC": offset})).headers[0]
    return analysed(assessment(), header).strftime("%Y%m%d %H%M %z")


@pytest.mark.parametrize(
    ("offset", "moment"),
    [
        ("+0000", "20250102 1030 +0000"),
        ("+0530", "20250102 1600 +0530"),
        ("-1100", "20250101 2330 -1100"),
        ("+1400", "20250103 0030 +1400"),
    ],
)
def test_the_zone_of_the_source_is_kept(offset: str, moment: str) -> None:
    assert stated(offset) == moment


@pytest.mark.parametrize("offset", ["", "0100", "+1", "+0170", "+9900", "UTC"])
@pytest.mark.usefixtures("in_vienna")
def test_without_a_legal_zone_the_machine_s_is_taken(offset: str) -> None:
    assert stated(offset) == "20250102 1130 +0100"


def test_the_contribution_is_dated_with_its_zone() -> None:
    header = source(SeriesSpec(extra={"TimezoneOffsetFromUTC": "-0330"})).headers[0]
    item = contribution(ALGORITHM, analysed(assessment(), header))
    assert item.ContributionDateTime == "20250102070000.250000-0330"
    assert item.DeviceUID == ALGORITHM.device_uid


def test_parameters_lead_back_to_the_package_and_the_job() -> None:
    parameters = legible(assessment()).parameters
    assert parameters == f"threshold=0.5; package sha256 {'ab' * 32}; job {assessment().job_id}"


def test_a_digest_with_its_algorithm_fits_a_serial_number() -> None:
    assert legible(of_algorithm(assessment(), digest="sha256:" + "cd" * 32)).digest == "cd" * 32


@pytest.mark.parametrize("part", ["name", "version", "manufacturer", "digest"])
def test_an_anonymous_engine_makes_no_result(part: str) -> None:
    with pytest.raises(EncodingError):
        legible(of_algorithm(assessment(), **{part: "\n"}))


def test_a_family_stays_as_the_engine_says() -> None:
    other = replace(ALGORITHM.family, value="123109", meaning="Manual Processing")
    algorithm = replace(ALGORITHM, family=other)
    assert legible(replace(assessment(), algorithm=algorithm)).family == other


@given(st.text())
def test_a_line_is_a_legal_long_string(words: str) -> None:
    made = line(words)
    assert len(made) <= 64
    assert "\\" not in made and made == made.strip()
    assert not any(ord(character) < 32 for character in made)


@given(st.text())
def test_a_person_has_one_component(words: str) -> None:
    made = person(words)
    assert made.count("^") == 1 and made.endswith("^") and "=" not in made
    assert len(made) <= 64
