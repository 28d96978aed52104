"""Plans of one run of the tests, kept in memory."""

from __future__ import annotations

import json
from pathlib import Path

from node.gpu.anew import BuiltAnew
from node.gpu.recipe import Recipe


class Shelf:
    """A PlanStore that remembers what was asked of it. ``plans`` may be changed by a test."""

    def __init__(self) -> None:
        self.plans: dict[str, bytes] = {}
        self.built = 0
        self.kernels: Path | None = None
        self.rejected: list[str] = []
        self._builder = BuiltAnew()

    def fetch(self, recipe: Recipe) -> bytes:
        """The plan, built the first time."""
        name = _name(recipe)
        if name not in self.plans:
            self.plans[name] = self._builder.fetch(recipe)
            self.built += 1
        return self.plans[name]

    def reject(self, recipe: Recipe, reason: str) -> None:
        """Forget a plan that does not load."""
        del self.plans[_name(recipe)]
        self.rejected.append(reason)


def _name(recipe: Recipe) -> str:
    return json.dumps(recipe.identity(), sort_keys=True)
