"""What is logged: structured lines, and never the text of an exception that may quote a header."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from node.domain.errors import HeaderError
from node.logs import Plain, exception_without_values, told
from tests.places import ROOT

SECRET = "CANARY^NAME"  # noqa: S105 - a patient, no password


def failing() -> BaseException:
    try:
        patient = SECRET
        int(patient)
    except ValueError as error:
        try:
            raise HeaderError("PatientWeight is no number") from error
        except HeaderError as outer:
            return outer
    raise AssertionError


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    before = structlog.get_config()
    structlog.configure(
        processors=[exception_without_values, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    yield stream
    structlog.configure(**before)


def test_an_exception_is_told_by_its_types_and_places_and_our_own_words() -> None:
    words = told(failing())
    assert words.startswith("HeaderError (PatientWeight is no number) at test_logs.py:")
    assert "; caused by ValueError at test_logs.py:" in words
    assert SECRET not in words


@pytest.mark.parametrize("given", [True, "itself"])
def test_a_logged_exception_shows_no_value(out: io.StringIO, given: Any) -> None:
    log = structlog.get_logger()
    try:
        raise failing()
    except HeaderError as error:
        log.error("failed", exc_info=error if given == "itself" else True)
    line = json.loads(out.getvalue())
    assert "caused by ValueError" in line["exception"]
    assert SECRET not in out.getvalue()


def test_a_line_without_an_exception_stays_as_it_is(out: io.StringIO) -> None:
    structlog.get_logger().info("fine", exc_info=False)
    assert json.loads(out.getvalue()) == {"event": "fine"}


def test_other_libraries_exceptions_show_no_value_either() -> None:
    error = failing()
    record = logging.LogRecord(
        "apscheduler", logging.ERROR, "x.py", 1, "job raised", (), (type(error), error, None)
    )
    line = Plain("%(name)s: %(message)s").format(record)
    assert line.startswith("apscheduler: job raised\nHeaderError (")
    assert SECRET not in line


PROGRAM = f"""
import logging
from node.config import LoggingSection
from node.logs import configure, guard
configure(LoggingSection())
guard()
logging.getLogger("pydicom").error("odd value {SECRET}")
logging.getLogger("pynetdicom.events").error("odd value {SECRET}")
logging.getLogger("other").warning("seen")
raise ValueError("{SECRET}")
"""


def test_a_program_that_ends_by_an_error_names_no_patient() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 1
    assert SECRET not in done.stderr
    assert "WARNING other: seen" in done.stderr
    assert "ended by an error that nobody foresaw" in done.stderr
    assert "ValueError at <string>:10 <module>" in done.stderr


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert told(first).count("ValueError") == 16


def test_pydicom_stays_silent_though_it_is_imported_after_the_log_was_set_up() -> None:
    """Its import sets the level of its logger anew."""
    code = (
        "from node import logs; from node.config import LoggingSection;"
        "logs.configure(LoggingSection());"
        "import node.dicom.headers, logging;"
        "logging.getLogger('pydicom').error('Doe^John')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Doe" not in done.stderr + done.stdout
