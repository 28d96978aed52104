"""What the chaos tests share: one zygote, and the folder of a node."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.course import configured
from tests.chaos.kills import prepared
from tests.chaos.trial import Place
from tests.chaos.zygote import Zygote

Tell = Callable[[str, object], None]


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Studies, an engine and a zygote, made once."""
    with prepared(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Prints a figure where whoever runs the tests sees it."""

    def told(figure: str, value: object) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{figure}: {value}\n")

    return told


@pytest.fixture
def zygote(place: Place) -> Zygote:
    """Starts nodes."""
    return place.zygote


@pytest.fixture
def home(place: Place, tmp_path: Path) -> Path:
    """The configuration of a node whose destination nobody answers for."""
    return configured(place.engine, 1, tmp_path / "node", 0.2)
