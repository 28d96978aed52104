"""The house rules that no linter knows: layers, lengths, families, docstrings."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from importlinter.cli import lint_imports

from node.cli.families import registries
from node.steps import MASKS, STEPS
from tests.places import ROOT

NODE = ROOT / "node"
SOURCES = sorted(NODE.rglob("*.py"))
TESTED = [
    *SOURCES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "engines").rglob("*.py")),
]

LONGEST_FILE = 400
LONGEST_TEST_FILE = 500  # cases are listed one by one
LONGEST_FUNCTION = 40
FORBIDDEN_WORDS = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "misc",
    "manager",
    "handler",
    "base",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A function with its length, so that a failing test says where to look."""

    file: Path
    function: Function

    @property
    def lines(self) -> int:
        """Lines of the body without its docstring, blank lines and comments."""
        body = self.function.body[1:] if ast.get_docstring(self.function) else self.function.body
        if not body:
            return 0
        text = self.file.read_text(encoding="utf-8").splitlines()
        block = text[body[0].lineno - 1 : body[-1].end_lineno]
        return sum(1 for line in block if line.strip() and not line.strip().startswith("#"))

    def __str__(self) -> str:
        place = f"{self.file.relative_to(ROOT)}:{self.function.lineno}"
        return f"{place}: {self.function.name} has {self.lines} lines"


def functions(file: Path) -> Iterator[Place]:
    """Every function of a file, nested ones too."""
    for found in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(found, Function):
            yield Place(file, found)


def contracts() -> list[dict[str, Any]]:
    """The import contracts of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    return found


def test_imports_keep_their_contracts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_every_member_of_a_family_is_independent_of_the_others() -> None:
    independent = {
        module
        for contract in contracts()
        if contract["type"] == "independence"
        for module in contract["modules"]
    }
    families: list[Any] = [*registries().values(), STEPS, MASKS]
    members = {member.__module__ for family in families for member in family.values()}
    assert {f"{module.rpartition('.')[0]}.*" for module in members} <= independent


def test_nothing_with_a_known_hole_is_imported() -> None:
    """pynetdicom's apps: CVE-2026-56445; pydicom.fileset: CVE-2026-32711."""
    holes = ("pynetdicom.apps", "pydicom.fileset")
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in SOURCES
        for name in imported(file)
        if name.startswith(holes)
    ]
    assert found == []


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever it does; for ``from a import b`` also ``a.b``."""
    for found in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


@pytest.mark.parametrize("file", TESTED, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_too_long(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    longest = LONGEST_TEST_FILE if file.is_relative_to(ROOT / "tests") else LONGEST_FILE
    assert lines <= longest, f"{file}: {lines} lines; divide it"


def test_no_function_is_too_long() -> None:
    # A migration is history: it is written once, by Alembic, and never changed.
    living = [file for file in SOURCES if "migrations" not in file.parts]
    places = (place for file in living for place in functions(file))
    assert [str(place) for place in places if place.lines > LONGEST_FUNCTION] == []


def test_every_module_says_why_it_exists() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in TESTED
        if file.read_text(encoding="utf-8") or file in SOURCES
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods with their dotted names."""
    for statement in body:
        if not isinstance(statement, ast.ClassDef | Function) or statement.name.startswith("_"):
            continue
        yield f"{prefix}{statement.name}", statement
        if isinstance(statement, ast.ClassDef):
            yield from public(statement.body, f"{prefix}{statement.name}.")


def test_every_public_name_has_a_docstring() -> None:
    silent = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in SOURCES
        if "migrations" not in file.parts  # upgrade and downgrade mean what Alembic says
        for name, found in public(ast.parse(file.read_text(encoding="utf-8")).body)
        if not ast.get_docstring(found)  # type: ignore[arg-type]
    ]
    assert silent == []


def test_every_option_of_a_member_is_explained_below_it() -> None:
    families: list[Any] = [*registries().values(), STEPS, MASKS]
    classes = {member.__qualname__: member for family in families for member in family.values()}
    bare = [
        f"{name}.{field}"
        for name, member in classes.items()
        for field in unexplained(Path(sys.modules[member.__module__].__file__ or ""), name)
    ]
    assert bare == []


def unexplained(file: Path, name: str) -> Iterator[str]:
    """The annotated fields of a class that no docstring follows."""
    (found,) = [
        statement
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ClassDef) and statement.name == name
    ]
    for statement, below in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            explained = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if not explained and "ClassVar" not in ast.unparse(statement.annotation):
                yield statement.target.id


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [str(file) for file in SOURCES if file.stem in FORBIDDEN_WORDS] == []


def test_families_do_not_look_for_their_members() -> None:
    """Literal registries only: a member that is found by looking is one that nobody can list."""
    looking = ("importlib.metadata.entry_points", "pkgutil.iter_modules", "import_module(")
    found = [
        str(file.relative_to(ROOT))
        for file in SOURCES
        for words in looking
        if words in file.read_text(encoding="utf-8")
    ]
    assert found == []
