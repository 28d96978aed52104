"""What every output promises, whatever it makes."""

from __future__ import annotations

import ast
import inspect
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydicom.dataset import Dataset

from node.conformance import check
from node.domain.finding import Assessment
from node.outputs import OUTPUTS
from node.testing.series import SeriesSpec
from tests.results import assessment, reread, source, written

OUTCOMES = [assessment(1), assessment(3), assessment(0), assessment(0, "no series fits")]
kinds = pytest.mark.parametrize("kind", OUTPUTS)
outcomes = pytest.mark.parametrize("outcome", OUTCOMES, ids=["one", "three", "none", "refused"])
IMAGES = source()


def encoded(kind: str, outcome: Assessment) -> tuple[Dataset | None, list[Dataset]]:
    """The object that one output makes, and those of the outputs before it."""
    earlier: list[Dataset] = []
    for name, output in OUTPUTS.items():
        made = output().encode(outcome, IMAGES, earlier)
        if name == kind:
            return made, earlier
        earlier += [] if made is None else [made]
    raise LookupError(kind)


@kinds
def test_its_options_are_frozen_documented_and_have_defaults(kind: str) -> None:
    output = OUTPUTS[kind]
    assert is_dataclass(output)
    [body] = ast.parse(inspect.cleandoc(inspect.getsource(output))).body
    assert isinstance(body, ast.ClassDef)
    described = {
        first.target.id
        for first, second in zip(body.body, body.body[1:], strict=False)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }
    assert described == {field.name for field in fields(output)}
    with pytest.raises(FrozenInstanceError):
        output().series_number = 5  # type: ignore[attr-defined]


@kinds
def test_an_unknown_option_is_an_error(kind: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(OUTPUTS[kind])
    with pytest.raises(ValidationError):
        adapter.validate_python({"seriesnumber": 3})
    assert adapter.json_schema()["additionalProperties"] is False


@kinds
@outcomes
def test_what_it_makes_passes_the_gate(kind: str, outcome: Assessment) -> None:
    made, earlier = encoded(kind, outcome)
    if made is not None:
        assert check(reread(made), IMAGES.headers, earlier) == ()


@kinds
@outcomes
def test_the_same_arguments_give_the_same_bytes(kind: str, outcome: Assessment) -> None:
    first, again = encoded(kind, outcome)[0], encoded(kind, outcome)[0]
    assert (first is None) == (again is None)
    if first is not None and again is not None:
        assert written(first) == written(again)


@kinds
def test_another_job_makes_another_object_in_another_series(kind: str) -> None:
    made, _ = encoded(kind, assessment())
    other, _ = encoded(kind, replace(assessment(), job_id="f" * 32))
    assert made is not None and other is not None
    assert made.SOPInstanceUID != other.SOPInstanceUID
    assert made.SeriesInstanceUID != other.SeriesInstanceUID
    assert made.StudyInstanceUID == other.StudyInstanceUID


@kinds
def test_headers_that_no_library_takes_are_no_obstacle(kind: str) -> None:
    odd = {"PatientSex": "W", "PatientBirthDate": "00000000", "StudyTime": "?", "StudyID": "x" * 20}
    images = source(SeriesSpec(extra=odd, patient_name="a=b=c=d^^^^^^^"))
    made = OUTPUTS[kind]().encode(assessment(), images, ())
    assert made is not None
    again = reread(made)
    assert {keyword: str(again[keyword].value) for keyword in odd} == odd
    assert check(again, images.headers) == ()


def test_every_output_writes_a_series_of_its_own() -> None:
    made = [encoded(kind, assessment())[0] for kind in OUTPUTS]
    series = {(d.SeriesInstanceUID, d.SeriesNumber) for d in made if d is not None}
    assert len(series) == len(OUTPUTS)


def test_one_of_the_outputs_always_speaks() -> None:
    for outcome in OUTCOMES:
        assert any(encoded(kind, outcome)[0] is not None for kind in OUTPUTS)
