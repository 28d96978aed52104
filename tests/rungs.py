"""Runtimes that fail in the ways that devices do, around the real one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from node.domain.errors import InferenceError, RuntimeUnavailable
from node.domain.tensor import Tensors, TensorSpec
from node.runtimes import Session
from node.runtimes.onnx import Onnx


@dataclass
class Fate:
    """What becomes of the next calls, in order; after them everything works.

    ``loading`` and ``inferring`` hold errors, or None for a call that works. ``plan`` are the words
    of a plan that is not there yet; ``former``: an older one serves. ``nan``: every answer is no
    number.
    """

    loading: list[InferenceError | None] = field(default_factory=list)
    inferring: list[InferenceError | None] = field(default_factory=list)
    plan: str = ""
    former: bool = False
    nan: bool = False
    used: int = 0
    """Bytes of the device that the network takes."""
    model: Path | None = None
    """What is loaded in place of the package's network."""
    loads: int = 0
    closed: int = 0


@dataclass(frozen=True)
class Device:
    """A runtime on a device that has a fate; ``words`` name it."""

    words: str
    fate: Fate = field(default_factory=Fate)

    def load(self, model: Path) -> Session:
        """The network, or the next error."""
        self.fate.loads += 1
        _befall(self.fate.loading)
        if self.fate.plan and not self.fate.former:
            raise RuntimeUnavailable(self.fate.plan)
        return Loaded(Onnx(threads=1).load(self.fate.model or model), self.words, self.fate)

    def pending(self, model: Path) -> str:
        """Why it cannot be loaded yet."""
        return self.fate.plan


class Loaded:
    """A network on that device."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, session: Session, words: str, fate: Fate) -> None:
        self._session = session
        self._fate = fate
        self.words = words
        self.inputs, self.outputs = session.inputs, session.outputs

    @property
    def used(self) -> Mapping[str, int]:
        """What it takes of the device."""
        return {"device bytes": self._fate.used}

    def infer(self, feeds: Tensors) -> Tensors:
        """The network's answer, or the next error."""
        _befall(self._fate.inferring)
        answers = self._session.infer(feeds)
        if self._fate.nan:
            return {name: np.full_like(one, np.nan) for name, one in answers.items()}
        return answers

    def close(self) -> None:
        """Count it."""
        self._fate.closed += 1
        self._session.close()


def _befall(errors: list[InferenceError | None]) -> None:
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error
