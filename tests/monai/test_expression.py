"""Which expressions are read, and that none of them is run."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.monai.expression import (
    LARGEST,
    Formula,
    NotUnderstood,
    above,
    drops_first,
    evaluate,
    painted,
)

VALUES: dict[str, Any] = {
    "bundle_root": ".",
    "size": [96, 96, 64],
    "highres": True,
    "shown::highres": False,
    "names": {"spleen": 1, "background": 0},
    "net": object(),
}


def value(text: str) -> Any:
    return evaluate(text, VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("@bundle_root + '/models/model.pt'", "./models/model.pt"),
        ("[1.5, 1.5, 1.5] if @highres else [3.0] * 3", [1.5, 1.5, 1.5]),
        ("[1.5] if @shown#highres else [3.0] * 3", [3.0, 3.0, 3.0]),
        ("len(@names) + 1", 3),
        ("len(@size)", 3),
        ("@size[-1] // 2", 32),
        ("@size[:2] + [1]", [96, 96, 1]),
        ("@names['spleen']", 1),
        ("@names.get('liver', 7)", 7),
        ("list(range(2, 6, 2))", [2, 4]),
        ("1.0 - float(80) / float(270)", 1 - 80 / 270),
        ("(not @highres)", False),
        ("(@size[0] - 80) // 2, 4", [8, 4]),
        ("torch.float32", "float32"),
        ("np.uint8", "uint8"),
        ("monai.utils.CommonKeys.IMAGE", "image"),
        ("torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "cpu"),
        ("os.path.join(@bundle_root, 'models', 'model.pt')", "./models/model.pt"),
        ("None", None),
        ("-1", -1),
        ("3 in @size or 96 in @size", True),
        ("{'image': 'a'}", {"image": "a"}),
    ],
)
def test_expression_of_the_zoo_is_read(text: str, wanted: Any) -> None:
    assert value(text) == wanted


def test_moving_a_network_leaves_it_what_it_is() -> None:
    assert value("@net.to(@device_that_nobody_asks_for)") is VALUES["net"]
    assert value("copy.deepcopy(@net)") is VALUES["net"]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd').read()",
        "().__class__.__bases__[0].__subclasses__()",
        "[x for x in @size]",
        "(lambda: 1)()",
        "@names.pop('spleen')",
        "@names.update({})",
        "torch.load('model.pt')",
        "f'{@bundle_root}'",
        "'%s' % @bundle_root",
        "glob.glob(@bundle_root + '/*')",
        "monai.networks.nets.vista3d132(in_channels=1)",
        "breakpoint()",
        "eval('1')",
        "size",
        "1 +",
        "",
        "@absent",
        "1 / 0",
        "@size[9]",
        "@bundle_root + 1",
        "{**@names}",
        "b'x'",
        "1j",
        "@size.get(1)",
    ],
)
def test_anything_else_is_named_as_not_understood(text: str, tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood) as refused:
        value(text)
    assert str(refused.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("'a' * 1000000000", 1_000_000_000),
        ("[0] * 70000 * 70000", 70_000),
        ("list(range(1000000000))", 1_000_000_000),
        (f"[0] * {LARGEST} + [1] * {LARGEST}", 2 * LARGEST),
    ],
)
def test_expression_that_would_grow_is_refused_before_it_does(text: str, count: int) -> None:
    tracemalloc.start()
    with pytest.raises(NotUnderstood, match=f"it makes {count} elements"):
        value(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


@pytest.mark.parametrize("text", ["1" * 3_000, "(" * 1_000 + ")" * 1_000, "-" * 1_500 + "1"])
def test_expression_that_is_long_or_deep_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstood):
        value(text)


@given(st.text(max_size=40))
def test_whatever_stands_there_is_read_or_refused(text: str) -> None:
    try:
        value(text)
    except NotUnderstood as error:
        assert str(error)


def formula(text: str) -> Formula:
    found = value(text)
    assert isinstance(found, Formula)
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("lambda x: x > 0", 0),
        ("lambda img: img > -500.5", -500.5),
        ("lambda x: x >= 0", None),
        ("lambda x: 0 < x", None),
        ("lambda x: y > 0", None),
        ("lambda x: x > y", None),
        ("lambda x: x > 0 > -1", None),
    ],
)
def test_threshold_that_is_written_as_a_function_is_seen(text: str, wanted: float | None) -> None:
    assert above(formula(text)) == wanted


def test_regions_in_one_another_are_seen_in_their_order() -> None:
    text = (
        "lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, "
        "torch.where(x[1] > 0.5, 2, 0)))"
    )
    assert painted(formula(text)) == ((2, 4), (0, 1), (1, 2))


@pytest.mark.parametrize(
    "text",
    [
        "lambda x: torch.where(x[[0]] > 0, 1, 5)",
        "lambda x: torch.where(x[[0]] < 0, 1, 0)",
        "lambda x: torch.where(x[[0]] > 0, x, 0)",
        "lambda x: torch.where(x[[0, 1]] > 0, 1, 0)",
        "lambda x: torch.where(x > 0, 1, 0)",
        "lambda x: other(x[[0]] > 0, 1, 0)",
        "lambda x: torch.nan_to_num(x)",
    ],
)
def test_other_functions_of_channels_are_not_taken_for_regions(text: str) -> None:
    assert painted(formula(text)) == ()


def test_dropping_the_background_channel_is_seen() -> None:
    assert drops_first(formula("lambda x : x[1:]"))
    assert not drops_first(formula("lambda x : x[2:]"))


@pytest.mark.parametrize(
    "text",
    [
        "[[1] * 5_000] * 5_000",
        "[[[1] * 99] * 99] * 9",
        "[[1] * 5_000, [1] * 5_001]",
        "9" * 1_500 + " * " + "9" * 400,
        "float('inf')",
        "1e200 * 1e200",
    ],
)
def test_values_that_would_fill_the_memory_are_not_made(text: str) -> None:
    with pytest.raises(NotUnderstood, match=r"limit|computed with"):
        evaluate(text, str)


def test_references_do_not_multiply_one_another_without_end() -> None:
    def squared(name: str) -> object:
        return (
            evaluate(f"@n{int(name[1:]) - 1} * @n{int(name[1:]) - 1}", squared)
            if name[1:] != "0"
            else 10**30
        )

    with pytest.raises(NotUnderstood, match="computed with"):
        evaluate("@n5", squared)
