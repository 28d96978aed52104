"""``ai-node`` within the test's own process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from node.cli import app


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed on each stream."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """A command that sets up logging does so for its own stream, which ends with it."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in ("pydicom", "pynetdicom")}
    yield
    structlog.configure(**before)
    root.handlers[:] = [one for one in root.handlers if one in handlers]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def ai_node(own_logging: None) -> Callable[..., Said]:
    """Run a command: ``ai_node("check", "--config", path)``."""

    def run(*arguments: object) -> Said:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    return run
