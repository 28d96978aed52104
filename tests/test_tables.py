"""Tables become dataclasses; every wrong key is told at once, in plain words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from node.document import Document, Where, parse
from node.domain.errors import ConfigError, Fault
from node.tables import build, construct, gather, meant

FORBID = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Place:
    """A standard dataclass, as the domain has them."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    host: str
    port: int = 104


class Limits(BaseModel):
    """A model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: float = 0.0
    high: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, config=FORBID)
class Shelf:
    """A member of a family, with every shape of option."""

    count: int
    ratio: float = 1.0
    label: str = ""
    open: bool = False
    folder: Path = Path()
    mode: Literal["first", "last"] = "first"
    size: int | tuple[int, ...] = 1
    places: tuple[Place, ...] = ()
    limits: Limits = Limits()
    named: dict[str, Place] = Field(default_factory=dict)
    spare: Place | None = None

    def __post_init__(self) -> None:
        """Refuse what single fields cannot show."""
        if self.count == 13:
            raise ValueError("13 shelves bring bad luck; take 12")


REGISTRY: dict[str, type[Any]] = {"shelf": Shelf, "limits": Limits, "place": Place}


def wrong(text: str, cls: type[object] = Shelf) -> list[str]:
    """What is said of a text that is wrong."""
    document = parse(text)
    with pytest.raises(ConfigError) as caught:
        build(cls, document.table, document.where)
    return [str(fault) for fault in caught.value.faults]


def test_a_whole_table_becomes_its_dataclass() -> None:
    document = parse(
        'count = 2\nratio = 3\nfolder = "a/b"\nsize = [1, 2]\nlimits = { high = 2 }\n'
        '[[places]]\nhost = "h"\n[named.x]\nhost = "n"\nport = 1\n[spare]\nhost = "s"'
    )
    assert build(Shelf, document.table, document.where) == Shelf(
        count=2,
        ratio=3.0,
        folder=Path("a/b"),
        size=(1, 2),
        limits=Limits(high=2),
        places=(Place("h"),),
        named={"x": Place("n", 1)},
        spare=Place("s"),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("count = 'abc'", "count: expected a whole number, got text 'abc'"),
        ("count = '2'", "count: expected a whole number, got text '2'"),
        ("count = 2.0", "count: expected a whole number, got 2.0"),
        ("count = true", "count: expected a whole number, got true"),
        ("ratio = 'x'", "ratio: expected a number, got text 'x'"),
        ("label = 3", "label: expected text, got 3"),
        ("open = 1", "open: expected true or false, got 1"),
        ("folder = []", "folder: expected text, got an array"),
        ("places = 'x'", "places: expected an array, got text 'x'"),
        ("places = ['x']", "places[0]: expected a table, got text 'x'"),
        ("limits = 1979-05-27", "limits: expected a table, got text '1979-05-27'"),
        ("named = []", "named: expected a table, got an array"),
        ("size = 'x'", "size: expected a whole number or an array, got text 'x'"),
        ("size = [1, 'x']", "size[1]: expected a whole number, got text 'x'"),
        ("limits = { high = -1 }", "limits.high: must be greater than 0, got -1"),
        (
            "mode = 'frist'",
            "mode: expected 'first' or 'last', got text 'frist'; did you mean 'first'?",
        ),
        ("limits.hihg = 1", "limits.hihg: unknown key; did you mean 'high'? (known: low, high)"),
        (
            "spare = { host = 'h', prot = 1 }",
            "unknown key; did you mean 'port'? (known: host, port)",
        ),
        ("named.x.host = 1", "named.x.host: expected text, got 1"),
        ("named.x = { port = 1 }", "named.x.host: is missing, and it has no default"),
        ("places = [{ host = 'h', z = 1 }]", "places[0].z: unknown key (known: host, port)"),
    ],
)
def test_a_wrong_key_is_told_in_plain_words(line: str, message: str) -> None:
    (told,) = wrong(line if line.startswith("count") else f"count = 1\n{line}")
    assert told.startswith("line ")
    assert told.endswith(message)


def test_all_wrong_keys_are_told_at_once_in_the_order_of_the_file() -> None:
    text = 'label = 1\n[limits]\nlow = "x"\n[[places]]\nprot = 1\n'
    assert [told.partition(": ")[0] for told in wrong(text)] == [
        "line 1", "line 1", "line 3", "line 4", "line 5",
    ]  # fmt: skip


def test_a_missing_key_is_named_at_its_table() -> None:
    assert wrong("[[places]]\nhost = 'h'\n[[places]]\n") == [
        "line 1: count: is missing, and it has no default",
        "line 3: places[1].host: is missing, and it has no default",
    ]


def test_a_rule_of_the_dataclass_itself_is_told_at_the_table() -> None:
    assert wrong("count = 13") == ["line 1: (whole file): 13 shelves bring bad luck; take 12"]


@pytest.mark.parametrize("cls", [Place, Shelf, Limits])
def test_unknown_keys_are_told_for_every_sort_of_class(cls: type[object]) -> None:
    assert any("unheard_of: unknown key (known: " in told for told in wrong("unheard_of = 1", cls))


def test_not_a_number_stays_what_it_is() -> None:
    document = parse("count = 1\nratio = inf")
    assert build(Shelf, document.table, document.where).ratio == float("inf")


def test_kind_chooses_the_member() -> None:
    document = parse("kind = 'place'\nhost = 'h'")
    assert construct(REGISTRY, document.table, document.where) == Place("h")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = 'h'", "kind: is missing; known kinds: shelf, limits, place"),
        ("kind = 1", "kind: expected text, got 1; known kinds: shelf, limits, place"),
        ("kind = 'plase'", "there is no kind 'plase'; did you mean 'place'?; known kinds: shelf"),
        ("kind = 'place'\nhost = 1", "line 2: host: expected text, got 1"),
    ],
)
def test_a_wrong_kind_is_told_with_those_that_exist(text: str, message: str) -> None:
    document = parse(text)
    with pytest.raises(ConfigError) as caught:
        construct(REGISTRY, document.table, document.where)
    assert message in str(caught.value)


def test_faults_of_several_builds_come_together_in_order() -> None:
    late = Fault("b", "wrong", 9, "f")
    early = Fault("a", "wrong", 2, "f")

    def failing(fault: Fault) -> object:
        raise ConfigError((fault,))

    with pytest.raises(ConfigError) as caught:
        gather(
            [lambda: failing(late), lambda: 1, lambda: failing(Fault("b", "again", 9, "f"))],
            [early],
        )
    assert caught.value.faults == (early, late)
    assert gather([lambda: 1, lambda: 2]) == (1, 2)


def test_only_a_close_word_is_suggested() -> None:
    assert meant("AE_Titel", ["ae_title", "port"]) == "; did you mean 'ae_title'?"
    assert meant("zzz", ["ae_title", "port"]) == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
_FIELDS = st.sampled_from([field.name for field in dataclasses.fields(Shelf)]) | st.text(max_size=4)  # type: ignore[arg-type]


@given(st.dictionaries(_FIELDS, _JSON.filter(lambda value: value is not None), max_size=6))
def test_any_table_is_built_or_told_and_never_breaks(table: dict[str, object]) -> None:
    document = Document(table, Where("f"))
    try:
        built = build(Shelf, document.table, document.where)
    except ConfigError as error:
        assert all(fault.path and fault.message for fault in error.faults)
    else:
        assert isinstance(built, Shelf)
