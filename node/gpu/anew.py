"""Plans without a cache: every load builds its own, in a process of its own.

For trying a network, and for whoever has no place to keep plans; a node takes the cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.domain import errors
from node.domain.errors import InferenceError, NodeError
from node.gpu.recipe import Recipe


@dataclass(frozen=True, slots=True)
class BuiltAnew:
    """A PlanStore that keeps nothing."""

    patience: float = 3600.0
    """Seconds that one build may take."""

    @property
    def kernels(self) -> Path | None:
        """Nothing is kept."""
        return None

    def fetch(self, recipe: Recipe) -> bytes:
        """The plan, built now. Raises what the builder says, and InferenceError."""
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            out = Path(folder) / "plan"
            last = self._built(recipe.order(out))
            if "failed" in last:
                raise raised(last["failed"])
            try:
                return out.read_bytes()
            except OSError as error:
                raise InferenceError(f"the plan that was built cannot be read: {error}") from error

    def reject(self, recipe: Recipe, reason: str) -> None:
        """There is nothing to put aside."""

    def _built(self, order: dict[str, Any]) -> dict[str, Any]:
        """The builder's last line."""
        words = [sys.executable, "-m", "node.gpu.building"]
        try:
            ended = subprocess.run(  # noqa: S603 (our own interpreter and module)
                words,
                input=json.dumps(order),
                capture_output=True,
                text=True,
                timeout=self.patience,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InferenceError(f"building a plan took longer than {self.patience:g} s") from error
        lines = ended.stdout.splitlines()
        last = json.loads(lines[-1]) if lines else {}
        if not isinstance(last, dict) or last.keys().isdisjoint({"done", "failed"}):
            said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
            raise InferenceError(f"building a plan ended with {ended.returncode}: {said}")
        return last


def raised(failed: dict[str, str]) -> NodeError:
    """The error that a builder's last line tells."""
    kind = getattr(errors, failed["error"], InferenceError)
    known = isinstance(kind, type) and issubclass(kind, NodeError)
    return kind(failed["reason"]) if known else InferenceError(failed["reason"])
